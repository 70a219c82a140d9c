"""Tensor parallelism: each process computes some of the heads and some of the feed-forward width of every layer.

    stream ─▶ norm ─▶ collect ─▶ q k v, gate up: rows of the matrix (Shard 0) ─▶ its heads, its width ─▶ o, down: columns
    (B,T,D)                                                                        (Shard 1) ─▶ sum over processes ─▶ stream

With `sequence_parallel` the stream between the parts is cut along time (B, T/parts, D): norms, dropout and sums work on a
slice, "collect" is an all-gather and "sum" a reduce-scatter. Without it every process holds the whole stream, collecting costs
nothing and the sum is an all-reduce. Embedding and head are cut by vocabulary.

Weights are DTensors, whole or cut, all on one mesh, so that optimizer, FSDP2 and checkpoints need to know nothing of this;
attention itself works on plain tensors with the heads of this process. Key/value heads that are fewer than the
processes are copied: the few weights are held whole, each process keeps what its query heads look at.

Sources: Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053, section 3); sequence parallelism (Korthikanti et al. 2022,
arXiv:2205.05198, section 4.2); copied key/value heads (Shazeer 2019 has one for all; LLaMA-2 70B is served so).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)  # fmt: skip

from herdbook.model.decoder import Attention, Block, Decoder
from herdbook.train.parallel.config import ParallelConfig

TIME, HEADS = 1, 1  # dimensions of (B, T, D) and of (B, H, T, E)
_SHARDED: ContextVar[bool] = ContextVar("sharded", default=False)


class Laid(ParallelStyle):
    """A module whose first input and whose weights are laid out over the processes as given, and its output too.

    Inputs and outputs are plain tensors, of which each process has its slice, or all. (torch's own styles leave the sum of an
    embedding under way, and compiled code that takes it up loses its gradient: torch 2.13.)
    """

    def __init__(self, taken: Placement, given: Placement, *, weights: Placement | None = None) -> None:
        self.taken, self.given, self.weights = taken, given, weights or Replicate()

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
            return DTensor.from_local(inputs[0], mesh, [self.taken]), *inputs[1:]

        def leave(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
            return output.redistribute(mesh, [self.given]).to_local()

        return _distribute(module, device_mesh, self.weights, enter, leave)


class CopiedHeads(ParallelStyle):
    """Keys or values of fewer heads than there are processes: all are computed, and the one that is looked at is kept."""

    def __init__(self, head: int, width: int) -> None:
        self.head, self.width = head, width

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
            return inputs  # collected already, for all of attention

        def leave(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
            # What comes back is from the query heads of this process alone: a part of the gradient's sum.
            whole = output.to_local(grad_placements=[Partial()])
            return whole.narrow(-1, self.head * self.width, self.width)

        return _distribute(module, device_mesh, Replicate(), enter, leave)


class Placed(ParallelStyle):
    """Weights laid out as given; inputs and outputs are left to those who call it."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return _distribute(module, device_mesh, self.placement)


def _distribute(
    module: nn.Module, mesh: DeviceMesh, weights: Placement, enter: Callable[..., Any] | None = None,
    leave: Callable[..., Any] | None = None,
) -> nn.Module:  # fmt: skip
    return distribute_module(module, mesh, partial(_place, weights), enter, leave)


def _place(placement: Placement, _: str, module: nn.Module, mesh: DeviceMesh) -> None:
    """The parameters of one module as DTensors. Every process has the same values already, so nothing is sent."""
    for name, weight in module.named_parameters(recurse=False):
        if not isinstance(weight, DTensor):
            placed = distribute_tensor(weight.data, mesh, [placement], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(placed, requires_grad=weight.requires_grad))


def apply_tensor_parallel(model: Decoder, mesh: DeviceMesh, cfg: ParallelConfig) -> None:
    """Cut `model` over the processes of a one-dimensional mesh, in place. `cfg.require_fit` has been asked before."""
    stream: Placement = Shard(TIME) if cfg.sequence_parallel else Replicate()
    plan: dict[str, ParallelStyle] = {
        "embed": Laid(Replicate(), stream, weights=Shard(0)),
        "position_embed": Laid(Replicate(), stream),
        "project_in": Laid(stream, stream),
        "embed_norm": Laid(stream, stream),
        "norm": Laid(stream, stream),
        "project_out": Placed(Replicate()),
        "unembed": Placed(Shard(0)),
    }
    _apply(model, mesh, plan)
    for block in model.blocks:
        assert isinstance(block, Block)
        _cut_block(block, mesh, stream)
    parts, rank = mesh.size(), mesh.get_local_rank()
    here = model.cfg.n_heads // parts
    model.heads_here = slice(rank * here, (rank + 1) * here)
    _wrap_hidden(model, mesh, stream)
    _wrap_head(model, mesh)


