"""The `.bin` files of llama2.c, a LLaMA in one file of C: versions 0 (`run.c`), 1, and 2 (int8, `runq.c`).

Layout (little-endian; L layers; all values float32 unless packed)::

    0:    7 × i32 sizes | embed | L × attn_norm | L × q | L × k | L × v | L × o | L × ff_norm | L × gate | L × down | L × up
          | norm | cosines | sines | unembed, if the vocabulary's size is negative
    1, 2: "24ka" | i32 version | 7 × i32 sizes | u8 tied | (2: i32 group) | zeros up to byte 256 | L × attn_norm
          | L × ff_norm | norm | embed | L × q | L × k | L × v | L × o | L × gate | L × down | L × up | unembed, if not tied

The sizes are width, feed-forward width, layers, heads, key/value heads, vocabulary, context. In version 2 each matrix is
int8 values in groups, followed by a scale a group: weight = value · scale. The tables of cosines and sines are a leftover
that no reader uses. Query and key are in interleaved order (`rows.py`).

The base of the rotary waves and the epsilon of the norms are not stored: the C programs have 10,000 and 1e-5 built in. The
tokenizer is a file of its own (`tokenizer.bin`) and is not read here.

Source: the file formats that karpathy/llama2.c (MIT) writes and reads.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from herdbook.errors import UserError, user_errors
from herdbook.files import atomic_path
from herdbook.interop.checks import first_problem
from herdbook.interop.meta import require_llama
from herdbook.interop.rows import to_halves, to_interleaved, turned_heads
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

MAGIC, HEADER_BYTES = 0x616B3432, 256  # of versions 1 and 2
ROPE_THETA, NORM_EPS = 10_000.0, 1e-5
SIZES = struct.Struct("<7i")

_TABLE = ""  # in place of a parameter's name: half of the rotary tables
_ATTENTION = ("blocks.{n}.attn.q", "blocks.{n}.attn.k", "blocks.{n}.attn.v", "blocks.{n}.attn.o")
_FEED_FORWARD = ("blocks.{n}.ff.gate", "blocks.{n}.ff.down", "blocks.{n}.ff.up")
_LEGACY_ORDER = (
    "embed", "blocks.{n}.attn_norm", *_ATTENTION, "blocks.{n}.ff_norm", *_FEED_FORWARD, "norm", _TABLE, _TABLE, "unembed",
)  # fmt: skip
_ORDER = ("blocks.{n}.attn_norm", "blocks.{n}.ff_norm", "norm", "embed", *_ATTENTION, *_FEED_FORWARD, "unembed")


class Kind(NamedTuple):
    """One entry of the layout: a tensor, or one for each of `copies` layers. `group`: values a scale, 0: not packed."""

    name: str
    shape: tuple[int, ...]
    copies: int
    group: int

    @property
    def nbytes(self) -> int:
        """Bytes of one of its tensors."""
        values = math.prod(self.shape)
        return values + 4 * (values // self.group) if self.group else 4 * values


def layout(cfg: ModelConfig, version: int, group: int = 0) -> list[Kind]:
    """What a file holds after its header, in order; `group` is that of version 2."""
    d, f, v, e = cfg.d_model, cfg.ff_width, cfg.vocabulary, cfg.head_width
    query, key = cfg.n_heads * e, cfg.kv_heads * e
    shapes = {
        "embed": (v, d), "unembed": (v, d), "norm": (d,), _TABLE: (cfg.context, e // 2),
        "blocks.{n}.attn_norm": (d,), "blocks.{n}.ff_norm": (d,),
        **dict(zip(_ATTENTION, ((query, d), (key, d), (key, d), (d, query)), strict=True)),
        **dict(zip(_FEED_FORWARD, ((f, d), (d, f), (f, d)), strict=True)),
    }  # fmt: skip
    return [
        Kind(name, shapes[name], cfg.n_layers if "{n}" in name else 1, group if len(shapes[name]) == 2 else 0)
        for name in (_ORDER if version else _LEGACY_ORDER)
        if not (cfg.tied and name == "unembed")
    ]


def read_llama2c_config(path: Path, *, norm_eps: float = NORM_EPS, rope_theta: float = ROPE_THETA) -> ModelConfig:
    """The config in a file's header; for the arguments and errors see `load_llama2c`."""
    return _read_header(path, norm_eps, rope_theta)[0]


