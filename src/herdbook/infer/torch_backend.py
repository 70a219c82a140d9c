"""The decoder over blocks of keys and values, by torch's own operations: every family, every device.

- Spans of a step go through the decoder in groups, padded on the right: prompts from their beginning (the causal kernel, no
  gathering), and whatever goes on behind earlier tokens. All single tokens are one group, so weights are read once for them.
- On a GPU with Triton, single tokens are a CUDA graph instead (`gpu.step`), which reads keys and values where they lie.
- Padding writes into a block of its own that belongs to nobody, and takes the position of its row's last token.
- What a group needs to know goes to the device in one copy that nobody waits for.

The model itself is left as it is: a `twin` of it shares its weights.

Shapes: B rows, T new tokens, S slots, K key/value heads, E head width, N tokens of all rows, P padded blocks, D model width,
V vocabulary, W rows wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor

from herdbook.infer.backend import BLOCK, Span
from herdbook.infer.blocks import blocks_for
from herdbook.infer.gpu import have_triton
from herdbook.infer.gpu.step import MOST, DecodeStep
from herdbook.infer.memory import KVKind, Memory
from herdbook.infer.twin import read_bytes, twin
from herdbook.model.attention import Sight, attention
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

SMALL = 64  # padded tokens that are worth no pass of their own
WASTE = 1.25  # padded tokens a real one, beyond that


class TorchBackend:
    """See `Backend`.

    Args:
        model: the decoder; it stays as it is.
        blocks: how many blocks to have.
        kv: type of keys and values: `auto` is the model's `compute_dtype`.
        step: how single tokens go: `kernels` as one step over fixed buffers with Triton's kernels, `plain` as that step with
            the kernels' references, `none` as everything else; `auto` takes the kernels on a GPU where there is Triton.
    """

    def __init__(
        self, model: Decoder, *, blocks: int, kv: KVKind = "auto", step: Literal["auto", "kernels", "plain", "none"] = "auto"
    ) -> None:
        self.cfg: ModelConfig = model.cfg
        self.blocks = blocks
        self._device, dtype = next(model.parameters()).device, model.compute_dtype
        gpu = self._device.type == "cuda"
        if step == "auto":
            step = "kernels" if gpu and have_triton() else "none"
        self._model = twin(model, gpu=gpu or step != "none", kernels=step == "kernels")
        self._memories = [Memory.new(self.cfg, blocks + 1, kv, dtype, self._device) for _ in range(self.cfg.n_layers)]
        self._step = None
        if step != "none":
            self._step = DecodeStep(self._model, self._memories, spare=blocks, kernels=step == "kernels")

    @staticmethod
    def block_bytes(model: Decoder, kv: KVKind = "auto") -> int:
        """Memory of one block."""
        cfg, size = model.cfg, model.compute_dtype.itemsize
        per_head = cfg.head_width * size if kv == "auto" else cfg.head_width + 4
        return 2 * cfg.n_layers * cfg.kv_heads * BLOCK * per_head

    @property
    def read_bytes(self) -> int:
        """See `Backend.read_bytes`."""
        return read_bytes(self._model)

    @property
    def path(self) -> str:
        """How single tokens go on a GPU, in a few words; empty on a CPU."""
        if self._device.type != "cuda":
            return ""
        return "no CUDA graphs for want of Triton" if self._step is None else "CUDA graphs"

    def run(self, spans: Sequence[Span]) -> Tensor:
        """See `Backend.run`."""
        # A text of one token is a fresh prompt: with `kv="int8"` that sees its own key as it was.
        single = [place for place, span in enumerate(spans) if self._step is not None and span.start and len(span.tokens) == 1]
        taken = set(single)
        rest = [place for place in range(len(spans)) if place not in taken]
        # Triton launches on the current GPU, which need not be the model's.
        with torch.inference_mode(), torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            if self._step is not None and len(single) == len(spans) <= MOST and all(span.wanted for span in spans):
                return self._step.run(spans)
            found = {**self._singles(spans, single), **self._pieces(spans, rest)}
            parts = [found[place] for place, span in enumerate(spans) if span.wanted]
            return torch.cat(parts) if parts else torch.zeros(0, self.cfg.vocabulary, device=self._device)

    def _singles(self, spans: Sequence[Span], places: list[int]) -> dict[int, Tensor]:
        """The logits (1, V) behind single tokens, by their places in the step."""
        found: dict[int, Tensor] = {}
        for start in range(0, len(places), MOST):
            turn = places[start : start + MOST]
            assert self._step is not None
            found.update(zip(turn, self._step.run([spans[place] for place in turn])[:, None], strict=True))
        return found

    def _pieces(self, spans: Sequence[Span], places: list[int]) -> dict[int, Tensor]:
        """The logits (W, V) of whatever else, by its places in the step."""
        order, hidden = [], []
        for group in _groups([spans[place] for place in places]):
            own = [places[at] for at in group]
            order += own
            hidden.append(self._hidden([spans[place] for place in own]))
        if not any(len(rows) for rows in hidden):
            return {}
        logits_WV = self._model.head(torch.cat(hidden))
        return dict(zip(order, torch.split(logits_WV, [len(spans[place].wanted) for place in order]), strict=True))

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `Backend.copy`."""
        if pairs:
            both = _sent([block for pair in zip(*pairs, strict=True) for block in pair], self._device)
            with torch.inference_mode():
                for memory in self._memories:
                    memory.copy(both[: len(pairs)], both[len(pairs) :])

    def _hidden(self, spans: list[Span]) -> Tensor:
        """Run a group; the stream (W, D) at the tokens wanted, span by span."""
        view = _View(spans, self._memories, spare=self.blocks, window=self.cfg.window, device=self._device)
        hidden_BTD = self._model.hidden(view.tokens_BT, cache=view)
        return hidden_BTD.flatten(0, 1).index_select(0, view.wanted_W)


