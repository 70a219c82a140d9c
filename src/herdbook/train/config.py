"""What can be set about training, for every task of the loop (`LoopConfig`) and for pre-training (`TrainConfig`).

The defaults are LLaMA's (Touvron et al. 2023, §2.3): AdamW with betas 0.9 and 0.95, weight decay 0.1, gradients clipped at
1.0, cosine to a tenth of the peak rate. Only the rate itself is set for small models, and should be lowered for large ones.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from herdbook.config import Config
from herdbook.train.parallel.config import ParallelConfig
from herdbook.units import Count, Seconds, Share, parse_count, parse_share


def parse_warmup(value: Any) -> float:
    """A share of the run (`2%`, `0.02`) or, from 1 on, a number of tokens (`500K`)."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return parse_share(value)
    if isinstance(value, float) and 0 <= value < 1:
        return value
    for parse in (parse_count, parse_share):
        try:
            number = float(parse(value))
        except (ValueError, TypeError):
            continue
        if parse is parse_count or 0 <= number < 1:
            return number
    raise ValueError(f"{value!r} is neither a share of the run (2%) nor a number of tokens (500K)")


def _parse_micro_batch(value: Any) -> Any:
    return value if value == "auto" else parse_count(value)


Warmup = Annotated[float, BeforeValidator(parse_warmup)]
MicroBatch = Annotated[Literal["auto"] | int, BeforeValidator(_parse_micro_batch)]

# Keys that say how the work is done and watched, not what is trained: they may change between a run and its resumption.
HOW = frozenset({"micro_batch", "compile", "device", "threads", "checkpoint_every", "checkpoint_every_s", "keep_checkpoints",
                 "eval_every", "eval_sequences", "recompute", "trackers", "parallel", "power_w", "hang_after_s"})  # fmt: skip

# Averaging of gradients and of their squares, where none is set: AdamW's as LLaMA has it; Lion's of its paper (table 8).
BETAS = {"adamw": (0.9, 0.95), "lion": (0.9, 0.99), "muon": (0.9, 0.95)}


class StabilityConfig(Config):
    """What is done about a step that goes wrong.

    `skip` leaves the weights as they are and goes on with the next step (OLMo 2, arXiv:2501.00656, section 3). `rewind` goes
    back to the last checkpoint and leaves out the data since (PaLM, arXiv:2204.02311, section 5.1; OPT, arXiv:2205.01068,
    section 2.5): the same data with other weights has been seen to do no harm, so it is the two together that are avoided.
    """

    nonfinite: Literal["stop", "skip", "rewind"] = Field("skip", description="when a loss or gradient is no finite number")
    spike: Literal["keep", "skip", "rewind"] = Field("keep", description="when the loss leaps")
    spike_sigma: float = Field(6.0, gt=0, description="a leap: above the mean of late losses by so many standard deviations")
    spike_window: int = Field(128, ge=8, description="late losses are those of so many steps")
    most_in_a_row: int = Field(10, ge=1, description="steps skipped one after the other, at which training stops")
    most_rewinds: int = Field(10, ge=1, description="rewinds of a run, at which training stops")