def load_llama2c(
    path: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", norm_eps: float = NORM_EPS,
    rope_theta: float = ROPE_THETA,
) -> Decoder:  # fmt: skip
    """The decoder in a llama2.c file, in evaluation mode; weights in `dtype`, which is also its `compute_dtype`.

    The file is memory-mapped and copied tensor by tensor.

    Args:
        path: the `.bin` file, of version 0, 1 or 2.
        dtype: type of the weights in memory.
        device: where they go.
        norm_eps: added to the variance in norms; not in the file, 1e-5 in the C programs.
        rope_theta: base of the rotary waves; not in the file, 10,000 in the C programs (Code Llama has 1,000,000).

    Raises UserError when there is no such file, its header makes no sense, or the header and its size disagree by a byte.
    """
    cfg, kinds, start = _read_header(path, norm_eps, rope_theta)
    with torch.device("meta"):
        model = Decoder(cfg)
    model = model.to(dtype).to_empty(device=device)
    model.compute_dtype = dtype
    raw = np.asarray(np.memmap(path, np.uint8, "r"))
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for name, kind, place in _places(kinds, start):
            values = torch.from_numpy(_unpack(raw[place : place + kind.nbytes], kind))
            heads = turned_heads(name, cfg)
            ours[name].copy_(values if heads is None else to_halves(values, heads))
    return model.eval()


def _read_header(path: Path, norm_eps: float, rope_theta: float) -> tuple[ModelConfig, list[Kind], int]:
    """Config, layout and where the tensors start. Nothing is allocated by what the header says before it was checked."""
    with user_errors(), path.open("rb") as stream:
        head, size = stream.read(HEADER_BYTES), path.stat().st_size
    if len(head) < SIZES.size:
        raise UserError(f"{size} bytes are too few for a llama2.c model", where=path, todo="fetch the file again")
    version, start = 0, SIZES.size
    if struct.unpack_from("<I", head)[0] == MAGIC:
        version, start = struct.unpack_from("<i", head, 4)[0], HEADER_BYTES
        if version not in (1, 2) or len(head) < HEADER_BYTES:
            what = f"this is a llama2.c file of version {version} with a header of {len(head)} bytes"
            raise UserError(what, where=path, todo="known are 0, and 1 and 2 with a header of 256 bytes")
    cfg = _config(head, version, path, norm_eps, rope_theta)
    kinds = layout(cfg, version, _group(head, cfg, path) if version == 2 else 0)
    wanted = start + sum(kind.copies * kind.nbytes for kind in kinds)
    if wanted != size:
        what = f"the header describes a file of {wanted:,} bytes, and this one has {size:,}"
        raise UserError(what, where=path, todo="it is cut off or damaged: fetch or make it again")
    return cfg, kinds, start


def _config(head: bytes, version: int, path: Path, norm_eps: float, rope_theta: float) -> ModelConfig:
    dim, hidden, layers, heads, kv_heads, vocabulary, context = SIZES.unpack_from(head, 8 if version else 0)
    tied = bool(head[36]) if version else vocabulary > 0
    try:
        return ModelConfig(
            vocab_size=vocabulary if version else abs(vocabulary), d_model=dim, n_layers=layers, n_heads=heads,
            n_kv_heads=kv_heads, d_ff=hidden, context=context, positions="rope", rope_theta=rope_theta, norm="rmsnorm",
            norm_eps=norm_eps, activation="swiglu", bias=False, tied=tied,
        ).resolved()  # fmt: skip
    except ValidationError as error:
        todo = "name a .bin file that llama2.c runs"
        raise UserError(f"this is no llama2.c model ({first_problem(error)})", where=path, todo=todo) from error


def _group(head: bytes, cfg: ModelConfig, path: Path) -> int:
    """Values a scale in version 2. Every matrix has the width on one side, so groups that fit it fill each matrix."""
    group: int = struct.unpack_from("<i", head, 37)[0]
    if group < 1 or cfg.d_model % group:
        todo = "the file is damaged: fetch or make it again"
        raise UserError(f"groups of {group} values do not fill a width of {cfg.d_model}", where=path, todo=todo)
    return group


