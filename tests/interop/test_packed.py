"""Folders of quantised models: out and back, strict on what they say, opaque to transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from herdbook.errors import UserError
from herdbook.interop.doors import load_decoder, save_decoder
from herdbook.interop.packed import FILE, SECTION, from_bytes, in_bytes
from herdbook.model.decoder import Decoder
from herdbook.model.quantized import Form, contents, matrices, put
from herdbook.quantize.grid import quantized

from .shapes import GGUF_SHAPES, NOT_GGUF, ids, make_decoder

FORMS = st.builds(Form, st.sampled_from([8, 4]), st.sampled_from([2, 16, 32]), st.booleans())


def few_bits(shape: dict[str, Any]) -> Decoder:
    """A decoder with some matrices of each kind."""
    model = make_decoder(shape)
    forms = (Form(4, 32, True), Form(8, 32, False), Form(4, 16, False), Form(8, 64, True))
    layers = [
        name.removesuffix(".weight") for name, held in contents(model).items() if held.dim() == 2 and "position" not in name
    ]
    for index, name in enumerate(layers[:-1]):
        put(model, name, quantized(model.get_parameter(f"{name}.weight"), forms[index % 4]))
    return model


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 4), FORMS, st.integers(0, 99))
def test_numbers_survive_packing(rows: int, groups: int, form: Form, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = quantized(torch.randn(rows, groups * form.group, generator=generator), form)
    stored = in_bytes(matrix)
    assert stored.numel() * stored.element_size() == matrix.numbers.numel() * form.bits // 8
    assert torch.equal(from_bytes(stored, form), matrix.numbers)


def test_where_each_number_lies() -> None:
    matrix = quantized(torch.tensor([[0.0, 1, 2, 15, 3, 0, 0, 0]]), Form(4, 8, True), search=False)
    assert in_bytes(matrix).tolist() == [[0x10, 0xF2, 0x03, 0x00]]


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "falcon-40b"])
def test_out_and_back(name: str, tmp_path: Path) -> None:
    model, tokens = few_bits(GGUF_SHAPES[name]), ids(2, 20)
    save_decoder(model, tmp_path, license_id="MIT")
    kept, written_out = load_decoder(tmp_path, packed=True), load_decoder(tmp_path)
    assert torch.equal(kept(tokens), model(tokens))
    assert torch.equal(written_out(tokens), model(tokens))
    assert {name: row.form for name, row in matrices(kept).items()} == {n: row.form for n, row in matrices(model).items()}
    assert not matrices(written_out)
    assert "library_name: herdbook" in (tmp_path / "README.md").read_text()


def test_a_family_without_a_class_in_transformers(tmp_path: Path) -> None:
    model, tokens = few_bits(NOT_GGUF["palm"][0]), ids(1, 10)
    save_decoder(model, tmp_path)
    assert torch.equal(load_decoder(tmp_path, packed=True)(tokens), model(tokens))


def test_one_kind_of_weights_replaces_the_other(tmp_path: Path) -> None:
    model = make_decoder(GGUF_SHAPES["llama"])
    save_decoder(model, tmp_path)
    save_decoder(few_bits(GGUF_SHAPES["llama"]), tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [FILE]
    save_decoder(model, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert torch.equal(load_decoder(tmp_path)(ids(1, 9)), model(ids(1, 9)))


@pytest.mark.parametrize("out", ["meta", "m.bin"])
def test_layouts_without_a_form_for_it_refuse(out: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quantised .* so one cannot write in the layout"):
        save_decoder(few_bits(GGUF_SHAPES["llama"]), tmp_path / out, "meta" if out == "meta" else None)


def test_transformers_refuses_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_decoder(few_bits(GGUF_SHAPES["llama"]), tmp_path)
    with pytest.raises(ValueError, match="herdbook"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    small = transformers.LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.LlamaForCausalLM.from_pretrained(tmp_path, config=small)


def _section(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def mend(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config[SECTION])
        (folder / "config.json").write_text(json.dumps(config))

    return mend


def _tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def mend(folder: Path) -> None:
        tensors = load_file(folder / FILE)
        change(tensors)
        save_file(tensors, folder / FILE)

    return mend


Q = "blocks.0.attn.q"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_section(lambda s: s.update(format=2)), "not of the form that this version reads"),
        (_section(lambda s: s.update(more=1)), "not of the form"),
        (_section(lambda s: s.update(matrices=[])), "not of the form"),
        (_section(lambda s: s["matrices"].update({"blocks.0.attn_norm": s["matrices"][Q]})), "attn_norm', which is no"),
        (_section(lambda s: s["matrices"].update({"blocks.9.attn.q": s["matrices"][Q]})), "'blocks.9.attn.q', which is no"),
        (_section(lambda s: s["matrices"][Q].update(bits=3)), "blocks.0.attn.q cannot be"),
        (_section(lambda s: s["matrices"][Q].update(bits=8.0)), "cannot be"),
        (_section(lambda s: s["matrices"][Q].update(bits=[4])), "cannot be"),
        (_section(lambda s: s["matrices"][Q].update(group=0)), "cannot be"),
        (_section(lambda s: s["matrices"][Q].update(group=True)), "cannot be"),
        (_section(lambda s: s["matrices"][Q].update(group=10**30)), "cannot be"),
        (_section(lambda s: s["matrices"][Q].update(affine=1)), "cannot be"),
        (_section(lambda s: s["matrices"][Q].update(note="x")), "cannot be"),
        (_section(lambda s: s["matrices"][Q].update(group=16)), r"tensors that do not fit: blocks\.0\.attn\.q\.\w+ \("),
        (_section(lambda s: s["matrices"].pop(Q)), r"missing tensors: blocks\.0\.attn\.q\.weight"),
        (_tensors(lambda t: t.pop(f"{Q}.scale")), r"missing tensors: blocks\.0\.attn\.q\.scale"),
        (_tensors(lambda t: t.update(extra=torch.zeros(1))), "unknown tensors: extra"),
        (_tensors(lambda t: t.update({f"{Q}.numbers": t[f"{Q}.numbers"].float()})), r"attn\.q\.numbers \(F32"),
        (_tensors(lambda t: t.update({f"{Q}.scale": t[f"{Q}.scale"].double()})), r"attn\.q\.scale \(F64"),
        (_tensors(lambda t: t[f"{Q}.scale"].fill_(float("nan"))), "scales that are no numbers"),
        (_tensors(lambda t: t.update({"norm.weight": t["norm.weight"].to(torch.int8)})), r"norm\.weight \(I8"),
        (lambda folder: (folder / FILE).unlink(), "the weights are missing"),
        (lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-9]), "not a whole safetensors file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [True, False])
def test_what_does_not_belong_together_is_one_error(
    damage: Callable[[Path], None], message: str, packed: bool, tmp_path: Path
) -> None:
    save_decoder(few_bits(GGUF_SHAPES["llama"]), tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_decoder(tmp_path, packed=packed)


def test_a_shape_too_large_for_the_file_is_refused_before_it_is_built(tmp_path: Path) -> None:
    save_decoder(few_bits(GGUF_SHAPES["llama"]), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["herdbook"]["d_ff"] = 10**9
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="parameters in all"):
        load_decoder(tmp_path)
