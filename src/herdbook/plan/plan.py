"""The plan of a training run: parameters, FLOPs, time, memory, and how it stands to what the scaling laws advise.

Everything is a formula of the model's shape and the number of tokens; nothing is run here. N parameters, D tokens, C FLOPs.

- FLOPs: `ModelConfig.flops_per_token`, 6·N + 12·L·H·E·T/2 (PaLM, Chowdhery et al. 2022, appendix B, with causal attention).
- Chinchilla multiple: D / (20·N). Hoffmann et al. 2022 (arXiv:2203.15556), Table 3, comes to about 20 tokens a parameter; below
  1 the model is larger than these tokens deserve, above 1 it is smaller and cheaper to use, as the LLaMA models are.
- Compute-optimal size: `herdbook.plan.laws`. Memory: `herdbook.plan.memory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from herdbook.console import Terminal
from herdbook.facts.mixtures import MANY_EPOCHS
from herdbook.model.config import ModelConfig
from herdbook.plan.laws import BESIROGLU_2024, TOKENS_PER_PARAMETER, Law
from herdbook.plan.memory import STATE_BYTES, cast_bytes, training_memory
from herdbook.units import human_bytes, human_count, human_seconds


@dataclass(frozen=True)
class Plan:
    """What a run will take. All fields are plain numbers, so that `as_dict` is plan.json.

    Attributes:
        chinchilla_multiple: tokens / (20 · parameters).
        optimal_parameters, optimal_tokens: the compute-optimal split of the same FLOPs.
        epochs: how often each source is gone through.
        estimated_s: flops / flops_per_s; None when no speed is known.
        flops_per_s: the speed the estimate assumes: what training reaches, not the peak.
        memory_bytes: the sum of `memory`: weights, gradients, optimizer, activations, and `casts`, the
            16-bit copies of the weights, where products are in 16 bits.
    """

    parameters: int
    parameters_non_embedding: int
    tokens: int
    steps: int
    tokens_per_step: int
    context: int
    flops_per_token: float
    flops: float
    chinchilla_multiple: float
    optimal_parameters: int
    optimal_tokens: int
    epochs: dict[str, float]
    flops_per_s: float | None
    estimated_s: float | None
    memory_bytes: int
    memory: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str, str]]:
        """The plan for people: what, how much, and how to read it."""
        share = self.parameters_non_embedding / self.parameters
        optimum = f"{human_count(self.optimal_parameters)} parameters, {human_count(self.optimal_tokens)} tokens"
        parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in self.memory.items())
        rows = [
            ("parameters", human_count(self.parameters), f"{share:.0%} in the blocks, the rest in embedding and head"),
            ("tokens", human_count(self.tokens), _pace(self.chinchilla_multiple)),
            ("steps", f"{self.steps:,}", f"of {self.tokens_per_step:,} tokens, in sequences of {self.context:,}"),
            ("FLOPs", f"{self.flops:.2e}", f"{self.flops_per_token:.2e} a token; compute-optimal: {optimum}"),
            ("memory", human_bytes(self.memory_bytes), parts),
        ]
        if self.estimated_s is not None and self.flops_per_s is not None:
            rows.append(("time", human_seconds(self.estimated_s), f"at {_speed(self.flops_per_s)}"))
        return rows

    def source_rows(self) -> list[tuple[str, str, str]]:
        """How often each source is gone through, in the same columns."""
        return [(f"epochs of {name}", f"{times:.2f}", _repeats(times)) for name, times in self.epochs.items()]

    def show(self, terminal: Terminal, *, title: str = "Plan", sources: bool = True) -> None:
        """Print the plan, and warn of sources that are repeated so often that it stops paying.

        Args:
            sources: False leaves them out, where the mixture is shown by itself.
        """
        terminal.step(title)
        terminal.table(["what", "how much", "that is"], [*self.rows(), *(self.source_rows() if sources else [])])
        for name, times in self.epochs.items() if sources else ():
            if times > MANY_EPOCHS:
                terminal.warn(f"{name} is gone through {times:.3g} times; beyond about {MANY_EPOCHS} repeats teach little")


def plan_training(
    model: ModelConfig,
    *,
    tokens: int,
    tokens_per_step: int,
    context: int,
    flops_per_s: float | None,
    epochs: Mapping[str, float] | None = None,
    micro_batch_tokens: int | None = None,
    activation_bytes_per_value: int = 2,
    law: Law = BESIROGLU_2024,
    steps: int | None = None,
) -> Plan:
    """What training `model` on `tokens` tokens will take.

    Args:
        model: with a known vocabulary (`resolved`).
        tokens: to be trained on, repeats included; rounded up to whole steps.
        flops_per_s: the speed training reaches (a measured peak times the share of it that is expected), or None.
        epochs: how often each source is gone through, as `Mixture.epochs` says.
        micro_batch_tokens: tokens of one forward pass; default: a whole step.
        activation_bytes_per_value: 2 for bf16, 4 for float32.
        law: for the compute-optimal size.
        steps: that `tokens` take, where the batch grows and `tokens` is what they come to; default: whole steps of one size.

    Raises UserError when the vocabulary of `model` is not known.
    """
    assert tokens > 0
    assert tokens_per_step > 0
    trained = tokens if steps is not None else -(-tokens // tokens_per_step) * tokens_per_step
    steps = steps or trained // tokens_per_step
    parameters = model.parameters()
    flops_per_token = model.flops_per_token(context)
    flops = flops_per_token * trained
    optimal_parameters, optimal_tokens = law.optimum(flops)
    memory = training_memory(model, micro_batch_tokens or tokens_per_step, activation_bytes_per_value)
    if activation_bytes_per_value < STATE_BYTES["weights"]:
        memory["casts"] = cast_bytes(model, activation_bytes_per_value)
    return Plan(
        parameters=parameters,
        parameters_non_embedding=model.parameters_non_embedding(),
        tokens=trained,
        steps=steps,
        tokens_per_step=tokens_per_step,
        context=context,
        flops_per_token=flops_per_token,
        flops=flops,
        chinchilla_multiple=trained / (TOKENS_PER_PARAMETER * parameters),
        optimal_parameters=round(optimal_parameters),
        optimal_tokens=round(optimal_tokens),
        epochs=dict(epochs or {}),
        flops_per_s=flops_per_s,
        estimated_s=flops / flops_per_s if flops_per_s else None,
        memory_bytes=sum(memory.values()),
        memory=memory,
    )


def _pace(multiple: float) -> str:
    per_parameter = multiple * TOKENS_PER_PARAMETER
    return f"{per_parameter:.3g} a parameter, {multiple:.2g} times what Chinchilla advises"


def _speed(flops_per_s: float) -> str:
    scale, prefix = next((pair for pair in ((1e15, "P"), (1e12, "T")) if flops_per_s >= pair[0]), (1e9, "G"))
    return f"{flops_per_s / scale:.3g} {prefix}FLOP/s"


def _repeats(times: float) -> str:
    if times <= 1:
        return "no text is seen twice"
    if times <= MANY_EPOCHS:
        return f"up to about {MANY_EPOCHS} they are nearly as good as new text"
    return "more repeats than pay; more text would help"
