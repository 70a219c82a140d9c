"""The learning rate as a pure function of the step: warm-up, then cosine, linear, constant, or warm-up-stable-decay.

Cosine as in LLaMA and Chinchilla ends exactly with the run; `wsd` (Hu et al. 2024, MiniCPM, §4) holds the peak and falls in
the last part, so that a run can be prolonged from before the fall.
"""

from __future__ import annotations

import math

from herdbook.errors import UserError
from herdbook.train.config import LoopConfig


def warmup_steps(cfg: LoopConfig, steps: int, tokens_per_step: int) -> int:
    """Updates of the linear warm-up. Raises UserError when a warm-up in tokens is longer than the run."""
    if cfg.warmup < 1:
        return round(cfg.warmup * steps)
    wanted = math.ceil(cfg.warmup / tokens_per_step)
    if wanted > steps:
        raise UserError(f"the warm-up takes {wanted} steps and the whole run has {steps}",
                        todo="give warmup as a share (2%), or fewer tokens")  # fmt: skip
    return wanted


def learning_rate(step: int, cfg: LoopConfig, *, steps: int, warmup: int) -> float:
    """The rate of update `step` (1 … steps): rises linearly to `cfg.lr` at step `warmup`, and is least at the last step."""
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} is outside 1…{steps}")
    if step <= warmup:
        return cfg.lr * step / warmup
    progress = (step - warmup) / (steps - warmup)
    low = cfg.lr * cfg.min_lr_ratio
    if cfg.schedule == "constant":
        return cfg.lr
    if cfg.schedule == "linear":
        return cfg.lr + (low - cfg.lr) * progress
    if cfg.schedule == "cosine":
        return low + (cfg.lr - low) * 0.5 * (1 + math.cos(math.pi * progress))
    fall = max(1, round(cfg.decay_share * steps))
    return cfg.lr + (low - cfg.lr) * max(0.0, 1 - (steps - step) / fall)
