"""What runs a decoder for the engine: tokens of many sequences in, logits out, keys and values in blocks.

    sequences  ──► scheduler ──► Step ──► Backend.run ──► logits of the rows that are asked for
                      │                      │
                 block tables ───────────► blocks of keys and values, `BLOCK` tokens each

A step mixes whatever is due: a piece of one prompt, one token of each of many sequences, drafted tokens to be checked. The
scheduler owns which block holds what; a backend owns the memory of the blocks and the arithmetic. Two backends: torch's
(`torch_backend`, every device, all families) and the C++ kernels' (`native`, CPUs).

Shapes: N new tokens of all sequences, Q sequences, W rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from herdbook.model.config import ModelConfig

BLOCK = 16  # tokens of a block of keys and values


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence, next to each other.

    Attributes:
        tokens: ids of the new tokens, at least one.
        start: how many tokens of the sequence are in its blocks already; the new ones take the positions from there on.
        blocks: numbers of the sequence's blocks, in order, enough for `start + len(tokens)` tokens.
        wanted: which of the new tokens' logits are asked for, as places in `tokens`, ascending.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    wanted: Sequence[int] = ()


class Backend(Protocol):
    """Runs a decoder over blocks of keys and values.

    Attributes:
        cfg: the decoder's resolved config.
        blocks: how many blocks there are; they are numbered from 0.
    """

    cfg: ModelConfig
    blocks: int

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that a step of one token reads."""

    def run(self, spans: Sequence[Span]) -> Tensor:
        """Keep the new tokens' keys and values; the logits (W, V), float32, of the rows wanted, span by span in order.

        A token sees the tokens of its own sequence up to itself. What a row computes does not depend on the other rows
        beyond rounding. No two spans of one call belong to one sequence.
        """

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (from, to) each: a sequence that branches from another writes into its own last block."""