class LoopConfig(Config):
    """Settings that pre-training and everything after it share."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate; about 3e-3 at 1M parameters, 3e-4 at 7B")
    min_lr_ratio: Share = Field(0.1, ge=0, le=1, description="last learning rate as a share of the peak")
    warmup: Warmup = Field(0.02, ge=0, description="linear warm-up: a share of the run (2%) or a number of tokens (500K)")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="how the rate falls after warm-up; wsd holds it and falls linearly over the last decay_share"
    )
    decay_share: Share = Field(0.2, gt=0, le=1, description="share of the run over which `wsd` falls")
    decay_over: Warmup | None = Field(
        None,
        gt=0,
        description="where cosine and linear end, tokens or a share of the run (GPT-3: 260B of 300B); default: its end",
    )
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay of matrices; norms and biases have none")
    decay_embeddings: bool = Field(True, description="whether embeddings decay like other matrices")
    optimizer: Literal["adamw", "lion", "muon"] = Field(
        "adamw",
        description="lion: one moment, steps by sign (lr 1/3 to 1/10 of AdamW's); muon: for the matrices of blocks",
    )
    betas: tuple[float, float] | None = Field(None, description="averaging of gradients; default: 0.9, 0.95, of lion 0.9, 0.99")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    decay_by_schedule: bool = Field(
        False, description="weight decay times lr / peak lr, as MPT's optimizers, instead of times lr"
    )
    z_loss: float = Field(0.0, ge=0, description="weight of the squared log of the softmax's sum (PaLM, Falcon: 1e-4)")
    clip: float = Field(1.0, ge=0, description="largest norm of the whole gradient; 0 does not clip")
    seed: int = Field(0, description="seed of initial weights, data order and dropout")
    micro_batch: MicroBatch = Field("auto", description="sequences computed at once; auto takes what memory allows")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the products; weights and sums stay float32. auto is bfloat16 where hardware has it"
    )
    compile: Literal["auto"] | bool = Field(
        "auto", description="torch.compile; auto does it when the run is long enough to win back the half minute it costs"
    )
    recompute: Literal["none", "blocks"] = Field(
        "none",
        description="blocks: keep only what goes into each block and compute it again on the way back: less memory, a "
        "third more work",
    )
    float8: bool = Field(False, description="products in 8 bits, on GPUs that have them (needs torchao)")
    loss_chunk: Count | None = Field(
        None, ge=1, description="positions whose logits are in memory at once; default: all, or as many as memory allows"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    threads: int | None = Field(None, ge=1, description="processor threads; all that we may use by default")
    checkpoint_every: Count | None = Field(None, ge=1, description="steps between checkpoints")
    checkpoint_every_s: Seconds | None = Field(120.0, gt=0, description="time between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="how many checkpoints to keep; the newest ones stay")
    eval_every: Count | None = Field(None, ge=1, description="steps between looks at held-out text; default: ten in a run")
    stability: StabilityConfig = Field(StabilityConfig(), description="what is done about a step that goes wrong")
    hang_after_s: Seconds | None = Field(
        1800.0, gt=0, description="a step that takes longer ends the process, with every thread's stack in hang.txt"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="where else metrics go; metrics.jsonl is always written"
    )
    power_w: float | None = Field(
        None, gt=0, description="watts of one device under load, to estimate energy where the machine does not measure it"
    )
    eval_sequences: int = Field(64, ge=0, description="held-out sequences to look at; 0 looks at none")

    @model_validator(mode="after")
    def _check(self) -> LoopConfig:
        if not all(0 <= beta < 1 for beta in self.averaging):
            raise ValueError("betas must lie between 0 and 1")
        if self.micro_batch != "auto" and self.micro_batch < 1:
            raise ValueError("micro_batch must be at least 1")
        return self

    @property
    def averaging(self) -> tuple[float, float]:
        """The betas: what is set, or the optimizer's own."""
        return self.betas or BETAS[self.optimizer]

    def identity(self) -> dict[str, Any]:
        """What decides which model comes out: all keys but those in `HOW`, as plain JSON."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in HOW}


class RampConfig(Config):
    """A batch that grows: few tokens a step at first, when the gradients of all of them point the same way (GPT-3, 2.3)."""

    start: Count = Field(description="tokens of the first step")
    over: Count = Field(gt=0, description="tokens after which a step has its full size; in between it grows linearly")
    increment: Count | None = Field(None, gt=0, description="tokens by which it grows at a time; default: one sequence")


class TrainConfig(LoopConfig):
    """Settings of pre-training."""

    tokens: Count = Field(2_000_000, ge=1, description="how many tokens to train on, repeats included")
    tokens_per_step: Count = Field(4096, ge=1, description="tokens between two updates of the weights")
    init: Literal["normal", "small", "kaiming"] = Field(
        "normal", description="how weights start: model.init_std, GPT-NeoX's rule by width, or Kaiming's as MPT's"
    )
    batch_ramp: RampConfig | None = Field(None, description="a batch that grows at the start; null: one size throughout")
    parallel: ParallelConfig = Field(ParallelConfig(), description="how several processes share the work")
    context: Count | None = Field(None, ge=2, description="tokens a sequence; default: as many as the model can hold")
    document_mask: bool = Field(False, description="whether a document is kept from seeing the one before it in its sequence")

    @model_validator(mode="after")
    def _check_budget(self) -> TrainConfig:
        if self.context is not None and self.tokens_per_step % self.context:
            raise ValueError(f"tokens_per_step ({self.tokens_per_step}) must be a multiple of context ({self.context})")
        if self.warmup >= 1 and self.warmup > self.tokens:
            raise ValueError(f"warmup ({self.warmup:.0f} tokens) is longer than the run ({self.tokens} tokens)")
        return self
