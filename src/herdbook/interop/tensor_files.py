"""Files of named tensors: safetensors, and, only where it is asked for, pickles of tensors.

A pickle is a program: reading one may run anything. `torch.load(weights_only=True)` knows tensors and a few plain types and
refuses all else, so nothing runs; still it stays off unless `allow_pickle` says that the source is trusted. Files are mapped
into memory, not read: a tensor costs memory when it is touched, and none once its file is closed.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from herdbook.errors import UserError
from herdbook.files import read_json

SAFE = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
DAMAGED = "it is cut off or damaged: fetch or make it again"
_TYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Entry(NamedTuple):
    """What a file says of a tensor: the type it is stored in as safetensors spells it (F32, BF16, I64, …), and its shape."""

    type: str
    shape: list[int]


class TensorFile(Protocol):
    """An open file of named tensors."""

    def header(self) -> dict[str, Entry]:
        """What it holds; costs no memory to speak of."""

    def tensor(self, name: str) -> Tensor:
        """A tensor, mapped from the file."""


class _SafeFile:
    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def header(self) -> dict[str, Entry]:
        parts = {name: self.handle.get_slice(name) for name in self.handle.keys()}  # noqa: SIM118  it is no mapping
        return {name: Entry(str(part.get_dtype()), list(part.get_shape())) for name, part in parts.items()}

    def tensor(self, name: str) -> Tensor:
        found: Tensor = self.handle.get_tensor(name)
        return found


class _PickledFile:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def header(self) -> dict[str, Entry]:
        return {name: Entry(_type_name(found), list(found.shape)) for name, found in self.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name].detach()


def _type_name(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return f"{tensor.layout} on {tensor.device}"
    return _TYPE_NAMES.get(tensor.dtype, str(tensor.dtype))


@contextmanager
def open_tensors(file: Path) -> Iterator[TensorFile]:
    """A file of tensors, by its suffix `.safetensors` or `.bin`, closed when the block ends.

    Raises UserError when it is cut off or damaged, or a pickle of more than tensors; nothing in it is executed.
    """
    if file.suffix == ".bin":
        yield _PickledFile(read_pickled(file))
        return
    with file.open("rb"):
        pass  # the library takes a file that may not be read for one that is absent
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            yield _SafeFile(handle)
    except (SafetensorError, struct.error, OverflowError) as error:
        raise UserError(f"this is not a whole safetensors file ({error})", where=file, todo=DAMAGED) from error


def read_pickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickle (.bin, .pth), mapped; files from before torch 1.6 cannot be mapped and are read whole.

    Raises UserError when it is damaged, or a pickle of anything else; nothing in it is executed.
    """
    with file.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:  # torch's own words advise to run it, so they are not passed on
        wish = re.search(r"GLOBAL (\S{1,100})", str(error))
        what = f"more than tensors (it asks for {wish[1]})" if wish else "something else than tensors"
        todo = "nothing in it was run; do not open it with other tools either, unless you know who made it"
        raise UserError(f"this pickle holds {what}, so it is not read", where=file, todo=todo) from error
    except Exception as error:  # a damaged or hostile file raises all sorts of things
        reason = str(error).strip().partition("\n")[0][:100] or type(error).__name__
        raise UserError(f"this is not a whole file of tensors ({reason})", where=file, todo=DAMAGED) from error
    if not isinstance(content, dict) or not content:
        raise UserError("this pickle holds no tensors by name", where=file)
    strange = [name for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if strange:
        raise UserError(f"{str(strange[0])[:60]!r} in this pickle is no tensor", where=file)
    return content


def weight_files(path: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files with a model folder's weights, whole or split; safetensors go before pickles.

    Raises UserError when there are none, a part is missing, an index leads out of the folder, or there are only pickles and
    `allow_pickle` is off.
    """
    for whole, index in (SAFE, PICKLED) if allow_pickle else (SAFE,):
        if (path / whole).is_file():
            return [path / whole]
        if (path / index).is_file():
            return _parts(path / index, suffix=Path(whole).suffix)
    if not allow_pickle and any(found for ending in ("bin", "pt", "pth") for found in path.glob(f"*.{ending}")):
        raise UserError(
            "the weights here are pickled; a pickle can run any program, so they are not read", where=path,
            todo="fetch them as safetensors; or, if you trust where they come from, read only the tensors in them: "
            "--allow-pickle on the command line, allow_pickle=True in Python",
        )  # fmt: skip
    raise UserError("there are no weights here", where=path / SAFE[0], todo="name a folder with model.safetensors")


def _parts(index_file: Path, *, suffix: str) -> list[Path]:
    """The files that an index names; they may not lie elsewhere."""
    index = read_json(index_file, what="weight index")
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError("a weight index has a `weight_map` of tensor names to file names", where=index_file)
    files = [index_file.parent / name for name in sorted(set(places.values()))]
    for name, file in zip(sorted(set(places.values())), files, strict=True):
        if Path(name).name != name or len(name) > 200 or not name.endswith(suffix):
            raise UserError(f"the index names {name[:80]!r}, which is no {suffix} file of this folder", where=index_file)
        if not file.is_file():
            raise UserError("a part of the weights is missing", where=file, todo="fetch the folder again")
    return files
