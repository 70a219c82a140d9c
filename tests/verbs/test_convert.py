"""`herdbook convert`: every layout to every other, licences and pedigree along, nothing half done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from herdbook import pedigree
from herdbook.cli import app
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.interop.doors import load_decoder
from herdbook.interop.gguf.container import open_gguf
from herdbook.interop.hf import save_folder
from herdbook.interop.licenses import license_of
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.verbs.convert import convert

SHAPE = {"vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "context": 32, "tied": False}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model folder without a pedigree, whose card says that it was made from LLaMA."""
    save_folder(Decoder(ModelConfig.model_validate(SHAPE)), tmp_path / "llama", tokenizer=None, license_id="MIT")
    card = tmp_path / "llama" / "README.md"
    card.write_text(card.read_text().replace("license: mit", "license: mit\nbase_model: huggyllama/llama-7b"))
    return tmp_path / "llama"


def go(source: Path, out: Path, **options: object) -> None:
    settings: dict[str, object] = dict.fromkeys(("to", "kind", "license_id", "tokenizer"))
    settings |= {"commercial": False, "allow_pickle": True, "terminal": Terminal(quiet=True)}
    convert(source, out, **{**settings, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("there", ["hf", "m.gguf", "meta", "m.bin"])
def test_there_and_back(there: str, source: Path, tmp_path: Path) -> None:
    go(source, tmp_path / there, to="meta" if there == "meta" else None)
    go(tmp_path / there, tmp_path / "back", license_id="MIT" if there == "m.bin" else None)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(load_decoder(tmp_path / "back")(tokens), load_decoder(source)(tokens), atol=1e-5, rtol=0)
    if there != "m.bin":  # llama2.c's file has no place for a licence
        assert license_of(tmp_path / "back").id == "LicenseRef-llama-1 AND MIT"


def test_the_pedigree_leads_back_to_the_source(source: Path, tmp_path: Path) -> None:
    go(source, tmp_path / "out", to="hf")
    manifest = pedigree.read(tmp_path / "out")
    assert manifest["station"] == "convert"
    assert [row["path"] for row in manifest["inputs"]] == ["../llama"]
    assert not manifest["license"]["commercial"]
    assert "no commercial use" in (tmp_path / "out" / "README.md").read_text()
    go(tmp_path / "out", tmp_path / "m.gguf", kind="q8_0")
    inside = json.loads(open_gguf(tmp_path / "m.gguf").metadata["herdbook.pedigree"])
    assert inside["source"] == "out"
    assert inside["license"] == "LicenseRef-llama-1 AND MIT"
    assert len(inside["sha256"]) == 64


def test_commercial_refuses_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    for out in ("out", "m.gguf"):
        with pytest.raises(UserError, match="no commercial use"):
            go(source, tmp_path / out, commercial=True)
        assert not (tmp_path / out).exists()
    go(source, tmp_path / "out", commercial=True, license_id="Apache-2.0")
    assert license_of(tmp_path / "out").id == "Apache-2.0"


@pytest.mark.parametrize("out", ["llama", "llama/inside", "taken"])
def test_nothing_is_written_over(out: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    before = sorted(path.name for path in source.iterdir())
    with pytest.raises(UserError, match=r"onto itself|not empty"):
        go(source, tmp_path / out)
    assert sorted(path.name for path in source.iterdir()) == before
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine"


def test_a_layout_without_a_form_for_the_model_leaves_no_folder(tmp_path: Path) -> None:
    save_folder(Decoder(ModelConfig.model_validate({**SHAPE, "tied": True})), tmp_path / "tied", tokenizer=None)
    with pytest.raises(UserError, match="tied"):
        go(tmp_path / "tied", tmp_path / "out", to="meta")
    assert not (tmp_path / "out").exists()


def test_on_the_command_line(source: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "m.gguf"), "--type", "BF16", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["license"] == "LicenseRef-llama-1 AND MIT"
    assert facts["layout"] == "gguf"
    assert facts["bytes"] == (tmp_path / "m.gguf").stat().st_size
