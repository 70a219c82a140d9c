"""How weights start: the spread of each matrix's normal distribution. Biases start at zero, norms at one.

- `normal`: `init_std` for all; what is added to the residual stream gets it / sqrt(2·layers), so that the stream's variance
  does not grow with depth (GPT-2, Radford 2019, section 2.3; OPT, BLOOM).
- `small`: sqrt(2 / (5·width)) for all (Nguyen & Salazar 2019, arXiv:1910.05895, section 2.2), and 2 / (layers·sqrt(width)) for
  what is added to the stream (Wang 2021); GPT-NeoX (arXiv:2204.06745, section 2.1) and Pythia.
- `kaiming`: sqrt(2 / inputs) for all (He et al. 2015, arXiv:1502.01852, section 2.2), / sqrt(2·layers) for what is added to the
  stream; MPT's `init_config`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from herdbook.model.config import ModelConfig

Start = Literal["normal", "small", "kaiming"]


def spread(cfg: ModelConfig, start: Start, name: str, inputs: int) -> float:
    """The standard deviation that the matrix `name` starts with; `inputs`: the width of what it is multiplied with."""
    onto_stream = name.endswith(("attn.o.weight", "ff.down.weight"))
    if start == "small":
        return 2 / (cfg.n_layers * math.sqrt(cfg.d_model)) if onto_stream else math.sqrt(2 / (5 * cfg.d_model))
    std = cfg.init_std if start == "normal" else math.sqrt(2 / inputs)
    return std / math.sqrt(2 * cfg.n_layers) if onto_stream else std


@torch.no_grad()
def draw(weight: Tensor, name: str, cfg: ModelConfig, generator: torch.Generator | None, start: Start = "normal") -> None:
    """Draw the whole parameter `name` of a decoder into `weight`."""
    if name.endswith("bias"):
        weight.zero_()
    elif weight.dim() == 1:
        weight.fill_(1.0)
    else:
        weight.normal_(0.0, spread(cfg, start, name, weight.shape[1]), generator=generator)
