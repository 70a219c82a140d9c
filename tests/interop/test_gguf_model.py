"""Models in GGUF files: out and back, by every graph llama.cpp has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from herdbook.errors import UserError
from herdbook.interop.gguf.architectures import ARCHITECTURES, architecture_of
from herdbook.interop.gguf.container import TensorSource, open_gguf, write_gguf
from herdbook.interop.gguf.model import FILE_TYPES, load_gguf, read_gguf_config, save_gguf
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

from .shapes import GGUF_SHAPES, NOT_GGUF, ids, make_decoder


def rewritten(
    path: Path, *, metadata: dict[str, Any] | None = None, drop: str = "", without: str = "", extra: bool = False
) -> Path:
    """A copy of a GGUF file with other metadata, without a key or a tensor, or with one more."""
    file = open_gguf(path)
    sources = [
        TensorSource(row.name, row.shape, row.type, lambda row=row: file.tensor(row.name))
        for row in file.tensors.values()
        if row.name != without
    ]
    if extra:
        sources.append(TensorSource("blk.0.surplus.weight", (4,), "F32", lambda: torch.zeros(4)))
    out = path.with_name("other.gguf")
    written = {**file.metadata, **(metadata or {})}
    written.pop(drop, None)
    write_gguf(out, written, sources)
    return out


@pytest.mark.parametrize("name", GGUF_SHAPES)
def test_logits_survive_the_way_out_and_back(name: str, tmp_path: Path) -> None:
    model, tokens = make_decoder(GGUF_SHAPES[name]), ids(2, 40)
    save_gguf(model, tmp_path / "m.gguf", kind="F32")
    again = load_gguf(tmp_path / "m.gguf")
    torch.testing.assert_close(again(tokens), model(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", GGUF_SHAPES)
def test_the_shape_survives_too(name: str, tmp_path: Path) -> None:
    cfg = make_decoder(GGUF_SHAPES[name]).cfg
    save_gguf(Decoder(cfg), tmp_path / "m.gguf", kind="F16")
    # These are stored as what they come to: a stretched base, rows in the other order.
    read = read_gguf_config(open_gguf(tmp_path / "m.gguf"))
    assert read.rotary_theta == pytest.approx(cfg.rotary_theta, rel=1e-6)
    said_otherwise = {"rope_theta": 1.0, "rope_scaling": "none", "rope_factor": 1.0, "rope_interleaved": False}
    said_otherwise = said_otherwise if cfg.positions == "rope" and cfg.rope_scaling != "linear" else {}
    assert read.model_copy(update=said_otherwise) == cfg.model_copy(update=said_otherwise)


@pytest.mark.parametrize("name", NOT_GGUF)
def test_what_llama_cpp_has_no_code_for_is_refused_by_name(name: str, tmp_path: Path) -> None:
    shape, reason = NOT_GGUF[name]
    with pytest.raises(UserError, match=r"llama\.cpp has no code for this model") as caught:
        save_gguf(make_decoder(shape), tmp_path / "m.gguf")
    assert reason in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_every_field_that_changes_logits_is_looked_at() -> None:
    """A field that a graph neither fixes, stores, nor shows by its tensors would be lost in silence."""
    shown_by_tensors = {"vocab_size", "tied", "attn_bias", "ff_bias", "norm_bias", "bias", "embed_dim", "head_dim", "d_ff"}
    no_effect = {"init_std", "dropout", "vocab_multiple"}
    rope = {"rope_theta", "rope_scaling", "rope_factor", "rope_fraction"}
    for row in ARCHITECTURES:
        looked_at = {*row.fixed, *row.keys.values(), *shown_by_tensors, *no_effect}
        looked_at |= rope if row.fixed["positions"] == ("rope",) else {*rope, "rope_interleaved"}
        looked_at |= set() if row.fixed["positions"] == ("alibi",) else {"alibi_max"}
        assert set(ModelConfig.model_fields) <= looked_at, row.name


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_1", "Q4_0"])
def test_fewer_bits_lose_little(kind: str, tmp_path: Path) -> None:
    model, tokens = make_decoder(GGUF_SHAPES["llama"]), ids(2, 40)
    save_gguf(model, tmp_path / "m.gguf", kind=kind)
    again = load_gguf(tmp_path / "m.gguf")
    with torch.no_grad():
        wanted = model(tokens)
        error = float((again(tokens) - wanted).norm() / wanted.norm())
    assert 0 < error < {"F16": 1e-3, "BF16": 1e-2, "Q8_0": 4e-2, "Q5_1": 0.2, "Q4_1": 0.4, "Q4_0": 0.45}[kind]
    file = open_gguf(tmp_path / "m.gguf")
    assert file.tensors["blk.0.attn_norm.weight"].type == "F32"
    assert file.tensors["blk.0.ffn_up.weight"].type == kind
    assert file.tensors["token_embd.weight"].type == ("Q8_0" if kind[:2] in ("Q4", "Q5") else kind)
    assert file.metadata["general.file_type"] == FILE_TYPES[kind]


def test_the_type_asked_for_is_the_type_of_the_weights(tmp_path: Path) -> None:
    save_gguf(make_decoder(GGUF_SHAPES["falcon-7b"]), tmp_path / "m.gguf", kind="BF16")
    model = load_gguf(tmp_path / "m.gguf", dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.compute_dtype == torch.bfloat16


def test_licence_and_pedigree_travel_in_the_file(tmp_path: Path) -> None:
    origin = {"source": "x", "sha256": "0" * 64}
    save_gguf(make_decoder(GGUF_SHAPES["llama"]), tmp_path / "m.gguf", license_id="Apache-2.0", name="tiny", pedigree=origin)
    metadata = open_gguf(tmp_path / "m.gguf").metadata
    assert (metadata["general.license"], metadata["general.name"]) == ("Apache-2.0", "tiny")
    assert json.loads(metadata["herdbook.pedigree"]) == origin


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"without": "blk.1.attn_k.weight"}, "missing tensors: blk.1.attn_k.weight"),
        ({"extra": True}, "unknown tensors: blk.0.surplus.weight"),
        ({"metadata": {"llama.feed_forward_length": 64}}, "do not fit: .*ffn"),
        ({"metadata": {"llama.block_count": 10**9}}, "1,000,000,000 layers"),
        ({"metadata": {"llama.attention.head_count": 3}}, "not a multiple"),
        ({"metadata": {"llama.attention.head_count": "four"}}, "n_heads"),
        ({"metadata": {"general.architecture": "mamba"}}, "'mamba' is not one we read"),
        ({"metadata": {"llama.rope.dimension_count": 16}}, "a part of the head"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "type 'yarn'"),
        ({"metadata": {"llama.feed_forward_length": 2**62}}, "parameters in all"),
        ({"metadata": {"llama.logit_scale": 0.5}}, "do not know: llama.logit_scale = 0.5"),
        ({"metadata": {"llama.expert_count": 8}}, "do not know: llama.expert_count"),
        ({"metadata": {"llama.attention.sliding_window": 6.5}}, "sliding_window is 6.5"),
        ({"metadata": {"llama.attention.sliding_window_pattern": 2}}, "do not know: llama.attention.sliding_window_pattern"),
        ({"drop": "llama.context_length"}, "the header lacks llama.context_length"),
        ({"drop": "llama.attention.layer_norm_rms_epsilon"}, "the header lacks llama.attention"),
        ({"without": "token_embd.weight"}, "holds no model"),
    ],
)
def test_what_does_not_belong_together_is_one_error(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_gguf(make_decoder(GGUF_SHAPES["llama"]), tmp_path / "m.gguf", kind="F32")
    with pytest.raises(UserError, match=message):
        load_gguf(rewritten(tmp_path / "m.gguf", **changes))


def test_an_unknown_type_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'Q4_K' are not written"):
        save_gguf(make_decoder(GGUF_SHAPES["llama"]), tmp_path / "m.gguf", kind="Q4_K")
    assert not list(tmp_path.iterdir())


def test_old_files_say_linear_scaling_in_another_way(tmp_path: Path) -> None:
    save_gguf(make_decoder(GGUF_SHAPES["llama"]), tmp_path / "m.gguf", kind="F32")
    old = rewritten(tmp_path / "m.gguf", metadata={"llama.rope.scale_linear": 4.0})
    assert load_gguf(old).cfg.rope_factor == 4.0


@pytest.mark.parametrize(("said", "window"), [(30, 30), (0, None), (64, None), (4096, None)])
def test_a_window_that_a_file_tells_of_is_read(said: int, window: int | None, tmp_path: Path) -> None:
    save_gguf(make_decoder(GGUF_SHAPES["llama"]), tmp_path / "m.gguf", kind="F32")
    file = rewritten(tmp_path / "m.gguf", metadata={"llama.attention.sliding_window": said})
    model = load_gguf(file)
    assert model.cfg.window == window
    want = make_decoder(GGUF_SHAPES["llama"], window=window)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids(1, 64)), want(ids(1, 64)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["layernorm", "layernorm_low_precision"])
@pytest.mark.parametrize("name", ["gpt2", "mpt"])
def test_the_kind_of_layernorm_survives(name: str, norm: str, tmp_path: Path) -> None:
    save_gguf(make_decoder(GGUF_SHAPES[name], norm=norm), tmp_path / "m.gguf", kind="F32")
    assert load_gguf(tmp_path / "m.gguf").cfg.norm == norm


def test_a_part_of_the_head_that_is_no_round_share(tmp_path: Path) -> None:
    """30 of 52: as a float times 52 that is a hair less than 30."""
    shape = {**GGUF_SHAPES["neox"], "d_model": 104, "n_heads": 2, "rope_fraction": 30 / 52}
    save_gguf(make_decoder(shape), tmp_path / "m.gguf", kind="F32")
    assert load_gguf(tmp_path / "m.gguf").cfg.rotary_width == 30


def test_a_shape_of_each_graph() -> None:
    found = [architecture_of(make_decoder(shape).cfg) for shape in GGUF_SHAPES.values()]
    assert {id(row) for row in found} == {id(row) for row in ARCHITECTURES}
