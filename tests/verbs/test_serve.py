"""`herdbook serve` as a user meets it: models and licences named, one sentence for a mistake, an end that finishes its work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers

from herdbook.api import LanguageModel
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.facts.licenses import find_license
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.serve.door import bind
from herdbook.tokenizer import Tokenizer
from herdbook.verbs.serve import serve, split

DEFAULTS: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "keys": (), "open_to_the_network": False, "engine": "herdbook",
                            "device": "cpu", "dtype": None, "commercial": False, "allow_pickle": False}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder, with a tokenizer of bytes and a licence."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Trained(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trained.add_special_tokens(["<|end|>"])
    shape = {"vocab_size": 272, "d_model": 32, "n_layers": 2, "n_heads": 4, "context": 2048}
    model = Decoder(ModelConfig.model_validate(shape))
    model.init_weights(torch.Generator().manual_seed(0))
    place = tmp_path_factory.mktemp("models") / "tiny"
    words = Tokenizer(trained.to_str(), {"eos_token": "<|end|>"})
    LanguageModel(model, words, license=find_license("CC-BY-NC-4.0")).save(place)
    return place


@contextmanager
def started(*words: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The verb as a process; its address, and the lines it has said."""
    said: list[str] = []
    with subprocess.Popen([sys.executable, "-m", "herdbook", "serve", *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ready = threading.Event()

        def listen() -> None:
            for line in process.stderr or ():
                said.append(line)
                if "http://" in line:
                    ready.set()
            ready.set()

        reader = threading.Thread(target=listen)
        reader.start()
        try:
            assert ready.wait(60)
            found = re.search(r"http://[\d.:]+", "".join(said))
            assert found, "".join(said)
            yield process, found[0], said
        finally:
            if process.poll() is None:
                process.kill()
            reader.join()


def test_serves_and_ends_when_its_work_is_done(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").symlink_to(folder)
    words = [f"first={folder}", "llama2-second=" + str(folder), "--port", "0", "limits.drain=20s", "engine.backend=torch"]
    with started(*words) as (process, url, said):
        listed = httpx.get(url + "/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["first", "llama2-second"]
        assert listed[0]["license"]["commercial"] is False
        text = "".join(said)
        assert text.count("no commercial use") == 2
        assert "no chat template" in text
        body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", url + "/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(30) == 0


def test_a_second_signal_ends_it_at_once(folder: Path) -> None:
    with started(str(folder), "--port", "0", "engine.backend=torch") as (process, url, _):
        body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True, "n": 30}
        with httpx.stream("POST", url + "/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130


@pytest.mark.parametrize(
    ("words", "settings", "says"),
    [
        (["{folder}"], {"host": "0.0.0.0"}, "HERDBOOK_API_KEY"),
        (["{folder}"], {"keys": ["short"]}, "16 characters"),
        (["{folder}"], {"engine": "frob"}, "frob"),
        (["{folder}", "limits.bdy=3"], {}, "did you mean limits.body"),
        (["{folder}", "engine.rows=0"], {}, "engine.rows"),
        (["limits.body=3"], {}, "no model"),
        (["a={folder}", "a={folder}"], {}, "two models"),
        (["=x"], {}, "neither"),
        (["{folder}/absent"], {}, "absent"),
        (["llama2-nano"], {}, "llama2-nano"),
        (["llama2-tiny"], {}, "tokenizer"),
        (["{folder}"], {"commercial": True}, "no commercial use"),
        (["{folder}", "engine.rows=2"], {"engine": "vllm"}, "settings of its own"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes(folder: Path, words: list[str], settings: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HERDBOOK_API_KEY", raising=False)
    with pytest.raises(UserError, match=re.escape(says)):
        serve([word.format(folder=folder) for word in words], Terminal(quiet=True), **{**DEFAULTS, **settings})


def test_a_port_in_use_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}"):
            serve([str(tmp_path / "absent")], Terminal(quiet=True), **{**DEFAULTS, "port": port})


def test_names_of_models(folder: Path) -> None:
    assert split([str(folder), "b=x/y", "engine.rows=3"]) == ({"tiny": str(folder), "b": "x/y"}, ["engine.rows=3"])
    assert split(["llama2-nano"]) == ({"llama2-nano": "llama2-nano"}, [])


def test_an_unknown_licence_is_said_to_be_unknown() -> None:
    from herdbook.serve.served import Served

    terms = Served("x", None, find_license(None)).terms()  # type: ignore[arg-type]
    assert "unknown" in terms
    assert Served("x", None, None).terms().startswith("random weights")  # type: ignore[arg-type]


def test_vllm_gets_the_same_folder(folder: Path, tmp_path: Path) -> None:
    fake = tmp_path / "vllm"
    fake.write_text('#!/bin/sh\necho "$@" "key=$VLLM_API_KEY"\n')
    words = [sys.executable, "-m", "herdbook", "serve", f"mine={folder}", "--engine", "vllm", "--host", "0.0.0.0"]
    environment = {**os.environ, "HERDBOOK_API_KEY": "k" * 20, "PATH": "/nowhere"}
    absent = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert (absent.returncode, "vLLM is not installed" in absent.stderr) == (2, True)
    fake.chmod(0o755)
    environment["PATH"] = f"{tmp_path}:/bin:/usr/bin"
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    expected = f"serve {folder} --served-model-name mine --host 0.0.0.0 --port 8000 key={'k' * 20}\n"
    assert (done.returncode, done.stdout) == (0, expected)
