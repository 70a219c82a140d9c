"""The decoder over blocks of keys and values, by torch's own operations: every family, every device.

- A layer's memory is (K, blocks, 16·E): blocks of a sequence are gathered in pieces of 16·E values and lie as (K, S, E) without
  another copy, and where a single sequence has neighbouring blocks it is a view.
- Spans of a step go through the decoder in groups, padded on the right: prompts from their beginning (the causal kernel, no
  gathering), and whatever goes on behind earlier tokens. All single tokens are one group, so weights are read once for them.
- Padding writes into a block of its own that belongs to nobody, and takes the position of its row's last token.
- On a CPU in bfloat16, matrices are packed once as oneDNN wants them: a row of 2,048 through a matrix of 2,048 × 5,632 takes
  0.38 ms instead of 1.25.
- With `kv="int8"` a token's key in a head is 8-bit numbers and one scale, and so is its value: about half of 16 bits' memory.

The model itself is left as it is: a second tree of modules shares its weights, always in evaluation mode.

Shapes: B rows, T new tokens, S slots, K key/value heads, E head width, N tokens of all rows, P padded blocks, D model width,
V vocabulary, W rows wanted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from herdbook.infer.backend import BLOCK, Span
from herdbook.infer.blocks import blocks_for
from herdbook.model.attention import Sight
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder, Linear
from herdbook.model.quantized import QuantizedLinear

KVKind = Literal["auto", "int8"]
Module = TypeVar("Module", bound=nn.Module)
SMALL = 64  # padded tokens that are worth no pass of their own
WASTE = 1.25  # padded tokens a real one, beyond that


class TorchBackend:
    """See `Backend`.

    Args:
        model: the decoder; it stays as it is.
        blocks: how many blocks to have.
        kv: type of keys and values: `auto` is the model's `compute_dtype`.
    """

    def __init__(self, model: Decoder, *, blocks: int, kv: KVKind = "auto") -> None:
        self.cfg: ModelConfig = model.cfg
        self.blocks = blocks
        self._device, self._dtype = next(model.parameters()).device, model.compute_dtype
        packs = _packs(self._device, self._dtype)
        self._model = _twin(model, pack=packs)
        if packs and self._model.unembed is None:
            self._model._modules["unembed"] = _Packed(self._model.embed.weight, None)
        self._layers = [
            _Layer(self.cfg.kv_heads, blocks + 1, self.cfg.head_width, kv, self._dtype, self._device)
            for _ in range(self.cfg.n_layers)
        ]

    @staticmethod
    def block_bytes(model: Decoder, kv: KVKind = "auto") -> int:
        """Memory of one block."""
        cfg, size = model.cfg, model.compute_dtype.itemsize
        per_head = cfg.head_width * size if kv == "auto" else cfg.head_width + 4
        return 2 * cfg.n_layers * cfg.kv_heads * BLOCK * per_head

    @property
    def read_bytes(self) -> int:
        """See `Backend.read_bytes`."""
        linears = [one for one in self._model.modules() if isinstance(one, _Packed | Linear | QuantizedLinear)]
        head = self._model.embed.weight.nbytes if self._model.unembed is None else 0
        return head + sum(
            one.matrix.stored_bytes if isinstance(one, QuantizedLinear)
            else 2 * one.packed.numel() if isinstance(one, _Packed)
            else one.weight.nbytes
            for one in linears
        )  # fmt: skip

    def run(self, spans: Sequence[Span]) -> Tensor:
        """See `Backend.run`."""
        wanted: list[Tensor | None] = [None] * len(spans)
        with torch.inference_mode():
            for group in _groups(spans):
                for place, rows in zip(group, self._hidden([spans[place] for place in group]), strict=True):
                    wanted[place] = rows
            parts = [rows for rows in wanted if rows is not None and len(rows)]
            if not parts:
                return torch.zeros(0, self.cfg.vocabulary, device=self._device)
            return self._model.head(torch.cat(parts))

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `Backend.copy`."""
        if pairs:
            source, target = (torch.tensor(column, device=self._device) for column in zip(*pairs, strict=True))
            with torch.inference_mode():
                for layer in self._layers:
                    layer.copy(source, target)

    def _hidden(self, spans: list[Span]) -> Iterator[Tensor]:
        """Run a group; of each span the stream (W, D) at the tokens wanted."""
        longest = max(len(span.tokens) for span in spans)
        tokens = [[*span.tokens, *[0] * (longest - len(span.tokens))] for span in spans]
        view = _View(spans, longest, self._layers, spare=self.blocks, window=self.cfg.window, device=self._device)
        hidden_BTD = self._model.hidden(torch.tensor(tokens, device=self._device), cache=view)
        for row, span in enumerate(spans):
            if len(span.wanted) == len(span.tokens):
                yield hidden_BTD[row, : len(span.tokens)]
            else:
                yield hidden_BTD[row, torch.tensor(span.wanted, dtype=torch.long, device=self._device)]


