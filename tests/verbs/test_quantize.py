"""`herdbook quantize`: a folder or a GGUF file with licence and pedigree, or a table; and what must not be done with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers
from typer.testing import CliRunner

import herdbook as hb
from herdbook import pedigree
from herdbook.cli import app
from herdbook.errors import UserError
from herdbook.interop.doors import load_decoder
from herdbook.interop.gguf.container import open_gguf
from herdbook.interop.hf import save_folder
from herdbook.interop.licenses import license_of
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.model.quantized import Form, matrices
from herdbook.tokenizer import Tokenizer

SHAPE = {"vocab_size": 320, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "context": 64, "init_std": 0.1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose card says that it was made from LLaMA, and a text."""
    folder = tmp_path_factory.mktemp("quantize")
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    trained = Trained(models.BPE(vocab=letters, merges=[]))
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trained.add_special_tokens(["<|end|>"])
    words = Tokenizer(trained.to_str(), {"eos_token": "<|end|>"})
    model = Decoder(ModelConfig.model_validate(SHAPE))
    model.init_weights(torch.Generator().manual_seed(0))
    save_folder(model, folder / "model", tokenizer=words, license_id="MIT", bases=["huggyllama/llama-7b"])
    (folder / "text.txt").write_text("It is a truth universally acknowledged, that a text is read.\n" * 40)
    return folder


def run(*words: object) -> tuple[int, str]:
    """The exit code, and what came out or the error."""
    found = CliRunner().invoke(app, ["quantize", *map(str, words)])
    if isinstance(found.exception, UserError):
        return 2, str(found.exception)
    assert found.exception is None, found.exception
    return found.exit_code, found.stdout


@pytest.mark.parametrize("method", ["rtn", "awq", "gptq"])
def test_a_folder_with_licence_and_pedigree(method: str, place: Path, tmp_path: Path) -> None:
    text = [] if method == "rtn" else ["--calibration", place / "text.txt", "--sample", "512"]
    code, out = run(place / "model", "--method", method, "--out", tmp_path / "q", *text, "--json")
    assert code == 0
    assert json.loads(out)["license"] == "LicenseRef-llama-1 AND MIT"
    manifest = pedigree.read(tmp_path / "q")
    assert manifest["station"] == "quantize"
    assert (manifest["config"]["bits"], manifest["config"]["method"]) == (4, method)
    assert [row["role"] for row in manifest["inputs"]] == (["model"] if method == "rtn" else ["model", "text"])
    assert manifest["counts"].get("calibration_tokens") == (None if method == "rtn" else 512)
    assert license_of(tmp_path / "q").id == "LicenseRef-llama-1 AND MIT"
    lm, dense = hb.load(tmp_path / "q", packed=True), hb.load(place / "model")
    assert matrices(lm.model)["blocks.1.ff.down"].form == Form(4, 32, True)
    wanted = dense.logits([[1, 2, 3, 4]])
    assert float((lm.logits([[1, 2, 3, 4]]) - wanted).norm() / wanted.norm()) < 0.3
    assert lm.generate("It is", max_tokens=4, temperature=0) == hb.load(tmp_path / "q").generate(
        "It is", max_tokens=4, temperature=0
    )


def test_a_file_for_llama_cpp_has_the_very_numbers(place: Path, tmp_path: Path) -> None:
    for options, kind in ((["--bits", 8], "Q8_0"), (["--symmetric"], "Q4_0"), (["--group", 64], "Q4_1")):
        assert run(place / "model", *options, "--out", tmp_path / f"{kind}.gguf", "--quiet")[0] == 0
        file = open_gguf(tmp_path / f"{kind}.gguf")
        assert file.tensors["blk.0.attn_q.weight"].type == kind
        assert json.loads(file.metadata["herdbook.pedigree"])["bits"] == (8 if kind == "Q8_0" else 4)
        assert run(place / "model", *options, "--out", tmp_path / kind, "--quiet")[0] == 0
        tokens = torch.arange(20)[None]
        folder = load_decoder(tmp_path / kind)
        assert torch.equal(load_decoder(tmp_path / f"{kind}.gguf")(tokens), folder(tokens))
        # A folder becomes a file bit for bit, too.
        assert (
            CliRunner().invoke(app, ["convert", str(tmp_path / kind), str(tmp_path / "again.gguf"), "--force"]).exit_code == 0
        )
        again = open_gguf(tmp_path / "again.gguf")
        assert all(torch.equal(file.stored(name), again.stored(name)) for name in file.tensors)


def test_a_table_of_perplexity_against_bits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herdbook.verbs.quantize.FORMS", ({"bits": 8}, {"bits": 4, "method": "gptq"}))
    code, out = run(place / "model", "--table", "--text", place / "text.txt", "--tokens", "640", "--sample", "640", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["tokens"] == 640
    assert [row["form"] for row in found["rows"]] == [
        "bf16", "int8 symmetric, groups of 32, rtn", "int4 affine, groups of 32, gptq",
    ]  # fmt: skip
    assert abs(found["rows"][1]["cost"]) < 0.02
    assert found["rows"][2]["bytes"] < found["rows"][1]["bytes"] < found["rows"][0]["bytes"]


def test_what_is_wrong_is_said_before_any_work(place: Path, tmp_path: Path) -> None:
    model, out = place / "model", tmp_path / "q"
    for words, message in (
        ([], "it is not said where to write"),
        (["--out", out, "--table"], "--table writes nothing"),
        (["--out", out, "--bits", 5, "--group", 12], "--bits: Input should be 8 or 4; --group"),
        (["--out", out, "--method", "magic"], "--method: Input should be"),
        (["--out", out, "--group", 128], "rows of 64 weights, which groups of 128 do not divide"),
        (["--out", out, "--method", "awq"], "looks at text, and there is none"),
        (["--out", out, "--method", "awq", "--calibration", place / "none.txt"], "there is no such text"),
        (["--out", tmp_path / "m.bin"], "llama2.c's file has no form for this"),
        (["--out", model], "not written onto itself"),
        (["--out", out, "--commercial"], "no commercial use"),
        (["--table"], "no text to measure on"),
        (["--table", "--text", place / "text.txt", "--tokens", "many"], "'many' is not a number"),
    ):
        code, found = run(model, *words)
        assert code == 2, words
        assert message in found
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_elses_stays(place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert "`herdbook quantize` did not make it" in run(place / "model", "--out", tmp_path)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    for _ in range(2):  # its own it replaces
        assert run(place / "model", "--out", tmp_path / "q", "--quiet")[0] == 0