def _apply(module: nn.Module, mesh: DeviceMesh, plan: dict[str, ParallelStyle]) -> None:
    """`parallelize_module` over those modules of the plan that this model has."""
    modules = dict(module.named_modules())
    parallelize_module(module, mesh, {name: plan[name] for name in plan if name in modules}, src_data_rank=None)


def _cut_block(block: Block, mesh: DeviceMesh, stream: Placement) -> None:
    """One layer: norms on the stream, all of the stream into attention and feed-forward, sums back onto the stream."""
    attn, parts = block.attn, mesh.size()
    plan: dict[str, ParallelStyle] = {
        "attn_norm": Laid(stream, stream),
        "ff_norm": Laid(stream, stream),
        "attn": PrepareModuleInput(  # the stream; angles, sight and cache stay as they are
            input_layouts=(stream, None, None, None), desired_input_layouts=(Replicate(), None, None, None)
        ),
        "ff": PrepareModuleInput(input_layouts=stream, desired_input_layouts=Replicate()),
        "attn.q": ColwiseParallel(),  # named by x·W; the matrix is stored (out, in) and cut by rows
        "attn.k": _keys_or_values(attn, mesh),
        "attn.v": _keys_or_values(attn, mesh),
        "attn.o": RowwiseParallel(output_layouts=stream),
        "attn.q_norm": Laid(Shard(HEADS), Shard(HEADS)),
        "attn.k_norm": Laid(Shard(HEADS), Shard(HEADS)),
        "ff.gate": ColwiseParallel(),
        "ff.up": ColwiseParallel(),
        "ff.down": RowwiseParallel(output_layouts=stream),
    }
    _apply(block, mesh, plan)
    attn.heads, attn.kv_heads = attn.heads // parts, max(1, attn.kv_heads // parts)


def _keys_or_values(attn: Attention, mesh: DeviceMesh) -> ParallelStyle:
    """Its share of the key/value heads for each process, or a copy of the one that its query heads look at."""
    if attn.kv_heads >= mesh.size():
        return ColwiseParallel()
    return CopiedHeads(mesh.get_local_rank() * attn.kv_heads // mesh.size(), attn.head_dim)


def _wrap_hidden(model: Decoder, mesh: DeviceMesh, stream: Placement) -> None:
    """Have `hidden` return the whole stream, for any number of tokens."""
    plain: Callable[..., Tensor] = model.hidden
    parts = mesh.size()

    def hidden(tokens_BT: Tensor, **given: Tensor | None) -> Tensor:
        if stream == Replicate():
            return plain(tokens_BT, **given)
        T = tokens_BT.shape[1]
        # Tokens set behind are seen by none before them; what comes of them is cut off again.
        more = -T % parts
        filled = {name: x if x is None else F.pad(x, (0, more)) for name, x in given.items()} if more else given
        x_BTD = plain(F.pad(tokens_BT, (0, more)), **filled)
        x_BTD = DTensor.from_local(x_BTD, mesh, [stream]).redistribute(mesh, [Replicate()]).to_local()
        return x_BTD[:, :T] if more else x_BTD

    model.hidden = hidden  # type: ignore[method-assign, assignment]


def _wrap_head(model: Decoder, mesh: DeviceMesh) -> None:
    """Have `head` take the whole stream and return whole logits; within `sharded_loss`, logits cut by vocabulary."""
    plain: Callable[[Tensor], Tensor] = model.head

    def head(x_BTD: Tensor) -> Tensor:
        logits_BTV = plain(DTensor.from_local(x_BTD, mesh, [Replicate()]))
        assert isinstance(logits_BTV, DTensor)
        return logits_BTV if _SHARDED.get() else logits_BTV.redistribute(mesh, [Replicate()]).to_local()

    model.head = head  # type: ignore[method-assign]


@contextmanager
def sharded_loss() -> Iterator[None]:
    """Within the block, forward and backward, logits stay cut by vocabulary and `F.cross_entropy` works on the parts."""
    token = _SHARDED.set(True)
    try:
        with loss_parallel():
            yield
    finally:
        _SHARDED.reset(token)


def log_sum_exp(logits: Tensor) -> Tensor:
    """log Σ exp over the last dimension, a plain tensor, also where that dimension is cut over processes."""
    if not isinstance(logits, DTensor):
        return torch.logsumexp(logits, -1)
    mesh, here = logits.device_mesh, logits.to_local()
    top = DTensor.from_local(here.detach().amax(-1), mesh, [Partial("max")]).redistribute(mesh, [Replicate()]).to_local()
    part = (here - top[..., None]).exp().sum(-1)
    return top + DTensor.from_local(part, mesh, [Partial()]).redistribute(mesh, [Replicate()]).to_local().log()