class _Layer:
    """Keys and values of one layer."""

    def __init__(self, heads: int, blocks: int, width: int, kv: KVKind, dtype: torch.dtype, device: torch.device) -> None:
        kind = torch.int8 if kv == "int8" else dtype
        self.dtype = dtype
        # Zeros, because what is hidden by a mask is still multiplied by 0, and 0 times a NaN left in memory is a NaN.
        self.stores = [torch.zeros(heads, blocks, BLOCK * width, dtype=kind, device=device) for _ in range(2)]
        self.scales = [torch.zeros(heads, blocks, BLOCK, device=device) for _ in range(2)] if kv == "int8" else []

    def write(self, slots_N: Tensor, news_NKE: tuple[Tensor, Tensor]) -> None:
        """Keep keys and values of tokens at their slots (block · 16 + place)."""
        for number, new_NKE in enumerate(news_NKE):
            new_KNE = new_NKE.transpose(0, 1)
            if self.scales:
                scale_KN = (new_KNE.float().abs().amax(-1) / 127).clamp(min=1e-30)
                new_KNE = (new_KNE.float() / scale_KN[..., None]).round_()
                self.scales[number].flatten(1)[:, slots_N] = scale_KN
            store = self.stores[number]
            store.view(len(store), -1, new_KNE.shape[-1])[:, slots_N] = new_KNE.to(store.dtype)

    def read(self, table_BP: Tensor, neighbours: int | None) -> list[Tensor]:
        """Keys and values (B, K, S, E) of the blocks of each row; of one row whose blocks begin at `neighbours`, a view."""
        (B, P), out = table_BP.shape, []
        for number, store in enumerate(self.stores):
            part = self._part(store, table_BP, neighbours).view(len(store), B, P * BLOCK, -1)
            if self.scales:
                scale = self._part(self.scales[number], table_BP, neighbours).view(len(store), B, P * BLOCK, 1)
                part = (part * scale).to(self.dtype)
            out.append(part.transpose(0, 1))
        return out

    @staticmethod
    def _part(store: Tensor, table_BP: Tensor, neighbours: int | None) -> Tensor:
        if neighbours is None:
            return store.index_select(1, table_BP.flatten())
        return store[:, neighbours : neighbours + table_BP.shape[1]]

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy whole blocks."""
        for store in (*self.stores, *self.scales):
            store[:, target] = store[:, source]


class _View:
    """The blocks of a group of spans as the decoder's `KeyValueCache`: of a model with a window those that somebody sees."""

    def __init__(
        self, spans: list[Span], longest: int, layers: list[_Layer], *, spare: int, window: int | None, device: torch.device
    ) -> None:  # fmt: skip
        self._layers = layers
        self._fresh = all(span.start == 0 for span in spans)
        self._single = len({span.start for span in spans}) == 1 and longest == 1
        last_B1 = torch.tensor([[span.start + len(span.tokens) - 1] for span in spans], device=device)
        starts_B1 = torch.tensor([[span.start] for span in spans], device=device)
        places_BT = starts_B1 + torch.arange(longest, device=device)
        self._real_BT = places_BT <= last_B1
        self._positions_BT = places_BT.minimum(last_B1)
        self._begin = 0 if window is None else max(0, min(span.start for span in spans) - window + 1)  # the first key seen
        self._passed = self._begin // BLOCK  # blocks before that
        used = [span.blocks[self._passed : blocks_for(span.start + len(span.tokens))] for span in spans]
        most = max(map(len, used))
        self._table_BP = torch.tensor([[*row, *[spare] * (most - len(row))] for row in used], device=device)
        self._slots_N = self._slots(spare)
        self._end = max(span.start + len(span.tokens) for span in spans)
        first = used[0][0]
        self._neighbours = first if len(used) == 1 and list(used[0]) == list(range(first, first + most)) else None

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

    def extend(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValueCache`."""
        news = k_BKTE.transpose(1, 2).flatten(0, 1), v_BKTE.transpose(1, 2).flatten(0, 1)
        self._layers[layer].write(self._slots_N, news)
        if self._fresh:
            return k_BKTE, v_BKTE
        k_BKSE, v_BKSE = self._layers[layer].read(self._table_BP, self._neighbours)
        seen = slice(self._begin - self._passed * BLOCK, self._end - self._passed * BLOCK)
        return k_BKSE[:, :, seen], v_BKSE[:, :, seen]


class _Packed(nn.Module):
    """A linear layer whose matrix lies as oneDNN's kernels want it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        with torch.no_grad():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16().contiguous())
            self.added = None if bias is None else bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out) in bfloat16."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.packed, self.added, "none", [], "")
        return out


def _packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether matrices are packed: bfloat16 on a CPU whose oneDNN computes in it."""
    ready = device.type == "cpu" and dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return ready and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _twin(module: Module, *, pack: bool) -> Module:
    """The same modules in evaluation mode over the same weights; linear layers packed, if so."""
    twin = copy.copy(module)
    twin.training = False
    twin._modules = {
        name: None if child is None
        else _Packed(child.weight, child.bias) if pack and type(child) is Linear
        else _twin(child, pack=pack)
        for name, child in module._modules.items()
    }  # fmt: skip
    return twin


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
