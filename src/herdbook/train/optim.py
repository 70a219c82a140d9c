"""The optimizers, and the end of a step: mean, norm and clipping of the gradient.

Matrices decay; vectors (norms, biases) do not: they set scales and offsets that decay would pull to zero. Embeddings are
matrices and decay as in LLaMA, unless told otherwise (GPT-NeoX and others leave them out). Decay is decoupled from the gradient
(Loshchilov & Hutter 2019): times the learning rate, or, as in MPT's optimizers, times its share of the peak.

- AdamW: torch's, fused, which is one pass over memory on CPUs too.
- Lion (Chen et al. 2023, arXiv:2302.06675, program 1): one moment instead of two; what MPT was trained with.
- Muon (Jordan et al. 2024): the matrices of the blocks move by their momentum made orthogonal, scaled to AdamW's usual size of
  step (Liu et al. 2025, arXiv:2502.16982, section 2.2), so both take one learning rate; AdamW takes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from herdbook.train.config import LoopConfig
from herdbook.train.parallel.gradients import gradient_norm, settle
from herdbook.train.parallel.world import World

Optimizers = list[torch.optim.Optimizer]

# Bytes a parameter of weights and moments, float32; Muon keeps one moment of most parameters and two of the rest.
STATE_BYTES = {"adamw": 12, "lion": 8, "muon": 12}


class Lion(torch.optim.Optimizer):
    """The sign of an average of gradients as the step, which makes every value move equally far."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        assert closure is None, "the loop computes the loss itself"
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            grads = [weight.grad for weight in weights]
            for weight in weights:
                if "exp_avg" not in self.state[weight]:
                    self.state[weight]["exp_avg"] = torch.zeros_like(weight)
            moments = [self.state[weight]["exp_avg"] for weight in weights]
            beta_step, beta_keep = group["betas"]
            directions = torch._foreach_lerp(moments, grads, 1 - beta_step)
            torch._foreach_sign_(directions)
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, directions, alpha=-group["lr"])
            torch._foreach_lerp_(moments, grads, 1 - beta_keep)


def parameter_groups(
    model: nn.Module, cfg: LoopConfig, of: Callable[[nn.Parameter], bool] | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters (those that `of` accepts) in two groups: those that decay, and those that don't.

    Kinds are told apart by the type of the module and the number of dimensions, never by name.
    """
    embeddings = {
        id(parameter) for module in model.modules() if isinstance(module, nn.Embedding) for parameter in module.parameters()
    }
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad or (of is not None and not of(parameter)):
            continue
        is_embedding = id(parameter) in embeddings and not cfg.decay_embeddings
        (spared if parameter.ndim < 2 or is_embedding else decayed).append(parameter)
    decay = cfg.weight_decay / cfg.lr if cfg.decay_by_schedule else cfg.weight_decay
    groups = [{"params": decayed, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizers(model: nn.Module, cfg: LoopConfig) -> Optimizers:
    """The optimizers that together move each trainable parameter once; the loop sets their rate at each step."""
    if cfg.optimizer == "lion":
        return [Lion(parameter_groups(model, cfg), lr=cfg.lr, betas=cfg.averaging)]
    if cfg.optimizer == "adamw":
        return [_adamw(parameter_groups(model, cfg), cfg)]
    matrices = {id(weight) for weight in block_matrices(model)}
    moved = parameter_groups(model, cfg, lambda weight: id(weight) in matrices)
    rest = parameter_groups(model, cfg, lambda weight: id(weight) not in matrices)
    found: Optimizers = [torch.optim.Muon(moved, lr=cfg.lr, adjust_lr_fn="match_rms_adamw")] if moved else []
    return found + ([_adamw(rest, cfg)] if rest else [])


def block_matrices(model: nn.Module) -> list[Tensor]:
    """The matrices of linear layers within lists of layers: the blocks', not the embedding's or the head's."""
    blocks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    linears = [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    return [module.weight for module in linears if module.weight.requires_grad]


def _adamw(groups: list[dict[str, Any]], cfg: LoopConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.averaging, eps=cfg.eps, fused=True)


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    """Set the rate of the next update."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def finish_gradients(model: nn.Module, tokens: int, clip: float, world: World | None = None) -> float:
    """Turn gradients of a sum of losses over `tokens` into those of their mean, clipped to a norm of `clip` (0: not clipped).

    Both are one multiplication of every gradient, so accumulation over micro-batches costs nothing and does not change the
    result. Returns the norm before clipping, of the mean's gradient.
    """
    held = settle(model)
    norm = gradient_norm(model, held, world or World()) / tokens
    scale = 1.0 / tokens
    if clip and norm > clip:
        scale *= clip / norm
    torch._foreach_mul_(held, scale)
    return norm