def _places(kinds: list[Kind], start: int) -> Iterator[tuple[str, Kind, int]]:
    """Name, kind and offset of each parameter, layers written out; the rotary tables are passed over."""
    place = start
    for kind in kinds:
        for n in range(kind.copies):
            if kind.name != _TABLE:
                yield f"{kind.name.format(n=n)}.weight", kind, place
            place += kind.nbytes


def _unpack(raw: NDArray[np.uint8], kind: Kind) -> NDArray[np.float32]:
    """A tensor from its bytes: a copy, in float32."""
    if not kind.group:
        return raw.view("<f4").astype(np.float32).reshape(kind.shape)
    values = math.prod(kind.shape)
    scales = raw[values:].view("<f4").astype(np.float32)
    return (raw[:values].view(np.int8).reshape(-1, kind.group) * scales[:, None]).reshape(kind.shape)


def save_llama2c(model: Decoder, out: Path, *, version: int = 0, group_size: int = 64) -> None:
    """Write a file that llama2.c runs, whole or not at all.

    Args:
        model: a decoder shaped like LLaMA, with the base and the epsilon that are built into the C programs.
        out: the `.bin` file.
        version: 0 for `run.c`; 1 the same with a header; 2 int8 for `runq.c`, a quarter of the size.
        group_size: version 2: the most values that share a scale; a divisor of it that fits both widths is taken.

    Raises UserError, with the fields, for a model of another shape, and for an unknown version.
    """
    cfg = model.cfg
    require_llama(cfg, "llama2.c", rope_theta=ROPE_THETA, norm_eps=NORM_EPS)
    if version not in (0, 1, 2) or group_size < 1:
        raise UserError(f"there is no version {version} with groups of {group_size}", todo="write version 0, 1 or 2")
    group = math.gcd(group_size, cfg.d_model, cfg.ff_width) if version == 2 else 0
    ours = dict(model.named_parameters())
    with atomic_path(out) as aside, aside.open("wb") as stream:
        stream.write(_header(cfg, version, group))
        tables = iter(_rotary_tables(cfg))
        for kind in layout(cfg, version, group):
            for n in range(kind.copies):
                if kind.name == _TABLE:
                    stream.write(next(tables).astype("<f4").tobytes())
                else:
                    _write(stream, _theirs(ours, f"{kind.name.format(n=n)}.weight", cfg), kind.group)


def _header(cfg: ModelConfig, version: int, group: int) -> bytes:
    sign = -1 if version == 0 and not cfg.tied else 1
    sizes = SIZES.pack(
        cfg.d_model, cfg.ff_width, cfg.n_layers, cfg.n_heads, cfg.kv_heads, sign * cfg.vocabulary, cfg.context
    )  # fmt: skip
    if version == 0:
        return sizes
    flags = struct.pack("<B", cfg.tied) + (struct.pack("<i", group) if version == 2 else b"")
    return (struct.pack("<Ii", MAGIC, version) + sizes + flags).ljust(HEADER_BYTES, b"\0")


def _rotary_tables(cfg: ModelConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines and sines (context, E/2): the first `run.c` read them, later ones step over them."""
    waves = ROPE_THETA ** -(np.arange(0, cfg.head_width, 2) / cfg.head_width)
    angles = np.outer(np.arange(cfg.context), waves)
    return np.cos(angles), np.sin(angles)


def _theirs(ours: dict[str, torch.nn.Parameter], name: str, cfg: ModelConfig) -> NDArray[np.float32]:
    values, heads = ours[name].detach().to("cpu", torch.float32), turned_heads(name, cfg)
    if heads is not None and not cfg.rope_interleaved:
        values = to_interleaved(values, heads)
    array: NDArray[np.float32] = values.contiguous().numpy()
    return array


def _write(stream: BinaryIO, values: NDArray[np.float32], group: int) -> None:
    if not group:
        stream.write(values.astype("<f4", copy=False).tobytes())
        return
    groups = values.reshape(-1, group)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    whole = np.round(groups / np.where(scales == 0, 1, scales)[:, None]).astype(np.int8)  # a group of zeros has scale 0
    stream.write(whole.tobytes())
    stream.write(scales.astype("<f4").tobytes())
