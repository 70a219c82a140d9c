"""The GGUF container, versions 2 and 3: a header of keys and values, a table of tensors, their bytes.

Layout (all little-endian; a string is a u64 length and UTF-8, an array is u32 type, u64 count, the values):

    "GGUF" | u32 version | u64 tensors | u64 keys | keys × (string, u32 type, value)
           | tensors × (string, u32 dimensions, dimensions × u64, u32 type, u64 offset) | padding | tensor bytes

Reading trusts nothing: every length is held against the bytes that are left before anything is allocated, and a file that
is not in order is one `UserError`. Tensors are read and written one by one, so a model never has to fit into memory twice.
Packed types are packed and unpacked by the `gguf` package; F32, F16 and BF16 need no package.

Sources: the specification (docs/gguf.md of ggml) and, for what it leaves open, what llama.cpp accepts.
"""

from __future__ import annotations

import importlib
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from herdbook.errors import UserError, user_errors
from herdbook.files import atomic_path

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
MAX_VALUES = 1 << 25  # keys, array entries and tensors together; the largest vocabularies have some 10⁶ of them
MAX_DIMENSIONS = 4
MAX_KEY, MAX_NAME = 65_535, 63  # bytes; the specification's limit for a key, llama.cpp's for the name of a tensor
MAX_ALIGNMENT = 1 << 20
CHUNK = 1 << 20  # values packed or unpacked at a time


class TensorType(NamedTuple):
    """How a type of tensor is stored: `nbytes` bytes hold `block` values of one row."""

    code: int
    block: int
    nbytes: int


TYPES = {
    "F32": TensorType(0, 1, 4), "F16": TensorType(1, 1, 2), "BF16": TensorType(30, 1, 2), "F64": TensorType(28, 1, 8),
    "I8": TensorType(24, 1, 1), "I16": TensorType(25, 1, 2), "I32": TensorType(26, 1, 4), "I64": TensorType(27, 1, 8),
    "Q4_0": TensorType(2, 32, 18), "Q4_1": TensorType(3, 32, 20), "Q5_0": TensorType(6, 32, 22),
    "Q5_1": TensorType(7, 32, 24), "Q8_0": TensorType(8, 32, 34),
    "Q2_K": TensorType(10, 256, 84), "Q3_K": TensorType(11, 256, 110), "Q4_K": TensorType(12, 256, 144),
    "Q5_K": TensorType(13, 256, 176), "Q6_K": TensorType(14, 256, 210),
    "IQ1_S": TensorType(19, 256, 50), "IQ1_M": TensorType(29, 256, 56), "IQ2_XXS": TensorType(16, 256, 66),
    "IQ2_XS": TensorType(17, 256, 74), "IQ2_S": TensorType(22, 256, 82), "IQ3_XXS": TensorType(18, 256, 98),
    "IQ3_S": TensorType(21, 256, 110), "IQ4_NL": TensorType(20, 32, 18), "IQ4_XS": TensorType(23, 256, 136),
    "TQ1_0": TensorType(34, 256, 54), "TQ2_0": TensorType(35, 256, 66), "MXFP4": TensorType(39, 32, 17),
}  # fmt: skip
PLAIN = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
# The `gguf` package unpacks the K types and packs only these.
WRITABLE = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
LARGEST_HALF = 65_504.0  # scales of packed types are stored as F16
_NAMES = {kind.code: name for name, kind in TYPES.items()}

STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
_NUMBER_CODES = {np.dtype(name): code for code, name in NUMBERS.items()}


def block_size(kind: str) -> int:
    """How many values of a row a type packs together: rows must be a multiple of it. Raises UserError for unknown types."""
    if kind not in TYPES:
        raise UserError(f"there is no GGUF tensor type {kind!r}", todo=f"known types: {', '.join(TYPES)}")
    return TYPES[kind].block


def stored_type(kind: str, shape: Sequence[int]) -> str:
    """The type `write_gguf` stores a tensor of this shape in: `kind`, or F16 where rows do not divide into its blocks."""
    row = shape[-1] if shape else 1
    return kind if row % block_size(kind) == 0 else "F16"


