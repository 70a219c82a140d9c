"""The gradient of a spread model: added up, measured, scaled.

A process holds slices of some gradients and copies of others. The square of the whole norm is the sum over processes of the
squares of what each holds, a copy counted as the share of one; that is one number to send, whatever the layout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from herdbook.train.parallel.world import World


def collect_gradients(model: nn.Module, *, last: bool) -> None:
    """To be called before each micro-batch: replicas add up their gradients only after the `last` one of a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)


def settle(model: nn.Module) -> list[Tensor]:
    """All gradients as what this process holds of each, plain tensors that share their memory.

    Sums that tensor parallelism has left open (norms that saw a slice of the stream, copied key heads) are made.
    """
    held: list[Tensor] = []
    for weight in model.parameters():
        if weight.grad is None:
            continue
        if isinstance(weight.grad, DTensor):
            assert isinstance(weight, DTensor)
            if weight.grad.placements != weight.placements:
                weight.grad = weight.grad.redistribute(placements=weight.placements)
            held.append(weight.grad.to_local())
        else:
            held.append(weight.grad)
    return held


def gradient_norm(model: nn.Module, held: list[Tensor], world: World) -> float:
    """The L2 norm of the whole gradient, the same on every process. `held` is what `settle` gave."""
    if world.size == 1:
        return float(torch.nn.utils.get_total_norm(held))
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    norms: list[float] = torch.stack([norm.float() for norm in torch._foreach_norm(held)]).tolist()
    squares = math.fsum(norm * norm / _copies(weight, world.size) for norm, weight in zip(norms, weights, strict=True))
    return math.sqrt(world.total(squares)[0])


def _copies(weight: Tensor, processes: int) -> int:
    """How many processes hold the same values of a parameter as this one."""
    if not isinstance(weight, DTensor):
        return processes
    mesh = weight.device_mesh
    apart = [mesh.size(dim) for dim, placement in enumerate(weight.placements) if not placement.is_replicate()]
    return processes // math.prod(apart)
