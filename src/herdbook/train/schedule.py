"""The learning rate as a pure function of the tokens trained on, and how many of them each step has.

The rate: warm-up, then cosine, linear, constant, or warm-up-stable-decay. Cosine as in LLaMA and Chinchilla ends exactly with
the run, or where `decay_over` says (GPT-3 stays at the bottom for its last 40B tokens; BLOOM's ends after the run); `wsd` (Hu
et al. 2024, MiniCPM, section 4) holds the peak and falls in the last part, so that a run can be prolonged from before the fall.

The batch may grow over the first tokens, linearly, as GPT-3's, BLOOM's and Falcon's did. Where a step's sequences begin is
found by arithmetic, so data stays a pure function of the step.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field

from herdbook.errors import UserError
from herdbook.train.config import LoopConfig, RampConfig, TrainConfig


def warmup_tokens(cfg: LoopConfig, total: int) -> float:
    """Tokens of the linear warm-up. Raises UserError when it is longer than the run of `total` tokens."""
    if cfg.warmup < 1:
        return cfg.warmup * total
    if cfg.warmup > total:
        raise UserError(f"the warm-up takes {cfg.warmup:,.0f} tokens and the whole run has {total:,}",
                        todo="give warmup as a share (2%), or fewer tokens")  # fmt: skip
    return cfg.warmup


def learning_rate(tokens: int, cfg: LoopConfig, *, total: int, warmup: float) -> float:
    """The rate of the update that `tokens` of the run's `total` tokens are trained on after; least at the last."""
    if not 0 < tokens <= total:
        raise ValueError(f"{tokens} tokens are outside 1…{total}")
    if tokens <= warmup:
        return cfg.lr * tokens / warmup
    low = cfg.lr * cfg.min_lr_ratio
    if cfg.schedule == "constant":
        return cfg.lr
    if cfg.schedule == "wsd":
        return cfg.lr + (low - cfg.lr) * max(0.0, 1 - (total - tokens) / (cfg.decay_share * total))
    end = total if cfg.decay_over is None else cfg.decay_over * (total if cfg.decay_over < 1 else 1)
    progress = min(1.0, (tokens - warmup) / (end - warmup)) if end > warmup else 1.0
    if cfg.schedule == "linear":
        return cfg.lr + (low - cfg.lr) * progress
    return low + (cfg.lr - low) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class BatchPlan:
    """How many sequences each step has.

    Attributes:
        sequences: of a step of full size; `context`: tokens of a sequence.
        growing: sequences before each step of the ramp, and before the first step after it.
        steps: of the whole run.
    """

    sequences: int
    context: int
    steps: int
    growing: list[int] = field(default_factory=lambda: [0])

    def before(self, step: int) -> int:
        """Sequences of the steps before `step`, counted from 0."""
        ramp = len(self.growing) - 1
        return self.growing[step] if step <= ramp else self.growing[-1] + (step - ramp) * self.sequences

    def of(self, step: int) -> range:
        """The numbers of a step's sequences."""
        return range(self.before(step), self.before(step + 1))

    def tokens_after(self, steps: int) -> int:
        """Tokens of the first `steps` steps."""
        return self.before(steps) * self.context

    def step_of(self, sequence: int) -> int:
        """The step that a sequence is in."""
        if sequence < self.growing[-1]:
            return bisect.bisect_right(self.growing, sequence) - 1
        return len(self.growing) - 1 + (sequence - self.growing[-1]) // self.sequences


def plan_batches(cfg: TrainConfig, context: int) -> BatchPlan:
    """The steps of a run of `cfg.tokens` tokens, the last one whole.

    Raises UserError when sizes are no multiples of the context, or the ramp does not grow.
    """
    full = _sequences(cfg.tokens_per_step, context, "train.tokens_per_step")
    growing = [0]
    if cfg.batch_ramp is not None:
        growing = _ramp(cfg.batch_ramp, full, context, cfg.tokens)
    left = cfg.tokens - growing[-1] * context
    return BatchPlan(full, context, len(growing) - 1 + max(0, -(-left // (full * context))), growing)


def _ramp(ramp: RampConfig, full: int, context: int, tokens: int) -> list[int]:
    start = _sequences(ramp.start, context, "train.batch_ramp.start")
    by = _sequences(ramp.increment, context, "train.batch_ramp.increment") if ramp.increment else 1
    if start > full:
        raise UserError(
            f"the batch starts with {ramp.start:,} tokens, more than a full step has", where="train.batch_ramp.start"
        )
    ends = [0]
    while ends[-1] * context < min(ramp.over, tokens):
        share = ends[-1] * context / ramp.over
        ends.append(ends[-1] + min(full, start + int((full - start) * share) // by * by))
    return ends


def _sequences(tokens: int, context: int, key: str) -> int:
    if tokens % context:
        raise UserError(f"{key} ({tokens:,}) is not a multiple of the context ({context:,})",
                        todo=f"take {max(1, round(tokens / context)) * context}")  # fmt: skip
    return tokens // context