# ---- reading ----


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of a tensor: `shape` in torch's order (rows last), `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file whose header was read and found in order; tensors stay on the disk until they are asked for.

    Attributes:
        path: the file.
        version: 2 or 3.
        metadata: keys to strings, numbers, bools, and lists of these.
        tensors: names to what is known of them, in the order of the file.
    """

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    _identity: tuple[int, ...]

    def tensor(self, name: str) -> Tensor:
        """A tensor: in its own type where torch has it (F32, F16, BF16, …), else unpacked to float32.

        Raises UserError when there is none of that name, the file has changed since it was opened, or the type is packed
        and the `gguf` package is missing.
        """
        raw, info = self.stored(name), self.tensors[name]
        values = raw.view(PLAIN[info.type]) if info.type in PLAIN else _unpack(raw.numpy(), info.type)
        return values.reshape(info.shape)

    def stored(self, name: str) -> Tensor:
        """The bytes of a tensor as they are in the file, uint8. Raises UserError as `tensor` does."""
        if name not in self.tensors:
            raise UserError(f"there is no tensor {_shown(name)}", where=self.path)
        info = self.tensors[name]
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        with user_errors(), self.path.open("rb") as stream:
            stream.seek(info.offset)
            whole = stream.readinto(raw.numpy().data) == info.nbytes
            if not whole or _identity(stream) != self._identity:
                raise UserError("the file changed while it was being read", where=self.path, todo="start again")
        return raw


def open_gguf(path: Path | str) -> GGUFFile:
    """Read the header of a GGUF file. Raises UserError when it is absent, cut off, or not in order."""
    path = Path(path)
    with user_errors(), path.open("rb") as stream:
        identity, size = _identity(stream), os.fstat(stream.fileno()).st_size
        if size < 24:
            raise UserError("this is not a GGUF file: it is too short", where=path)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            version, metadata, tensors = _Header(content, size, path).read()
    return GGUFFile(path, version, metadata, tensors, identity)


def _identity(stream: BinaryIO) -> tuple[int, ...]:
    state = os.fstat(stream.fileno())
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


class _Header:
    """A walk over the header: `at` is the next byte, `left` how many more values the file may ask us to hold."""

    def __init__(self, content: mmap.mmap, size: int, path: Path) -> None:
        self.content, self.size, self.path = content, size, path
        self.at, self.left = 0, MAX_VALUES

    def read(self) -> tuple[int, dict[str, Any], dict[str, TensorInfo]]:
        """Version, metadata and tensors."""
        if self.take(4, "its first bytes") != MAGIC:
            raise self.wrong("this is not a GGUF file: it does not begin with GGUF")
        version = self.number("<I", "the version")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3)
            what = "it is in big-endian order" if swapped else f"its version is {version}, and only 2 and 3 are supported"
            raise self.wrong(what, todo="convert the model anew with a current llama.cpp, on a little-endian machine")
        n_tensors, n_keys = self.number("<Q", "the count of tensors"), self.number("<Q", "the count of keys")
        self.allow(n_keys, 13, "keys")  # a key is at least its length, a type and a byte
        self.allow(n_tensors, 24, "tensors")
        metadata: dict[str, Any] = {}
        for index in range(n_keys):
            key = self.string(f"key {index}", MAX_KEY)
            if not key or key in metadata:
                raise self.wrong(f"the key {_shown(key)} is there twice" if key else f"key {index} has no name")
            metadata[key] = self.value(self.number("<I", _shown(key)), _shown(key))
        return version, metadata, self.table(n_tensors, metadata.get("general.alignment", ALIGNMENT))

    def table(self, count: int, alignment: Any) -> dict[str, TensorInfo]:
        """The tensors, each inside the file and none over another."""
        sound = isinstance(alignment, int) and not isinstance(alignment, bool) and 8 <= alignment <= MAX_ALIGNMENT
        if not sound or alignment & (alignment - 1):
            raise self.wrong(f"general.alignment is {alignment!r}, and must be a power of two from 8 to {MAX_ALIGNMENT}")
        rows: dict[str, TensorInfo] = {}
        for index in range(count):
            info = self.row(index, alignment)
            if info.name in rows:
                raise self.wrong(f"the tensor {_shown(info.name)} is there twice")
            rows[info.name] = info
        start = -(-self.at // alignment) * alignment
        placed = {
            name: TensorInfo(name, info.shape, info.type, start + info.offset, info.nbytes) for name, info in rows.items()
        }
        for info in placed.values():
            if info.offset + info.nbytes > self.size:
                raise self.wrong(
                    f"the tensor {_shown(info.name)} ends at byte {info.offset + info.nbytes}, and the file at {self.size}",
                    todo="the file is incomplete: fetch it again",
                )
        for first, second in pairwise(sorted(placed.values(), key=lambda info: info.offset)):
            if first.offset + first.nbytes > second.offset:
                raise self.wrong(f"the tensors {_shown(first.name)} and {_shown(second.name)} overlap")
        return placed

    def row(self, index: int, alignment: int) -> TensorInfo:
        """One row of the table of tensors, its offset still from the start of the tensor bytes."""
        name = self.string(f"the name of tensor {index}", MAX_KEY)
        shown = f"the tensor {_shown(name)}"
        dimensions = self.number("<I", shown)
        if dimensions > MAX_DIMENSIONS:
            raise self.wrong(f"{shown} has {dimensions} dimensions, and at most {MAX_DIMENSIONS} are possible")
        shape = tuple(reversed([self.number("<Q", shown) for _ in range(dimensions)]))
        code, offset = self.number("<I", shown), self.number("<Q", shown)
        if code not in _NAMES:
            raise self.wrong(f"{shown} is of type {code}, which is not one we read", todo=f"known types: {', '.join(TYPES)}")
        kind = TYPES[_NAMES[code]]
        row, values = shape[-1] if shape else 1, math.prod(shape)
        if not values or row % kind.block:
            raise self.wrong(f"{shown} has the shape {shape}, which the type {_NAMES[code]} cannot have")
        if offset % alignment:
            raise self.wrong(f"{shown} is at offset {offset}, which is not a multiple of {alignment}")
        return TensorInfo(name, shape, _NAMES[code], offset, values // kind.block * kind.nbytes)

    def value(self, code: int, key: str) -> Any:
        """The value of a key."""
        if code == STRING:
            return self.string(key, self.size)
        if code != ARRAY:
            return self.numbers(code, 1, key)[0]
        entry, count = self.number("<I", key), self.number("<Q", key)
        if entry == ARRAY:
            raise self.wrong(f"{key} is an array of arrays, which is not supported")
        self.allow(count, 8 if entry == STRING else 1, f"values in {key}")
        return [self.string(key, self.size) for _ in range(count)] if entry == STRING else self.numbers(entry, count, key)

    def numbers(self, code: int, count: int, key: str) -> list[Any]:
        """Numbers or bools of one type."""
        if code != BOOL and code not in NUMBERS:
            raise self.wrong(f"{key} is of type {code}, which does not exist")
        dtype = np.dtype(NUMBERS.get(code, "u1"))
        values = np.frombuffer(self.take(count * dtype.itemsize, key), dtype)
        if code == BOOL:
            if (values > 1).any():
                raise self.wrong(f"{key} should be true or false, and is neither")
            values = values.astype(bool)
        found: list[Any] = values.tolist()
        return found

    def string(self, key: str, limit: int) -> str:
        """A text of at most `limit` bytes."""
        length = self.number("<Q", key)
        if length > limit:
            raise self.wrong(f"the file is cut off, or {key} has an impossible length ({length} bytes)")
        try:
            return self.take(length, key).decode()
        except UnicodeDecodeError:
            raise self.wrong(f"{key} is not UTF-8 text") from None

    def number(self, form: str, key: str) -> int:
        """A number of the header's own."""
        found: int = struct.unpack(form, self.take(struct.calcsize(form), key))[0]
        return found

    def take(self, count: int, what: str) -> bytes:
        """The next bytes, once it is sure that they are there."""
        if count > self.size - self.at:
            raise self.wrong(f"the file is cut off, or damaged, at {what}", todo="fetch it again")
        self.at += count
        return self.content[self.at - count : self.at]

    def allow(self, count: int, each: int, what: str) -> None:
        """Refuse more values than the bytes that are left can hold, or than any model has."""
        self.left -= count
        if count * each > self.size - self.at or self.left < 0:
            raise self.wrong(f"the file claims {count} {what}, which it cannot hold")

    def wrong(self, what: str, todo: str = "this file is damaged, or was made by a broken tool") -> UserError:
        """The error to raise, with the place."""
        return UserError(f"{what} (byte {self.at})", where=self.path, todo=todo)


