"""A decoder quantised whole: which layers, by which inputs, in how much memory; and what measuring says."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Block, Decoder
from herdbook.model.quantized import Form, contents, matrices, stored_bytes
from herdbook.plan.serving import serving_memory
from herdbook.quantize.config import QuantizeConfig
from herdbook.quantize.measure import in_bf16, measured, row_losses, table
from herdbook.quantize.run import ROWS_AT_ONCE, quantize_model, walk

NORM = {"norm": "layernorm", "bias": True}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_heads": 2, "tied": False},
    "opt-350m": {"positions": "learned", "norm_place": "post", "activation": "relu", "embed_dim": 32, **NORM},
    "falcon": {"n_kv_heads": 1, "block": "parallel_one_norm", "activation": "gelu", **NORM},
    "mpt": {"positions": "alibi", "norm": "layernorm", "activation": "gelu", "clip_qkv": 3.0},
}


def make(shape: dict[str, Any], **changes: Any) -> Decoder:
    base = {"vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4, "context": 32, "init_std": 0.15}
    model = Decoder(ModelConfig.model_validate({**base, **shape, **changes}))
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def ids(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(96, (rows, 24), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", ["rtn", "awq", "gptq"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_linear_layer_and_the_tables_and_nothing_else(name: str, method: Any, terminal: Terminal) -> None:
    model = make(SHAPES[name])
    dense = set(contents(model))
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantize_model(model, QuantizeConfig(method=method), terminal, None if method == "rtn" else ids(10))
    assert set(matrices(model)) == linears | {"embed"}
    assert set(contents(model)) == dense
    tables = {"embed", "unembed"}
    assert {row.form for name, row in matrices(model).items() if name not in tables} == {Form(4, 32, True)}
    assert {row.form for name, row in matrices(model).items() if name in tables} == {Form(8, 32, False)}
    assert model(ids(2)).isfinite().all()


@pytest.mark.parametrize("name", SHAPES)
def test_fewer_bits_are_farther_and_methods_help(name: str, terminal: Terminal) -> None:
    model, sample, tokens = make(SHAPES[name]), ids(40), ids(4, seed=1)

    def error(**settings: Any) -> float:
        rows = sample if settings.get("method", "rtn") != "rtn" else None
        found = quantize_model(copy.deepcopy(model), QuantizeConfig(head_bits=16, **settings), terminal, rows)
        with torch.no_grad():
            wanted = model(tokens)
            return float((found(tokens) - wanted).norm() / wanted.norm())

    plain = error()
    assert error(bits=8) < 0.15 * plain
    assert error(affine=False) > plain
    assert error(method="gptq") < 0.95 * plain
    assert error(method="awq") < 1.15 * plain


def test_rounding_weighs_errors_by_inputs_where_it_knows_them(terminal: Terminal) -> None:
    model, rows = make(SHAPES["llama"]), ids(20)
    found = [quantize_model(copy.deepcopy(model), QuantizeConfig(), terminal, sample) for sample in (None, rows)]
    blind, weighed = (matrices(row)["blocks.0.ff.down"].dense() for row in found)
    sizes: list[Any] = []
    with torch.no_grad():
        walk(model, rows, lambda _, inputs: sizes.append(inputs()), lambda: None)
        gram = next(row.gram_KK for row in sizes[0] if "ff.down" in row.layers)
        weight = model.get_parameter("blocks.0.ff.down.weight")
        costs = [float(((weight - dense).square() * gram.diagonal()).sum()) for dense in (blind, weighed)]
    assert costs[1] < 0.99 * costs[0]


def test_layers_that_read_one_tensor_are_seen_together() -> None:
    """The mean of x·xᵀ of each input, over all batches; found by what they read, not by their names."""
    seen: list[list[set[str]]] = []
    for shape in (SHAPES["llama"], SHAPES["falcon"]):
        model, rows = make(shape), ids(ROWS_AT_ONCE + 3)
        block = model.blocks[0]
        assert isinstance(block, Block)
        with torch.no_grad():
            x = block.attn_norm(model.enter(rows)[0]).flatten(0, 1)
            found: list[Any] = []
            walk(model, rows, lambda _, inputs, found=found: found.append(inputs()), lambda: None)
        torch.testing.assert_close(found[0][0].gram_KK, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
        assert {row.tokens for row in found[0]} == {rows.numel()}
        seen.append([set(row.layers) for row in found[0]])
    qkv = {"attn.q", "attn.k", "attn.v"}
    assert seen[0] == [qkv, {"attn.o"}, {"ff.up", "ff.gate"}, {"ff.down"}]
    assert seen[1] == [qkv | {"ff.up"}, {"attn.o"}, {"ff.down"}]


def test_later_blocks_see_what_earlier_ones_compute_once_quantised(terminal: Terminal) -> None:
    model, rows = make(SHAPES["llama"]), ids(3)
    with torch.no_grad():
        before: list[Any] = []
        walk(model, rows, lambda _, inputs: before.append(inputs()), lambda: None)
        halved: list[Any] = []

        def change(block: Block, inputs: Any) -> None:
            halved.append(inputs())
            block.ff.down.weight.zero_()
            block.attn.o.weight.zero_()

        walk(model, rows, change, lambda: None)
    torch.testing.assert_close(halved[0][0].gram_KK, before[0][0].gram_KK)
    torch.testing.assert_close(halved[1][0].gram_KK, before[0][0].gram_KK)  # the first block adds nothing any more
    assert not torch.allclose(before[1][0].gram_KK, before[0][0].gram_KK)


def test_what_cannot_be_done_is_said(terminal: Terminal) -> None:
    model = make(SHAPES["llama"])
    with pytest.raises(UserError, match="the method gptq looks at text"):
        quantize_model(model, QuantizeConfig(method="gptq"), terminal)
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.q has rows of 64 weights, which groups of 128 do not divide"):
        quantize_model(model, QuantizeConfig(group=128), terminal)
    with pytest.raises(UserError, match=r"head-bits 16"):
        quantize_model(make(SHAPES["opt-350m"], embed_dim=48), QuantizeConfig(group=16), terminal)
    quantize_model(model, QuantizeConfig(), terminal)
    with pytest.raises(UserError, match="so one cannot quantise it"):
        quantize_model(model, QuantizeConfig(), terminal)
    for wrong in ({"bits": 3}, {"group": 12}, {"method": "magic"}, {"damping": 0}, {"more": 1}):
        with pytest.raises(ValidationError):
            QuantizeConfig.model_validate(wrong)


@pytest.mark.parametrize(("precision", "settings"), [("int8", {"bits": 8}), ("int4", {"bits": 4, "affine": False})])
def test_the_plan_counts_the_same_bytes(precision: str, settings: dict[str, Any], terminal: Terminal) -> None:
    model = make(SHAPES["llama"], d_model=256, n_layers=4, vocab_size=1024)
    planned = serving_memory(model.cfg, precision).weights
    quantize_model(model, QuantizeConfig(**settings), terminal)
    assert stored_bytes(model) == pytest.approx(planned, rel=0.005)


def test_losses_are_those_of_each_row() -> None:
    model, rows = make(SHAPES["llama"]), ids(6)
    logits = model(rows[:, :-1])
    wanted = torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none").mean(1)
    torch.testing.assert_close(row_losses(model, rows), wanted.double(), rtol=1e-5, atol=1e-6)


def test_the_table_is_beside_the_model_in_bf16(terminal: Terminal) -> None:
    model, rows = make(SHAPES["llama"]), ids(8)
    forms = [QuantizeConfig(bits=8), QuantizeConfig(method="gptq")]
    plain, eight, four = table(lambda: copy.deepcopy(model), forms, rows, ids(8, seed=1), terminal)
    assert plain.perplexity == pytest.approx(math.exp(float(row_losses(in_bf16(model), rows).mean())))
    assert plain.cost is None
    assert (eight.form, four.form) == ("int8 symmetric, groups of 32, rtn", "int4 affine, groups of 32, gptq")
    assert 4.9 < four.bits < 8.5 < eight.bits < 8.7 < 16 < plain.bits
    assert eight.cost == pytest.approx(eight.perplexity / plain.perplexity - 1)
    assert eight.cost_stderr is not None
    assert eight.cost_stderr < plain.stderr / plain.perplexity  # rows are the same ones


def test_the_standard_error_is_that_of_the_differences() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = measured(make(SHAPES["llama"]), "x", losses + 0.1, losses)
    assert found.cost == pytest.approx(math.exp(0.1) - 1)
    assert found.cost_stderr == pytest.approx(0, abs=1e-12)
    assert found.stderr == pytest.approx(math.exp(2.1) / math.sqrt(3))
