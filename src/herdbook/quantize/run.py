"""A model quantised whole, block by block.

Which layers are quantised is a matter of what they are: every `Linear` of the decoder, the embedding, and a head of its own.
Norms, biases and position tables, small and sensitive, stay. Methods that look at text hold the inputs of one block at a time:
those of the next are what this one computes once it is quantised, so that later blocks can make up for earlier ones.

Shapes: B rows of tokens, T time, D model width, K inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.model.decoder import Block, Decoder, Norm
from herdbook.model.quantized import Form, put, require_dense
from herdbook.quantize.awq import fold, folds
from herdbook.quantize.config import QuantizeConfig
from herdbook.quantize.gptq import gptq
from herdbook.quantize.grid import quantized

HEAD_GROUP = 32
ROWS_AT_ONCE = 8


@dataclass
class _Inputs:
    """What the layers that read one tensor have read: the mean of x·xᵀ, and which layers they are."""

    gram_KK: Tensor
    tokens: int = 0
    layers: list[str] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        """Take more inputs (…, K) into the mean."""
        x_TK = x.flatten(0, -2).float()
        before, self.tokens = self.tokens, self.tokens + len(x_TK)
        self.gram_KK.addmm_(x_TK.T, x_TK, beta=before / self.tokens, alpha=1 / self.tokens)


@torch.no_grad()
def quantize_model(model: Decoder, cfg: QuantizeConfig, terminal: Terminal, rows_BT: Tensor | None = None) -> Decoder:
    """Quantise a decoder in place, and give it back, in evaluation mode.

    Args:
        model: dense; its weights are used up.
        rows_BT: token ids of the sample of text, for `awq` and `gptq`; with `rtn` errors are weighed by its inputs if given.

    Raises UserError when the model is quantised already, groups do not divide its rows, or the method needs text.
    """
    require_dense(model, "quantise")
    require_divisible(model, cfg)
    if rows_BT is None and cfg.method != "rtn":
        raise UserError(f"the method {cfg.method} looks at text, and there is none", todo="name some with --calibration")
    form = Form(cfg.bits, cfg.group, cfg.has_least)
    model.eval()
    with terminal.progress(f"quantise ({cfg.in_words()})", len(model.blocks) + 1) as progress:
        if rows_BT is None:
            for block in model.blocks:
                for name, layer in _linears(block):
                    put(block, name, quantized(layer.weight, form))
                progress.advance()
        else:
            walk(model, rows_BT.to(next(model.parameters()).device), partial(_block, form=form, cfg=cfg), progress.advance)
        _around(model, form, cfg.head_bits)
        progress.advance()
    return model


def require_divisible(model: Decoder, cfg: QuantizeConfig) -> None:
    """Raise UserError when groups do not divide the rows of a layer; the head's are of 32."""
    for name, layer in model.named_modules():
        table = layer in (model.embed, model.unembed)
        if not (table or isinstance(layer, nn.Linear)) or (table and cfg.head_bits == 16):
            continue
        columns, group = layer.weight.shape[1], HEAD_GROUP if table else cfg.group
        if columns % group:
            fitting = [size for size in (16, 32, 64, 128, 256) if columns % size == 0]
            todo = "keep embedding and head as they are: --head-bits 16" if table else f"for this layer {fitting} would do"
            raise UserError(f"{name} has rows of {columns} weights, which groups of {group} do not divide", todo=todo)


def walk(
    model: Decoder, rows_BT: Tensor, change: Callable[[Block, Callable[[], list[_Inputs]]], None], done: Callable[[], Any]
) -> None:
    """Lead a sample of text through the blocks, each changed before what it computes goes on.

    Args:
        change: gets a block, and what runs the sample through it and says what its layers read.
        done: called after each block.
    """
    parts = torch.split(rows_BT, ROWS_AT_ONCE)
    entered = [model.enter(part) for part in parts]
    streams = [x_BTD for x_BTD, _, _ in entered]

    def run(block: Block) -> Iterator[Tensor]:
        for x_BTD, (_, rotary, sight) in zip(streams, entered, strict=True):
            yield block(x_BTD, rotary, sight)

    for block in model.blocks:
        assert isinstance(block, Block)
        change(block, partial(_gather, block, run))
        streams = list(run(block))
        done()


def _gather(block: Block, run: Callable[[Block], Iterator[Tensor]]) -> list[_Inputs]:
    """What the linear layers of a block read, those of one and the same tensor together."""
    found: list[_Inputs] = []
    seen: dict[int, tuple[Tensor, _Inputs]] = {}  # of one pass; it keeps the tensors, so that no other takes their identity

    def note(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        if id(x) not in seen:
            row = next((row for row in found if name in row.layers), None)
            if row is None:
                row = _Inputs(torch.zeros(x.shape[-1], x.shape[-1], device=x.device))
                found.append(row)
            row.add(x)
            seen[id(x)] = x, row
        if name not in seen[id(x)][1].layers:
            seen[id(x)][1].layers.append(name)

    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in _linears(block)]
    try:
        for _ in run(block):
            seen.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _linears(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, layer) for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]


def _block(block: Block, inputs: Callable[[], list[_Inputs]], *, form: Form, cfg: QuantizeConfig) -> None:
    """Quantise the linear layers of a block by what they read."""
    found = inputs()
    layers = dict(_linears(block))
    if cfg.method == "awq":
        for norm in (module for module in block.modules() if isinstance(module, Norm)):
            norm.float()  # what is folded into it is to lose nothing
        for place in folds(block):
            names = {name for name, layer in layers.items() if layer in place.readers}
            row = next(row for row in found if names <= set(row.layers))
            scale_K = fold(place, row.gram_KK, form)
            row.gram_KK.div_(scale_K).div_(scale_K[:, None])
    for row in found:
        weight_NK = torch.cat([layers[name].weight for name in row.layers])
        if cfg.method == "gptq":
            whole = gptq(weight_NK, row.gram_KK, form, damping=cfg.damping, act_order=cfg.act_order)
        else:
            whole = quantized(weight_NK, form, row.gram_KK.diagonal())
        for name, part in zip(row.layers, whole.split([layers[name].out_features for name in row.layers]), strict=True):
            put(block, name, part)


def _around(model: Decoder, form: Form, head_bits: int) -> None:
    """Quantise what stands around the blocks: projections as the layers in them, embedding and head by `head_bits`."""
    tables = [table for table in (model.embed, model.unembed) if table is not None]
    outside = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer not in tables]
    for name, layer in outside:
        put(model, name, quantized(layer.weight, form))
    if head_bits == 16:
        return
    few = Form(8, HEAD_GROUP, affine=False) if head_bits == 8 else Form(4, HEAD_GROUP, affine=form.affine)
    for name, module in list(model.named_modules()):
        if module in tables:
            put(model, name, quantized(module.weight, few))
