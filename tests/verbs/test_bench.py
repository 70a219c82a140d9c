"""The figures that `herdbook bench` gives: what they count, and that they come out for any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.infer.bench import Speed, ours
from herdbook.interop.hf import save_folder
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.verbs.bench import bench

SHAPE = ModelConfig(vocab_size=320, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, context=64)


def test_figures_of_our_engine() -> None:
    model = Decoder(SHAPE).eval()
    found = ours(model, prompt=20, written=8, sequences=(1, 3), backend="torch")
    assert found.prefill == pytest.approx(20 / found.first_s)
    assert set(found.decode) == {1, 3}
    assert all(rate > 0 for rate in found.decode.values())
    matrices = SHAPE.parameters() - 5 * 32  # all but five norms; the embedding is the head
    cache = 2 * 2 * 2 * 8 * 4  # key and value, layers, heads, width, float32
    assert found.step_bytes == {1: matrices * 4 + 24 * cache, 3: matrices * 4 + 3 * 24 * cache}


def test_share_of_the_bandwidth() -> None:
    speed = Speed("x", 1, 1, 1.0, 1.0, {1: 10.0, 4: 20.0}, {1: 100.0, 4: 200.0})
    assert speed.share(1, 2000.0) == 0.5
    assert speed.share(4, 2000.0) == 0.5  # 5 steps a second of 200 bytes
    assert speed.share(2, 2000.0) is None


def test_the_verb_measures_the_peer_on_the_same_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_folder(Decoder(SHAPE).eval(), tmp_path / "model", tokenizer=None)
    settings: dict[str, Any] = {"written": 4, "dtype": "float32", "backend": "auto", "with_peers": True, "allow_pickle": False}
    bench(str(tmp_path / "model"), Terminal(as_json=True), prompt=16, **settings)
    said = json.loads(capsys.readouterr().out)
    assert [engine["engine"].split()[0] for engine in said["engines"]] == ["herdbook", "transformers"]
    assert said["parameters"] == SHAPE.parameters()
    assert said["threads"] == torch.get_num_threads()
    with pytest.raises(UserError, match="longer than the model's context of 64"):
        bench(str(tmp_path / "model"), Terminal(quiet=True), prompt=64, **settings)
