"""Keys and values of earlier tokens, rows of different length side by side.

Each row's tokens lie from slot 0 on, without gaps. New tokens of all rows are given right-padded to one length; what the
padding leaves behind a row's end is seen by no query and overwritten by the row's next tokens.

Shapes: B rows, T new tokens, S slots, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from herdbook.model.attention import Sight
from herdbook.model.config import ModelConfig

_STEP = 64  # slots are added in multiples of this, so that growing is rare


class Cache:
    """A dense cache that implements `KeyValueCache`.

    Attributes:
        lengths: tokens held for each row.
    """

    def __init__(self, cfg: ModelConfig, rows: int, *, dtype: torch.dtype, device: torch.device, slots: int = _STEP) -> None:
        shape = (rows, cfg.kv_heads, -(-slots // _STEP) * _STEP, cfg.head_width)
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(cfg.n_layers)]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(cfg.n_layers)]
        self.lengths = [0] * rows

    @property
    def _even(self) -> bool:
        return len(set(self.lengths)) <= 1

    def positions(self, time: int) -> Tensor:
        """Positions (B, T) of the next `time` tokens of each row."""
        device = self._keys[0].device
        return torch.tensor(self.lengths, device=device)[:, None] + torch.arange(time, device=device)

    def key_positions(self, time: int) -> Tensor:
        """Positions (1, S) of the slots up to the longest row's new end: a token's slot is its position."""
        return torch.arange(max(self.lengths) + time, device=self._keys[0].device)[None]

    def sight(self, time: int) -> Sight:
        """What the next `time` queries see; without a mask where all rows are as long."""
        end = max(self.lengths) + time
        self._reserve(end)
        if end == time:
            return Sight(causal=True)
        if time == 1 and self._even:
            return Sight(causal=False)
        slots_S = torch.arange(end, device=self._keys[0].device)
        return Sight((slots_S <= self.positions(time)[..., None])[:, None], causal=False)

    def extend(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values of a layer behind each row's end; all of the layer, up to the longest row's new end."""
        time, longest = k_BKTE.shape[2], max(self.lengths)
        if longest == 0:
            self._keys[layer][:, :, :time], self._values[layer][:, :, :time] = k_BKTE, v_BKTE
            return k_BKTE, v_BKTE
        for store, new in ((self._keys[layer], k_BKTE), (self._values[layer], v_BKTE)):
            if self._even:
                store[:, :, longest : longest + time] = new
            else:
                rows_B1 = torch.arange(len(self.lengths), device=store.device)[:, None]
                store[rows_B1, :, self.positions(time)] = new.transpose(1, 2).to(store.dtype)
        return self._keys[layer][:, :, : longest + time], self._values[layer][:, :, : longest + time]

    def advance(self, counts: Sequence[int]) -> None:
        """Note how many of the tokens just given were real in each row."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def select(self, rows: Sequence[int]) -> Cache:
        """A cache of these rows: fewer to drop what is finished, a row several times to branch from a shared beginning."""
        chosen = object.__new__(Cache)
        index = torch.tensor(rows, dtype=torch.long, device=self._keys[0].device)
        chosen.lengths = [self.lengths[row] for row in rows]
        used = -(-max(chosen.lengths, default=0) // _STEP) * _STEP
        chosen._keys = [keys[:, :, :used].index_select(0, index) for keys in self._keys]
        chosen._values = [values[:, :, :used].index_select(0, index) for values in self._values]
        return chosen

    def _reserve(self, slots: int) -> None:
        have = self._keys[0].shape[2]
        if slots <= have:
            return
        more = -(-max(slots - have, have // 2) // _STEP) * _STEP
        self._keys = [torch.nn.functional.pad(keys, (0, 0, 0, more)) for keys in self._keys]
        self._values = [torch.nn.functional.pad(values, (0, 0, 0, more)) for values in self._values]