class _View:
    """The blocks of a group of spans as the decoder's `KeyValueCache`: of a model with a window those that somebody sees.

    Attributes:
        tokens_BT: the group's tokens, padded on the right.
        wanted_W: places in (B·T) whose logits are asked for.
    """

    def __init__(
        self, spans: list[Span], memories: list[Memory], *, spare: int, window: int | None, device: torch.device
    ) -> None:  # fmt: skip
        self._memories = memories
        longest = max(len(span.tokens) for span in spans)
        self._fresh = all(span.start == 0 for span in spans)
        self._single = len({span.start for span in spans}) == 1 and longest == 1
        self._begin = 0 if window is None else max(0, min(span.start for span in spans) - window + 1)  # the first key seen
        self._end = max(span.start + len(span.tokens) for span in spans)
        self._passed = self._begin // BLOCK  # blocks before that
        used = [span.blocks[self._passed : blocks_for(span.start + len(span.tokens))] for span in spans]
        most = max(map(len, used))
        first = used[0][0]
        self._neighbours = first if len(used) == 1 and list(used[0]) == list(range(first, first + most)) else None
        parts = [
            [span.start for span in spans],
            [span.start + len(span.tokens) - 1 for span in spans],
            [token for span in spans for token in (*span.tokens, *[0] * (longest - len(span.tokens)))],
            [block for row in used for block in (*row, *[spare] * (most - len(row)))],
            [row * longest + place for row, span in enumerate(spans) for place in span.wanted],
        ]
        there = torch.split(_sent([number for part in parts for number in part], device), [len(part) for part in parts])
        starts_B1, last_B1 = there[0][:, None], there[1][:, None]
        self.tokens_BT, self._table_BP, self.wanted_W = there[2].view(-1, longest), there[3].view(-1, most), there[4]
        places_BT = starts_B1 + torch.arange(longest, device=device)
        self._real_BT = places_BT <= last_B1
        self._positions_BT = places_BT.minimum(last_B1)
        self._slots_N = self._slots(spare)

    def _slots(self, spare: int) -> Tensor:
        """Where each of the padded tokens goes, (B·T,): padding into the spare block."""
        block_BT = self._table_BP.gather(1, self._positions_BT // BLOCK - self._passed)
        slots_BT = block_BT * BLOCK + self._positions_BT % BLOCK
        return torch.where(self._real_BT, slots_BT, spare * BLOCK).flatten()

    def positions(self, time: int) -> Tensor:
        """See `KeyValueCache`."""
        return self._positions_BT

    def key_positions(self, time: int) -> Tensor:
        """See `KeyValueCache`: a token's slot in its own blocks is its position."""
        return self._positions_BT if self._fresh else self._keys()[None]

    def sight(self, time: int) -> Sight:
        """See `KeyValueCache`."""
        if self._fresh:
            return Sight(causal=True)
        if self._single:
            return Sight(causal=False)
        return Sight((self._keys() <= self._positions_BT[..., None])[:, None], causal=False)

    def _keys(self) -> Tensor:
        return torch.arange(self._begin, self._end, device=self._table_BP.device)

    def attend(self, layer: int, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, sight: Sight) -> Tensor:
        """See `KeyValueCache`."""
        news = k_BKTE.transpose(1, 2).flatten(0, 1), v_BKTE.transpose(1, 2).flatten(0, 1)
        self._memories[layer].keep(self._slots_N, *news)
        if self._fresh:
            return attention(q_BHTE, k_BKTE, v_BKTE, sight)
        k_BKSE, v_BKSE = self._memories[layer].read(self._table_BP, self._neighbours)
        seen = slice(self._begin - self._passed * BLOCK, self._end - self._passed * BLOCK)
        return attention(q_BHTE, k_BKSE[:, :, seen], v_BKSE[:, :, seen], sight)


def _sent(numbers: list[int], device: torch.device) -> Tensor:
    """Whole numbers on the device, (N,); nobody waits until they are there."""
    return torch.tensor(numbers, dtype=torch.long, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _groups(spans: Sequence[Span]) -> Iterator[list[int]]:
    """Places of spans that go through the decoder together: fresh prompts apart from the rest, each of about one length."""
    for fresh in (True, False):
        places = sorted(
            (place for place, span in enumerate(spans) if (span.start == 0) == fresh),
            key=lambda place: len(spans[place].tokens),
        )
        group: list[int] = []
        real = 0
        for place in places:
            size = len(spans[place].tokens)
            padded = size * (len(group) + 1)
            if group and padded > max(SMALL, WASTE * (real + size)):
                yield group
                group, real = [], 0
            group.append(place)
            real += size
        if group:
            yield group
