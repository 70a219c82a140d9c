"""`herdbook plan` as it is typed: what it prints, what it writes, and how it says no."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from herdbook.cli import app
from herdbook.errors import UserError
from herdbook.facts.devices import find_device
from herdbook.recipe import load_recipe
from herdbook.verbs import dry


def plan(*words: str) -> str:
    done = CliRunner().invoke(app, ["plan", *words], catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return done.output


def facts(*words: str) -> Any:
    return json.loads(plan(*words, "--json"))


def test_chinchillas_row_for_67b() -> None:
    found = facts("params=67B", "law=approach1")["plan"]
    assert found["flops"]["value"] == pytest.approx(5.76e23)
    assert found["tokens"]["value"] == pytest.approx(1.5e12, rel=0.05)
    assert "Table 3" in found["tokens"]["how"]
    text = " ".join(plan("params=67B", "law=approach1").split())
    assert "67B given" in text
    assert "5.76e+23 6·N·D" in text


def test_the_papers_tables() -> None:
    rows = facts("chinchilla")
    assert len(rows) == 27
    assert all(row["our_parameters"] == pytest.approx(row["parameters"], rel=0.08) for row in rows)
    assert "5.76e+23" in plan("chinchilla")


def test_a_budget_in_money() -> None:
    found = facts("budget=10000", "device=h100-80gb", "price=2", "gpus=8")["plan"]
    assert found["gpu_hours"]["value"] == pytest.approx(5000)
    assert found["time"]["value"] == pytest.approx(625 * 3600)
    assert found["flops"]["value"] == pytest.approx(5000 * 3600 * 989.4e12 * 0.4)


def test_a_layout_is_taken() -> None:
    text = plan("model=llama2-7b", "device=a100-80gb", "gpus=8")
    assert "→ take zero2 8" in text
    assert "fsdp 4 × tp 2" in text
    assert "nothing fits; 64 × rtx4090 would be enough" in plan("params=70B", "device=rtx4090", "gpus=2")


def test_training_and_serving() -> None:
    text = plan("params=7B", "tokens=2T", "serve-tokens=1T")
    assert "cheapest in all" in text
    assert "2401.00448" in text


@pytest.mark.parametrize("words", [(), ("like=llama2-7b",), ("like=falcon-7b", "multiple=3"), ("like=opt-350m",)])
@pytest.mark.parametrize("depth", [2, 12])
def test_a_depth_fills_in_a_recipe(tmp_path: Path, depth: int, words: tuple[str, ...]) -> None:
    out = tmp_path / "recipe.yaml"
    found = facts("--depth", str(depth), *words, "-o", str(out))
    recipe = load_recipe(out)
    model = recipe.model.resolved(recipe.tokenizer.vocab_size)
    assert model.n_layers == depth
    assert model.parameters() == found["plan"]["params"]["value"]
    assert recipe.train.tokens == found["recipe"]["tokens"]
    assert recipe.train.tokens_per_step % model.context == 0
    assert recipe.train.lr == found["recipe"]["lr"]
    assert recipe.name == f"depth-{depth}"
    with pytest.raises(UserError, match="already"):
        plan("--depth", str(depth), "-o", str(out))
    plan("--depth", str(depth), "-o", str(out), "--force")


def test_its_recipe_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan("--depth", "3", "-o", "recipe.yaml")
    described = dry.describe(load_recipe("recipe.yaml"))
    assert described["plan"]["parameters"] == facts("--depth", "3")["plan"]["params"]["value"]
    text = plan("recipe.yaml", "train.tokens=1M", "device=t4")
    assert "given: train.tokens of the recipe" in text
    assert "1M" in text


def test_a_run_that_was_trained_tells_its_utilisation(tmp_path: Path) -> None:
    from herdbook import pedigree

    run = tmp_path / "depth-3"
    plan("--depth", "3", "-o", str(tmp_path / "r.yaml"))
    words = [str(tmp_path / "r.yaml"), f"out={tmp_path}", "device=t4"]
    assert "MFU 0.3 (assumed" in " ".join(plan(words[0], words[2]).split())
    (run / "pretrain").mkdir(parents=True)
    (run / "recipe.yaml").write_text((tmp_path / "r.yaml").read_text())
    with pedigree.record(run / "pretrain", "pretrain", {}) as rec:
        rec.counts["mfu"] = 0.41
    assert f"MFU 0.41 (measured in {run})" in " ".join(plan(str(run), "device=t4").replace("\n", " ").split())


def test_one_gpu() -> None:
    found = facts("serve", "device=a100-80gb", "precision=bf16", "speed=20")
    assert found["largest"]["parameters"] == pytest.approx(29.96e9, rel=0.05)
    assert found["beside"]["mpt-30b"]["fits"]
    text = plan("serve", "device=a100-80gb", "speed=20")
    assert "mpt-30b" in text
    assert "one layer more would not fit" in text
    small = facts("serve", "device=rtx4090", "like=llama2-7b", "context=4096")
    assert 7e9 < small["largest"]["parameters"] < 12e9


def test_devices() -> None:
    assert {"a100-80gb", "h100-80gb", "rtx4090"} <= {row["name"] for row in facts("devices")}
    assert "Rent and MFU are assumptions" in plan("devices")


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from herdbook.plan import peak

    monkeypatch.setattr(peak, "BUDGET_S", 0.02)
    monkeypatch.setattr(peak, "SIDES", {"cpu": (256,)})
    found = facts("quickstart", "device=here")
    assert found["device"]["measured"]
    assert found["plan"]["time"]["value"] > 0
    assert found["layouts"]["taken"]["title"] == "one device"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to plan from"),
        (["palm-8b"], "written model=palm-8b"),  # a model that no recipe is called after
        (["serve", "devices"], "one thing at a time"),
        (["serve"], "add device="),
        (["serve", "device=a100-80gb", "gpus=8"], "no such key"),
        (["params=7B", "device=a100"], "did you mean"),
        (["absent.yaml"], "no such recipe"),
        (["quickstart", "params=7B"], "model of its own"),
        (["model=llama2-7b", "params=7B"], "its own number"),
        (["depth=3", "model=llama2-7b"], "two shapes"),
        (["params=7B", "-o", "x.yaml"], "only a depth"),
        (["serve", "device=t4", "speed=1e9"], "not even one layer"),
    ],
    ids=" ".join,
)
def test_wrong_words(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        plan(*words)


def test_a_device_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("memory: 48GiB\nflops: {bf16: 100e12}\nbandwidth: 1e12\n")
    assert find_device(str(tmp_path / "mine.yaml")).mfu == 0.4
    assert facts("params=1B", f"device={tmp_path / 'mine.yaml'}")["plan"]["rate"]["value"] == pytest.approx(4e13)
