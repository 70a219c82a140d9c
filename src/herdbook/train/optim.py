"""AdamW with the usual exclusions from weight decay, and the end of a step: mean, norm and clipping of the gradient.

Matrices decay; vectors (norms, biases) do not: they set scales and offsets that decay would pull to zero. Embeddings are
matrices and decay as in LLaMA, unless told otherwise (GPT-NeoX and others leave them out). AdamW: Loshchilov & Hutter 2019.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from herdbook.train.config import LoopConfig


def parameter_groups(model: nn.Module, cfg: LoopConfig) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: those that decay, and those that don't.

    Kinds are told apart by the type of the module and the number of dimensions, never by name.
    """
    embeddings = {
        id(parameter) for module in model.modules() if isinstance(module, nn.Embedding) for parameter in module.parameters()
    }
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        is_embedding = id(parameter) in embeddings and not cfg.decay_embeddings
        (spared if parameter.ndim < 2 or is_embedding else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, cfg: LoopConfig) -> torch.optim.AdamW:
    """Fused AdamW over the model's trainable parameters; the loop sets the rate at each step."""
    return torch.optim.AdamW(parameter_groups(model, cfg), lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def finish_gradients(model: nn.Module, tokens: int, clip: float) -> float:
    """Turn gradients of a sum of losses over `tokens` into those of their mean, clipped to a norm of `clip` (0: not clipped).

    Both are one multiplication of every gradient, so accumulation over micro-batches costs nothing and does not change the
    result. Returns the norm before clipping, of the mean's gradient.
    """
    gradients: list[Tensor] = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients)) / tokens
    scale = 1.0 / tokens
    if clip and norm > clip:
        scale *= clip / norm
    torch._foreach_mul_(gradients, scale)
    return norm
