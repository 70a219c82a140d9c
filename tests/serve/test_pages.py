"""The chat page: its files, its policy, and a conversation in a browser where there is one."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

import httpx2 as httpx
import pytest

from herdbook.serve.pages import FILES

from .conftest import Live, live, make_served

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@pytest.mark.parametrize("path", FILES)
def test_files_come_without_a_key_and_under_a_strict_policy(path: str) -> None:
    with live(make_served("m"), keys=["secret"]) as house:
        answer = httpx.get(house.url + path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(FILES[path][1])
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert httpx.get(house.url + "/v1/models").status_code == 401


def test_the_page_names_only_its_own_files(house: Live) -> None:
    for path in FILES:
        text = httpx.get(house.url + path).text
        assert "http://" not in text
        assert "innerHTML" not in text
    page = httpx.get(house.url + "/").text
    assert all(f'"{name}"' in page for name in ("chat.css", "chat.js"))
    assert httpx.get(house.url + "/chat.py").status_code == 404
    assert httpx.get(house.url + "/../config.py").status_code == 404


@pytest.fixture
def page(house: Live) -> Any:
    if BROWSER is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs Chromium and the package playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=QUIET)
        opened = browser.new_page()
        mistakes: list[str] = []
        opened.on("pageerror", lambda error: mistakes.append(str(error)))
        opened.on("console", lambda said: mistakes.append(said.text) if said.type == "error" else None)
        opened.goto(house.url)
        yield opened
        browser.close()
        assert not mistakes


def test_a_conversation_with_two_models_side_by_side(page: Any) -> None:
    page.locator(".pane").wait_for()
    assert "CC-BY-SA-4.0" in page.locator(".licence").inner_text()
    page.click("#open-settings")
    page.fill("#max_tokens", "8")
    page.fill("#system", "Be brief.")
    page.click("#compare")
    page.fill("#message", "<b>hello</b>")
    page.keyboard.press("Enter")
    page.locator(".notes button").nth(1).wait_for()
    assert page.locator(".turn.user").all_inner_texts() == ["<b>hello</b>"] * 2
    assert "8 tokens" in page.locator(".notes").first.inner_text()
    page.check("#probabilities")
    assert page.locator(".pane").first.locator(".token").count() == 8
    page.locator(".token").first.hover()
    assert "%" in page.locator("#odds").inner_text()
    page.locator(".notes button").first.click()
    page.locator(".notes button").nth(1).wait_for()
    assert page.locator(".turn").count() == 4
