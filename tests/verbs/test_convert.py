"""`herdbook convert`: every layout to every other, licences and pedigree along, nothing half done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Trained
from tokenizers import models
from typer.testing import CliRunner

from herdbook import pedigree
from herdbook.cli import app
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.interop.doors import load_decoder, read_shape
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
    settings: dict[str, object] = dict.fromkeys(("to", "kind", "license_id", "tokenizer", "context"))
    settings |= {"commercial": False, "allow_pickle": True, "force": False, "terminal": Terminal(quiet=True)}
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


def test_a_licence_can_be_stated_only_where_the_source_states_none(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="states its licence: MIT"):
        go(source, tmp_path / "out", license_id="Apache-2.0")
    card = source / "README.md"
    card.write_text(card.read_text().replace("license: mit\n", ""))
    go(source, tmp_path / "out", license_id="Apache-2.0")
    # What it was made of binds it all the same, and goes on doing so.
    assert set(license_of(tmp_path / "out").id.split(" AND ")) == {"LicenseRef-llama-1", "Apache-2.0"}
    go(tmp_path / "out", tmp_path / "m.gguf")
    assert not license_of(tmp_path / "m.gguf").commercial
    go(tmp_path / "m.gguf", tmp_path / "again")
    assert not license_of(tmp_path / "again").commercial


def test_an_ancestor_nobody_knows_is_told_and_not_for_commerce(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = source / "README.md"
    card.write_text(card.read_text().replace("huggyllama/llama-7b", "somebody/unheard-of"))
    go(source, tmp_path / "out", terminal=Terminal())
    assert "made of somebody/unheard-of, whose licence is not known" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="somebody/unheard-of"):
        go(source, tmp_path / "other", commercial=True)


def test_packed_weights_stay_packed(source: Path, tmp_path: Path) -> None:
    go(source, tmp_path / "a.gguf", kind="Q8_0")
    go(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert open_gguf(tmp_path / "b.gguf").tensors["blk.0.ffn_up.weight"].type == "Q8_0"


def test_a_second_conversion_replaces_the_first_whole(source: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    tokenizer(words)
    go(source, tmp_path / "out", tokenizer=words / "tokenizer.json")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    go(source, tmp_path / "out", to="meta")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["consolidated.00.pth", "params.json", "pedigree.json"]
    before = pedigree.read(tmp_path / "out")
    with pytest.raises(UserError, match="Q8_0 is a type of GGUF files only"):
        go(source, tmp_path / "out", kind="Q8_0")
    assert pedigree.read(tmp_path / "out") == before


def test_metas_layout_keeps_context_and_tokenizer_with_us(source: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    tokenizer(words)
    go(source, tmp_path / "meta", to="meta", tokenizer=words)
    go(tmp_path / "meta", tmp_path / "back")
    assert read_shape(tmp_path / "back").context == 32
    assert (tmp_path / "back" / "tokenizer.json").is_file()


def test_what_meta_does_not_tell_is_asked_for(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(source, tmp_path / "meta", to="meta")
    (tmp_path / "meta" / "pedigree.json").unlink()
    go(tmp_path / "meta", tmp_path / "guessed", license_id="MIT", terminal=Terminal())
    assert "4,096 tokens are assumed: say it with --context" in " ".join(capsys.readouterr().err.split())
    go(tmp_path / "meta", tmp_path / "told", license_id="MIT", context=32)
    assert read_shape(tmp_path / "told").context == 32


def test_files_are_replaced_only_when_told_to(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.bin").write_text("notes")
    with pytest.raises(UserError, match="--force"):
        go(source, tmp_path / "thesis.bin")
    assert (tmp_path / "thesis.bin").read_text() == "notes"
    go(source, tmp_path / "thesis.bin", force=True)
    assert (tmp_path / "thesis.bin").stat().st_size > 1000


def test_norms_keep_their_precision_and_no_weight_overflows(tmp_path: Path) -> None:
    model = Decoder(ModelConfig.model_validate(SHAPE))
    with torch.no_grad():
        model.norm.weight.fill_(1.0001)  # rounds to 1 in 16 bits
    save_folder(model, tmp_path / "m", tokenizer=None, license_id="MIT")
    go(tmp_path / "m", tmp_path / "m.gguf", kind="F16")
    assert float(open_gguf(tmp_path / "m.gguf").tensor("output_norm.weight")[0]) == pytest.approx(1.0001, rel=1e-6)
    with torch.no_grad():
        model.norm.weight.fill_(1e5)
    save_folder(model, tmp_path / "m", tokenizer=None, license_id="MIT")
    with pytest.raises(UserError, match="holds numbers that float16 cannot"):
        go(tmp_path / "m", tmp_path / "half", kind="F16")
    assert not (tmp_path / "half").exists()


def test_a_folder_made_anew_from_what_was_made_of_it(source: Path, tmp_path: Path) -> None:
    go(source, tmp_path / "one")
    go(tmp_path / "one", tmp_path / "two")
    go(tmp_path / "two", tmp_path / "one")
    node = pedigree.tree(tmp_path / "one")
    assert len(pedigree.describe(node)["inputs"][0]["inputs"]) == 1


def tokenizer(folder: Path) -> None:
    folder.mkdir()
    trained = Trained(models.BPE(vocab={"a": 0, "b": 1, "</s>": 2}, merges=[]))
    (folder / "tokenizer.json").write_text(trained.to_str())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


@pytest.mark.parametrize("out", ["llama", "llama/inside", "taken", "."])
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
