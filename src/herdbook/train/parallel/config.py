"""How a run is spread over processes: replicas, shards of the weights, parts of each matrix.

Three ways, which multiply: `replicate` × `shard` × `tensor` = the number of processes.

- `shard` (FSDP2; ZeRO stage 3, Rajbhandari et al. 2020, arXiv:1910.02054): each process has a slice of every weight, gradient
  and moment, and collects a layer when it computes it. Other sequences on each.
- `replicate` (HSDP): so many groups of shards, each with all weights, so that only sums of gradients go between them.
- `tensor` (Shoeybi et al. 2019, arXiv:1909.08053): each process computes some heads and some of the feed-forward width of
  every layer, on the same sequences. It talks in every layer, so it belongs inside one machine. `sequence_parallel` keeps the
  stream between the parts cut along time (Korthikanti et al. 2022, arXiv:2205.05198): less memory for the same talk.

This file imports no torch, so that reading a recipe stays cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from herdbook.config import Config
from herdbook.errors import UserError
from herdbook.model.config import ModelConfig


def _parse_shard(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Shards = Annotated[Literal["auto", "none"] | Annotated[int, Field(ge=1)], BeforeValidator(_parse_shard)]


@dataclass(frozen=True)
class Layout:
    """How many processes there are of each kind. Process number = (replica · shard + its shard) · tensor + its part."""

    replicate: int = 1
    shard: int = 1
    tensor: int = 1

    @property
    def size(self) -> int:
        """All processes."""
        return self.replicate * self.shard * self.tensor

    @property
    def data_ranks(self) -> int:
        """Among how many a step's sequences are shared out; the parts of a matrix work on the same ones."""
        return self.replicate * self.shard

    def data_rank(self, rank: int) -> int:
        """Which share of a step's sequences the process `rank` takes."""
        return rank // self.tensor

    def tensor_rank(self, rank: int) -> int:
        """Which part of each matrix the process `rank` has."""
        return rank % self.tensor


class ParallelConfig(Config):
    """How the processes that `torchrun` starts share the work. With one process nothing here matters."""

    shard: Shards = Field(
        "auto", description="processes that share one copy of the weights (FSDP); auto: all that the others leave, none: 1"
    )
    replicate: int = Field(1, ge=1, description="copies of the weights, each spread over `shard` processes (HSDP)")
    tensor: int = Field(1, ge=1, description="processes that share each matrix; at most those of one machine")
    sequence_parallel: bool = Field(True, description="tensor: the stream between the matrices is cut along time")
    loss_parallel: bool = Field(True, description="tensor: no process ever holds the logits of the whole vocabulary")
    reshard_after_forward: bool = Field(
        True, description="drop a layer's collected weights between forward and backward; false is faster and takes more memory"
    )

    def layout(self, size: int) -> Layout:
        """What this comes to with `size` processes. Raises UserError when it does not come out even."""
        others = self.replicate * self.tensor
        if self.shard == "auto":
            shard, rest = divmod(size, others)
            if rest or not shard:
                raise UserError(
                    f"{size} processes cannot be shared out by replicate {self.replicate} × tensor {self.tensor}",
                    where="parallel", todo=f"start a multiple of {others} processes, or change replicate or tensor",
                )  # fmt: skip
        else:
            shard = 1 if self.shard == "none" else self.shard
        layout = Layout(self.replicate, shard, self.tensor)
        if layout.size != size:
            raise UserError(
                f"there are {size} processes, and replicate {layout.replicate} × shard {layout.shard} × tensor "
                f"{layout.tensor} are {layout.size}",
                where="parallel", todo=f"start {layout.size} processes, or set shard: auto",
            )  # fmt: skip
        return layout

    def require_fit(self, layout: Layout, model: ModelConfig, *, sequences: int) -> None:
        """Raise UserError when a model, or a step of `sequences` sequences, cannot be cut as this asks."""
        if sequences % layout.data_ranks:
            raise UserError(
                f"a step of {sequences} sequences cannot be shared out among {layout.data_ranks} processes",
                where="tokens_per_step",
                todo=f"take a multiple of {layout.data_ranks} sequences a step, or fewer replicate × shard",
            )
        parts = layout.tensor
        for what, field, number in (
            ("query heads", "n_heads", model.n_heads),
            ("width of the feed-forward part", "d_ff", model.ff_width),
            ("vocabulary", "vocab_size", model.vocabulary),
        ):
            if number % parts:
                raise UserError(f"the {what} ({number:,}) cannot be cut into {parts} equal parts",
                                where=f"model.{field}", todo="choose another parallel.tensor, or shard instead")  # fmt: skip
        if model.kv_heads % parts and parts % model.kv_heads:
            raise UserError(
                f"{model.kv_heads} key/value heads can neither be dealt to {parts} processes nor copied evenly among them",
                where="model.n_kv_heads", todo="take a parallel.tensor that divides them, or a multiple of them",
            )  # fmt: skip
        if self.sequence_parallel and model.context % parts:
            raise UserError(
                f"sequences of {model.context} tokens cannot be cut into {parts} equal parts", where="model.context",
                todo="set parallel.sequence_parallel=false, or choose another parallel.tensor",
            )  # fmt: skip
