"""The engine's backend over the C++ kernels: a step is one call, from token ids to logits, without the interpreter's lock.

- Matrices are multiplied as they are: bfloat16, or `Quantized` in 8 or 4 bits. Activations meet them in bfloat16 and in int8
  with a scale every 32 values; `exact` keeps weights and activations in float32, to compare with.
- A decoder that computes in float32 and holds nothing quantised is run exactly, because that is what its owner asked for.
- Keys and values are bfloat16 (`exact`: float32); with `kv="int8"` a token's key in a head is 8-bit numbers and one scale,
  and so is its value.
- Memory of an embedding that is also the head is there once: rows of it are read from the packed matrix.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from herdbook.errors import UserError
from herdbook.infer.backend import BLOCK, Span
from herdbook.infer.native.binding import ACTIVATIONS, KEYS, POSITIONS, SHAPES, Kernels, LayerC, MatrixC, ModelC, StepC, kernels
from herdbook.infer.native.pack import Packed, gather, norm_of, pack, padded, vector, weights_of
from herdbook.model.attention import alibi_slopes
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Block, Decoder
from herdbook.model.quantized import matrices

KVKind = Literal["auto", "int8"]
WIDEST_HEAD, FARTHEST = 1024, 2**31 - 1
_PAGE = 16


class NativeBackend:
    """See `herdbook.infer.backend.Backend`. Raises UserError where there are no kernels (`native.available`).

    Args:
        model: the decoder, on the CPU. Its weights are copied: later changes to them are not seen.
        blocks: how many blocks to have.
        kv: type of keys and values.
        threads: how many threads compute; None: as many as torch uses.
        exact: weights and activations in float32; None: where the decoder computes in float32 and is not quantised.
        path: the instruction set, see `binding.Kernels.path`.
    """

    def __init__(
        self, model: Decoder, *, blocks: int, kv: KVKind = "auto", threads: int | None = None,
        exact: bool | None = None, path: str | None = None,
    ) -> None:  # fmt: skip
        found, why = kernels()
        if found is None:
            raise UserError(f"the C++ kernels cannot be used: {why}", todo="set backend=torch")
        unfit = self.fits(model.cfg)
        if unfit:
            raise UserError(f"the C++ kernels do not serve {unfit}", todo="set backend=torch")
        self.cfg, self.blocks, self._kernels = model.cfg, blocks, found
        self._exact = _is_exact(model) if exact is None else exact
        self.path, number = found.path(path)
        self.threads = threads or torch.get_num_threads()
        with torch.inference_mode():
            self._weights = _Weights(model, self._exact, found)
            self._stores = _stores(self.cfg, blocks, _keys_kind(self._exact, kv))
        described = self._weights.described
        described.keys_kind, described.exact = KEYS[_keys_kind(self._exact, kv)], self._exact
        described.threads, described.pages = self.threads, blocks
        described.keys, described.values, described.key_scales, described.value_scales = (
            store.data_ptr() for store in self._stores
        )
        self._engine = found.library.hb_new(ctypes.byref(described), number)
        if not self._engine:
            raise MemoryError("no memory for the kernels")
        self._lock = threading.Lock()  # a step works in memory of the engine's
        weakref.finalize(self, found.library.hb_free, self._engine)

    @staticmethod
    def fits(cfg: ModelConfig) -> str | None:
        """What of a config the kernels do not serve, in words; None: they serve all of it."""
        return f"heads wider than {WIDEST_HEAD} values" if cfg.head_width > WIDEST_HEAD else None

    @staticmethod
    def block_bytes(model: Decoder, kv: KVKind = "auto") -> int:
        """Memory of one block."""
        return sum(store.nbytes for store in _stores(model.cfg, 1, _keys_kind(_is_exact(model), kv), device="meta"))

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that a step of one token reads."""
        return self._weights.read_bytes

    def run(self, spans: Sequence[Span]) -> Tensor:
        """See `Backend.run`."""
        counts = [len(span.tokens) for span in spans]
        self._check(spans, counts)
        tokens = np.fromiter((token for span in spans for token in span.tokens), np.int32)
        pages = np.fromiter((block for span in spans for block in span.blocks), np.int32)
        firsts = [0, *accumulate(counts)]
        wanted = [first + place for first, span in zip(firsts, spans, strict=False) for place in span.wanted]
        columns = [np.array(column, np.int32) for column in (
            counts, [span.start for span in spans], [0, *accumulate(len(span.blocks) for span in spans)][:-1], wanted,
        )]  # fmt: skip
        if not len(tokens) or tokens.min() < 0 or tokens.max() >= self.cfg.vocabulary:
            raise ValueError(f"ids must be from 0 to {self.cfg.vocabulary - 1}, and at least one")
        logits = torch.empty(len(wanted), padded(self.cfg.vocabulary))
        step = StepC(
            len(tokens), len(spans), len(wanted), tokens.ctypes.data, *(one.ctypes.data for one in columns[:3]),
            pages.ctypes.data, columns[3].ctypes.data, logits.data_ptr(), logits.shape[1],
        )  # fmt: skip
        with self._lock:
            done = self._kernels.library.hb_run(self._engine, ctypes.byref(step))
        if not done:
            raise MemoryError(f"no memory for a step of {len(tokens)} tokens")
        return logits[:, : self.cfg.vocabulary]

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `Backend.copy`."""
        if pairs:
            source, target = (torch.tensor(column) for column in zip(*pairs, strict=True))
            with torch.inference_mode():
                for store in self._stores:
                    if store.numel():
                        store[:, target] = store[:, source]

    def _check(self, spans: Sequence[Span], counts: Sequence[int]) -> None:
        """Raise ValueError for what would read or write outside of memory."""
        for span, count in zip(spans, counts, strict=True):
            if not count or span.start < 0 or (span.start + count) > len(span.blocks) * BLOCK:
                raise ValueError(f"{count} tokens from {span.start} on in {len(span.blocks)} blocks")
            if min(span.blocks) < 0 or max(span.blocks) >= self.blocks:
                raise ValueError(f"blocks are from 0 to {self.blocks - 1}")
            if any(first >= second for first, second in pairwise([-1, *span.wanted, count])):
                raise ValueError(f"wanted are some of {count} tokens, in their order")
            if self.cfg.positions == "learned" and span.start + count > self.cfg.context:
                raise ValueError(f"{span.start + count} tokens, but there are learned positions for only {self.cfg.context}")


def _is_exact(model: Decoder) -> bool:
    return model.compute_dtype == torch.float32 and not matrices(model)


def _keys_kind(exact: bool, kv: KVKind) -> str:
    return "int8" if kv == "int8" else "float32" if exact else "bfloat16"


def _stores(cfg: ModelConfig, blocks: int, kind: str, device: str = "cpu") -> list[Tensor]:
    """Keys and values of all layers and blocks, and the scales of int8 ones, as `source/layout.h` has them."""
    dtype, shape = getattr(torch, kind), (cfg.n_layers, blocks, cfg.kv_heads)
    keys = torch.zeros(*shape, padded(cfg.head_width, 2), BLOCK, dtype=dtype, device=device)
    values = torch.zeros(*shape, BLOCK, padded(cfg.head_width, _PAGE), dtype=dtype, device=device)
    scaled = BLOCK if kind == "int8" else 0
    return [keys, values, *(torch.zeros(*shape, scaled, device=device) for _ in range(2))]


class _Weights:
    """A decoder's weights in the layout of the kernels, and the structure that describes them.

    Attributes:
        described: points into memory that this object holds.
        read_bytes: bytes of matrices that a step reads.
    """

    def __init__(self, model: Decoder, exact: bool, found: Kernels) -> None:
        self._dtype = torch.float32 if exact else torch.bfloat16
        self._keep: list[Tensor] = []
        head = model.embed if model.unembed is None else model.unembed
        self._packed = self._pack_all([model.project_in, *_linear(model), model.project_out, head], found)
        self.read_bytes = sum(packed.read_bytes for packed in self._packed.values())
        if model.unembed is not None:
            self._packed |= self._pack_all([model.embed], found)
        self._layers = (LayerC * model.cfg.n_layers)(*(self._layer(block) for block in model.blocks))
        self.described = self._describe(model, self._packed[id(head)].native())

    def _pack_all(self, modules: Sequence[nn.Module | None], found: Kernels) -> dict[int, Packed]:
        """The matrices of modules in the order in which a step reads them, by the modules' identity."""
        packed = {
            id(module): pack(weights_of(module), getattr(module, "bias", None), dtype=self._dtype)
            for module in modules
            if module is not None
        }
        gather(list(packed.values()), lambda memory: found.library.hb_huge(memory.data_ptr(), memory.nbytes))
        return packed

    def _matrix(self, module: nn.Module | None) -> MatrixC:
        return MatrixC() if module is None else self._packed[id(module)].native()

    def _layer(self, block: nn.Module) -> LayerC:
        assert isinstance(block, Block)
        norms = (block.attn_norm, block.ff_norm, block.attn.q_norm, block.attn.k_norm)
        return LayerC(*(norm_of(norm, self._keep) for norm in norms), *(self._matrix(module) for module in _products(block)))

    def _describe(self, model: Decoder, head: MatrixC) -> ModelC:
        cfg = model.cfg
        described = ModelC(
            cfg.d_model, cfg.n_layers, cfg.n_heads, cfg.kv_heads, cfg.head_width, cfg.ff_width, cfg.vocabulary, cfg.embed_width,
            POSITIONS[cfg.positions], ACTIVATIONS[cfg.activation], SHAPES[cfg.block], cfg.norm_place == "post",
            cfg.norm == "rmsnorm", cfg.rotary_width, cfg.rope_interleaved, cfg.alibi_falcon,
            eps=cfg.norm_eps, clip=cfg.clip_qkv or 0, rope_factor=cfg.rope_factor if cfg.rope_scaling == "linear" else 1,
            window=min(cfg.window or 0, FARTHEST), layer=self._layers, embed=self._matrix(model.embed), head=head,
            project_in=self._matrix(model.project_in), project_out=self._matrix(model.project_out),
            embed_norm=norm_of(model.embed_norm, self._keep), norm=norm_of(model.norm, self._keep),
        )  # fmt: skip
        exponents = torch.arange(0, cfg.rotary_width, 2, dtype=torch.int64).float() / max(cfg.rotary_width, 1)
        told_by = {"frequencies": 1.0 / cfg.rotary_theta**exponents, "slopes": alibi_slopes(cfg.n_heads, cfg.alibi_max)}
        if model.position_embed is not None:
            told_by["position_table"] = vector(model.position_embed.weight[cfg.position_offset :])
        for name, values in told_by.items():
            self._keep.append(values.contiguous())
            setattr(described, name, self._keep[-1].data_ptr())
        return described


def _products(block: Block) -> list[nn.Module | None]:
    """The matrices of a layer in the order of `LayerC`, which is that of reading."""
    attn, ff = block.attn, block.ff
    return [attn.q, attn.k, attn.v, attn.o, ff.gate, ff.up, ff.down]


def _linear(model: Decoder) -> list[nn.Module | None]:
    return [module for block in model.blocks if isinstance(block, Block) for module in _products(block)]
