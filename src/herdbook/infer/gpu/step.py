"""One token of each of many sequences, over buffers that stay where they are: on a GPU captured once as a CUDA graph.

    spans ──▶ [ tokens B | positions B | tables B × P ] ──one copy──▶ the same on the device ──▶ replay ──▶ logits (B, V)

A decoder of 32 layers is some five hundred kernels a token, each of which takes longer to launch than to run at small batches.
A graph launches all of them at once, but only as they were captured: same shapes, same addresses. So the batch is padded to a
power of two, each of which has buffers and a graph of its own, captured when it is first needed; how long the sequences are and
which blocks are theirs lies in memory. Slots of the new keys and values follow from both on the device. Padding is a sequence
of one token in a block that belongs to nobody.

The same function runs eagerly where there is no GPU, on Triton's interpreter or on the plain references: what tests look at.

Shapes: B padded sequences, P blocks of a table, D model width, V vocabulary; H, K, E, T as in the decoder, T being 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from herdbook.infer.backend import BLOCK, Span
from herdbook.infer.blocks import blocks_for
from herdbook.infer.gpu import reference
from herdbook.infer.gpu.reference import Bias
from herdbook.infer.memory import Memory
from herdbook.model.attention import Sight, alibi_slopes
from herdbook.model.decoder import Decoder

MOST = 512  # sequences of one step; more take turns
Keep = Callable[[Memory, Tensor, Tensor, Tensor], None]
Attend = Callable[..., Tensor]


class DecodeStep:
    """Runs single tokens.

    Args:
        model: the decoder, in evaluation mode.
        memories: keys and values of each layer.
        spare: a block that belongs to nobody, for padding.
        kernels: whether Triton's kernels read and write the blocks, or the plain references.
    """

    def __init__(self, model: Decoder, memories: list[Memory], *, spare: int, kernels: bool) -> None:
        self.model, self.memories, self.spare, self.kernels = model, memories, spare, kernels
        self.device = memories[0].keys.device
        self.width = blocks_for(model.cfg.context) + 1
        self._batches: dict[int, _Batch] = {}
        # One pool for all graphs: they never run side by side, so that they may share what they need in between.
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def run(self, spans: Sequence[Span]) -> Tensor:
        """The logits (Q, V), float32, behind the one token of each of up to `MOST` spans."""
        longest = max(blocks_for(span.start + 1) for span in spans)
        if longest > self.width:
            self.width = max(longest, 2 * self.width)
            self._batches.clear()
        size = padded(len(spans))
        if size not in self._batches:
            self._batches[size] = _Batch(self, size)
        return self._batches[size].run(spans, self._pool)


def padded(count: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (count - 1).bit_length()


class _Batch:
    """Buffers of B sequences, what reads them as the decoder's `KeyValueCache`, and the graph of it."""

    def __init__(self, step: DecodeStep, size: int) -> None:
        self._model, self._memories, self._spare = step.model, step.memories, step.spare
        cfg, device, pinned = step.model.cfg, step.device, step.device.type == "cuda"
        self._host = torch.zeros(size * (2 + step.width), dtype=torch.int32, pin_memory=pinned)
        self._there = torch.zeros_like(self._host, device=device)
        tokens, positions, tables = (part.numpy() for part in _parts(self._host, size))
        self._tokens, self._positions, self._tables = tokens, positions, tables.reshape(size, -1)
        self._tables[:, 0] = self._spare
        self._known: list[list[int]] = [[self._spare]] * size
        self._tokens_B, self._positions_B, flat = _parts(self._there, size)
        self._tables_BP = flat.view(size, -1)
        self._slots_B = torch.zeros(size, dtype=torch.long, device=device)  # follows from positions and tables
        slopes = alibi_slopes(cfg.n_heads, cfg.alibi_max).to(device) if cfg.positions == "alibi" else None
        bias = None if slopes is None else Bias(slopes, cfg.alibi_falcon)
        keep, attend = _kernels(device, size, cfg.kv_heads, step.width) if step.kernels else (Memory.keep, reference.attend)
        self._keep: Keep = keep
        self._attend: Attend = partial(attend, bias=bias, window=cfg.window)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits_BV: Tensor | None = None
        self._copied = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]

    def run(self, spans: Sequence[Span], pool: torch.cuda._POOL_HANDLE | None) -> Tensor:
        """See `DecodeStep.run`."""
        self._fill(spans)
        if pool is None:
            return self._forward()[: len(spans)]
        if self._graph is None:
            self._capture(pool)
        assert self._graph is not None and self._logits_BV is not None
        self._graph.replay()
        return self._logits_BV[: len(spans)].clone()  # the next replay writes there

    def _fill(self, spans: Sequence[Span]) -> None:
        """Set the buffers. A table is written only when it is another one than last time, which is once in 16 tokens."""
        if self._copied is not None:
            self._copied.synchronize()  # the last copy may not have been read yet
        self._tokens[:], self._positions[:] = 0, 0
        for row in range(len(self._known)):
            table = [self._spare]
            if row < len(spans):
                span = spans[row]
                table = list(span.blocks[: blocks_for(span.start + 1)])
                self._tokens[row], self._positions[row] = span.tokens[0], span.start
            if table != self._known[row]:
                self._known[row] = table
                self._tables[row, : len(table)] = table
        self._there.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def _forward(self) -> Tensor:
        places_B = self._positions_B.long()
        blocks_B = self._tables_BP.gather(1, places_B[:, None] // BLOCK)[:, 0]
        self._slots_B = blocks_B.long() * BLOCK + places_B % BLOCK
        hidden_B1D = self._model.hidden(self._tokens_B[:, None], cache=self)
        return self._model.head(hidden_B1D[:, 0])

    def _capture(self, pool: torch.cuda._POOL_HANDLE) -> None:
        """Run it twice aside, so that kernels are compiled and libraries have their memory, then record it.

        What the runs write is what the replay writes again.
        """
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads, a server's for one, may go on meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._logits_BV = self._forward()
        self._graph = graph

    # ---- the decoder's cache ----

    def positions(self, time: int) -> Tensor:
        """See `KeyValueCache`."""
        return self._positions_B[:, None]

    def key_positions(self, time: int) -> Tensor:
        """See `KeyValueCache`; nobody asks, because there is no sight."""
        raise ValueError("a decode step knows by itself who sees whom")

    def sight(self, time: int) -> None:
        """See `KeyValueCache`."""

    def attend(self, layer: int, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, sight: Sight) -> Tensor:
        """See `KeyValueCache`."""
        memory = self._memories[layer]
        self._keep(memory, self._slots_B, k_BKTE[:, :, 0], v_BKTE[:, :, 0])
        return self._attend(q_BHTE[:, :, 0], memory, self._tables_BP, self._positions_B)[:, :, None]


def _parts(buffer: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and tables in a buffer."""
    return buffer[:size], buffer[size : 2 * size], buffer[2 * size :]


def _kernels(device: torch.device, size: int, heads: int, width: int) -> tuple[Keep, Attend]:
    """What writes and reads blocks of so many sequences, key heads, and blocks a sequence."""
    from herdbook.infer.gpu import paged

    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return paged.keep, partial(paged.attend, splits=paged.splits_for(size, heads, width, processors))
