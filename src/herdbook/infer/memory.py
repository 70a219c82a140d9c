"""Keys and values of one layer in blocks, as torch holds them.

A layer's memory is (K, blocks, 16·E): blocks of a sequence are gathered in pieces of 16·E values and lie as (K, S, E) without
another copy, and where a single sequence has neighbouring blocks it is a view. In 8 bits a token's key in a head is numbers
from -127 to 127 and one scale, so that its largest value is 127, and so is its value: about half of 16 bits' memory.

Shapes: B rows, S slots, K key/value heads, E head width, N tokens of all rows, P padded blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from herdbook.infer.backend import BLOCK
from herdbook.model.config import ModelConfig

KVKind = Literal["auto", "int8"]


@dataclass(frozen=True)
class Memory:
    """Keys and values of one layer.

    Attributes:
        dtype: the model's type, which is what is read.
        keys, values: (K, blocks, 16·E) in that type, or int8.
        key_scales, value_scales: (K, blocks, 16) float32, what an int8 number is to be multiplied by; None in the model's type.
    """

    dtype: torch.dtype
    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @classmethod
    def new(cls, cfg: ModelConfig, blocks: int, kv: KVKind, dtype: torch.dtype, device: torch.device) -> Memory:
        """Room for so many blocks."""
        kind = torch.int8 if kv == "int8" else dtype
        # Zeros, because what is hidden by a mask is still multiplied by 0, and 0 times a NaN left in memory is a NaN.
        stores = [torch.zeros(cfg.kv_heads, blocks, BLOCK * cfg.head_width, dtype=kind, device=device) for _ in range(2)]
        scales = [torch.zeros(cfg.kv_heads, blocks, BLOCK, device=device) if kv == "int8" else None for _ in range(2)]
        return cls(dtype, *stores, *scales)

    @property
    def heads(self) -> int:
        """K."""
        return self.keys.shape[0]

    @property
    def slots(self) -> int:
        """Tokens there is room for."""
        return self.keys.shape[1] * BLOCK

    @property
    def eight_bits(self) -> bool:
        """Whether there are scales."""
        return self.key_scales is not None

    @property
    def parts(self) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
        """Keys and values, each with its scales."""
        return (self.keys, self.key_scales), (self.values, self.value_scales)

    def keep(self, slots_N: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> None:
        """Write keys and values of tokens at their slots (block · 16 + place)."""
        for (store, scales), new_NKE in zip(self.parts, (k_NKE, v_NKE), strict=True):
            new_KNE = new_NKE.transpose(0, 1)
            if scales is not None:
                scale_KN = (new_KNE.float().abs().amax(-1) / 127).clamp(min=1e-30)
                new_KNE = (new_KNE.float() / scale_KN[..., None]).round_()
                scales.flatten(1)[:, slots_N] = scale_KN
            store.view(len(store), -1, new_KNE.shape[-1])[:, slots_N] = new_KNE.to(store.dtype)

    def read(self, table_BP: Tensor, neighbours: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, S, E) of the blocks of each row; of one row whose blocks begin at `neighbours`, a view."""
        (B, P), found = table_BP.shape, []
        for store, scales in self.parts:
            part = _blocks(store, table_BP, neighbours).view(self.heads, B, P * BLOCK, -1)
            if scales is not None:
                scale = _blocks(scales, table_BP, neighbours).view(self.heads, B, P * BLOCK, 1)
                part = (part * scale).to(self.dtype)
            found.append(part.transpose(0, 1))
        return found[0], found[1]

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy whole blocks."""
        for part in self.parts:
            for store in part:
                if store is not None:
                    store[:, target] = store[:, source]


def _blocks(store: Tensor, table_BP: Tensor, neighbours: int | None) -> Tensor:
    if neighbours is None:
        return store.index_select(1, table_BP.flatten())
    return store[:, neighbours : neighbours + table_BP.shape[1]]