def _shown(name: str) -> str:
    """A name from a file, short and on one line."""
    return repr(name if len(name) <= 80 else name[:80] + "…")


def _quants(kind: str) -> tuple[Any, Any]:
    """The module that packs and unpacks, and its name for a type."""
    try:
        gguf, quants = importlib.import_module("gguf"), importlib.import_module("gguf.quants")
    except ImportError:
        raise UserError(f"the type {kind} needs the `gguf` package", todo="pip install 'herdbook[gguf]'") from None
    return quants, gguf.GGMLQuantizationType[kind]


def _unpack(raw: np.ndarray[Any, Any], kind: str) -> Tensor:
    """Float32 values of packed bytes, some blocks at a time: the package makes several copies of what it is given."""
    quants, theirs = _quants(kind)
    block, nbytes = TYPES[kind].block, TYPES[kind].nbytes
    values = np.empty(len(raw) // nbytes * block, np.float32)
    step = CHUNK // block
    for start in range(0, len(raw) // nbytes, step):
        part = raw[start * nbytes : (start + step) * nbytes]
        with np.errstate(all="ignore"):  # a damaged scale is infinite or no number, and the values are then too
            values[start * block : (start + step) * block] = quants.dequantize(part.reshape(1, -1), theirs)[0]
    return torch.from_numpy(values)


# ---- writing ----


class TensorSource(NamedTuple):
    """A tensor to write: its name, shape in torch's order, type to store it in, and what gives its values.

    With `ready` it gives the blocks of the type as they are to lie in the file, uint8.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    values: Callable[[], Tensor]
    ready: bool = False


def write_gguf(path: Path | str, metadata: Mapping[str, Any], tensors: Sequence[TensorSource]) -> None:
    """Write a GGUF file, whole or not at all, with one tensor in memory at a time.

    Args:
        path: the file to write.
        metadata: keys to strings, bools, ints (u32, or what is wide enough), floats (f32), lists of these (ints: i32), or
            numpy scalars and arrays, which keep their type. An empty list is one of strings.
        tensors: what to store; each one's values are asked for once, in this order. A type whose blocks do not divide the
            rows is stored as F16 (see `stored_type`).

    Raises UserError for a type that cannot be written, and for values that a type cannot hold; ValueError for metadata that
    has no place in GGUF, names that are too long or not unique, and values of another shape than announced.
    """
    path, kinds = Path(path), [stored_type(tensor.type, tensor.shape) for tensor in tensors]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    for kind in kinds:
        if kind not in WRITABLE:
            raise UserError(f"tensors of type {kind} can be read, not written", todo=f"choose one of {', '.join(WRITABLE)}")
        if kind not in PLAIN and not all(tensor.ready for tensor in tensors if tensor.type == kind):
            _quants(kind)  # it is better to miss the package now than after half of the file
    head = _head(metadata, tensors, kinds, alignment)
    with atomic_path(path) as aside, aside.open("wb") as stream:
        stream.write(head)
        for tensor, kind in zip(tensors, kinds, strict=True):
            stream.write(bytes(-stream.tell() % alignment))
            for part in _content(tensor, kind):
                stream.write(part)
        stream.write(bytes(-stream.tell() % alignment))


def _head(metadata: Mapping[str, Any], tensors: Sequence[TensorSource], kinds: Sequence[str], alignment: int) -> bytes:
    """All bytes before the first tensor."""
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError("two tensors have the same name")
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += [_text(key) + _value(key, value) for key, value in metadata.items()]
    offset = 0
    for tensor, kind in zip(tensors, kinds, strict=True):
        name = _text(tensor.name)
        if len(name) - 8 > MAX_NAME or math.prod(tensor.shape) < 1 or len(tensor.shape) > MAX_DIMENSIONS:
            raise ValueError(f"GGUF has no place for a tensor {tensor.name!r} of shape {tensor.shape}")
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        parts.append(name + dimensions + struct.pack("<IQ", TYPES[kind].code, offset))
        nbytes = math.prod(tensor.shape) // TYPES[kind].block * TYPES[kind].nbytes
        offset += nbytes + -nbytes % alignment
    return b"".join(parts)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(key: str, value: Any) -> bytes:
    """The type and bytes of a value. Raises ValueError for what GGUF has no type for."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(_text(entry) for entry in value)
    try:
        array = np.asarray(value)
        if isinstance(value, (int, list, tuple)) and array.dtype.kind == "i":
            array = array.astype(_integer_type(array, listed=array.ndim == 1))
        elif isinstance(value, (float, list, tuple)) and array.dtype.kind == "f" and not isinstance(value, np.generic):
            array = array.astype(np.float32)
        code = BOOL if array.dtype == bool else _NUMBER_CODES[array.dtype.newbyteorder("<")]
    except (ValueError, OverflowError, KeyError):
        raise ValueError(f"GGUF has no type for the value of {key!r}: {type(value).__name__}") from None
    if array.ndim > 1:
        raise ValueError(f"GGUF has no type for the value of {key!r}: an array of arrays")
    count = struct.pack("<IQ", code, len(array)) if array.ndim else b""
    return struct.pack("<I", ARRAY if array.ndim else code) + count + array.astype(array.dtype.newbyteorder("<")).tobytes()


def _integer_type(array: np.ndarray[Any, Any], *, listed: bool) -> str:
    """Where llama.cpp looks for an integer: one of its own in u32, those of a list in i32; wider where it must be."""
    low, high = int(array.min()), int(array.max())
    narrow = ["i4", "u4"] if listed or low < 0 else ["u4"]
    fitting = [name for name in narrow if np.iinfo(name).min <= low and high <= np.iinfo(name).max]
    return fitting[0] if fitting else "i8"


def _content(tensor: TensorSource, kind: str) -> Iterator[bytes]:
    """The bytes of a tensor. Raises ValueError when they are not what was announced."""
    values = tensor.values()
    if not tensor.ready:
        if tuple(values.shape) != tuple(tensor.shape):
            raise ValueError(f"{tensor.name} was announced as {tensor.shape} and is {tuple(values.shape)}")
        yield from _packed(values, kind, tensor.name)
        return
    if values.dtype != torch.uint8 or values.numel() != math.prod(tensor.shape) // TYPES[kind].block * TYPES[kind].nbytes:
        raise ValueError(f"{tensor.name} was announced as {tensor.shape} in {kind}, which is another number of bytes")
    yield values.cpu().contiguous().numpy().tobytes()


def _packed(values: Tensor, kind: str, name: str) -> Iterator[bytes]:
    """The bytes of a tensor in a type, some values at a time."""
    flat = values.detach().to("cpu").contiguous().reshape(-1)
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        if kind in PLAIN:
            stored = part.to(PLAIN[kind])
            if kind == "F16" and not torch.isfinite(stored).all():
                raise _unfit(name, kind)
            yield stored.view(torch.uint8).numpy().tobytes()
            continue
        part = part.to(torch.float32)
        if not part.abs().max() <= LARGEST_HALF:  # written so that it is true of what is no number
            raise _unfit(name, kind)
        quants, theirs = _quants(kind)
        with np.errstate(all="ignore"):  # values too small for a scale become zero
            yield quants.quantize(part.numpy().reshape(1, -1), theirs).tobytes()


def _unfit(name: str, kind: str) -> UserError:
    what = f"the tensor {_shown(name)} has values that {kind} cannot hold: too large, infinite or no number"
    return UserError(what, todo="choose BF16 or F32; if it is infinite there too, the model is broken")
