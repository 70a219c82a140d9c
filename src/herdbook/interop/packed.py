"""The weights of a quantised model in a folder: `quantized.safetensors`, and what `config.json` says of it.

    config.json             "model_type": "herdbook", "herdbook": {the shape},
                            "herdbook_quantization": {"format": 1, "matrices": {NAME: {"bits", "group", "affine"}, …}}
    quantized.safetensors   NAME.numbers   I8 (N, K) at 8 bits; U8 (N, K/2) at 4: column 2i in the low half of byte i, 2i + 1 in
                                           the high one, symmetric numbers with 8 added
                            NAME.scale     F16 or F32 (N, G)
                            NAME.least     the same, of affine matrices
                            everything else under its own name, in a floating-point type

NAME is a layer of our decoder (`blocks.0.attn.q`, `embed`); weight[n, k] = scale·number + least, see `model.quantized`. Neither
the model type nor the name of the file is one that transformers knows, so that it refuses the folder and never takes packed
numbers, or nothing, for weights.

Reading trusts nothing: the section is held against the decoder it describes, and the header of the file against both, before
anything is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from herdbook.errors import UserError
from herdbook.files import atomic_path, read_json
from herdbook.interop.checks import narrowed, require_none, require_plausible, sizes
from herdbook.interop.families.base import shown
from herdbook.interop.tensor_files import FLOAT_TYPES, Entry, TensorFile, open_tensors
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.model.quantized import Form, Quantized, contents, matrices, put, with_room

SECTION, FILE, FORMAT = "herdbook_quantization", "quantized.safetensors", 1
LEAST_BITS = 4  # that a weight takes here


# ---- numbers two a byte ----


def in_bytes(matrix: Quantized) -> Tensor:
    """The numbers as they are stored: int8 (N, K), or uint8 (N, K/2). Raises UserError for 4 bits in rows of odd length."""
    if matrix.bits == 8:
        return matrix.numbers
    if matrix.shape[1] % 2:
        raise UserError(f"rows of {matrix.shape[1]} numbers of 4 bits make no whole bytes", todo="quantise it to 8 bits")
    numbers = (matrix.numbers + (0 if matrix.affine else 8)).view(torch.uint8)
    return numbers[:, ::2] | numbers[:, 1::2] << 4


def from_bytes(stored: Tensor, form: Form) -> Tensor:
    """The numbers (N, K), int8, from what `in_bytes` gave."""
    if form.bits == 8:
        return stored
    numbers = torch.stack((stored & 15, stored >> 4), dim=-1).flatten(1).view(torch.int8)
    return numbers if form.affine else numbers - 8


# ---- writing ----


def section_of(model: Decoder) -> dict[str, Any]:
    """What `config.json` says of a quantised model's matrices."""
    rows = {name: matrix.form._asdict() for name, matrix in matrices(model).items()}
    return {"format": FORMAT, "matrices": rows}


def write_packed(model: Decoder, out: Path, dtype: torch.dtype) -> None:
    """Write a quantised model's weights into the folder `out`: what is not quantised in `dtype`, vectors in float32."""
    tensors: dict[str, Tensor] = {}
    for name, held in contents(model).items():
        if not isinstance(held, Quantized):
            tensors[name] = narrowed(held, dtype if held.dim() > 1 else torch.float32, name).contiguous()
            continue
        layer = name.removesuffix(".weight")
        parts = {"numbers": in_bytes(held), "scale": held.scale, "least": held.least}
        tensors |= {f"{layer}.{part}": found.cpu().contiguous() for part, found in parts.items() if found is not None}
    with atomic_path(out / FILE) as aside:
        try:
            save_file(tensors, aside, metadata={"format": "herdbook"})
        except SafetensorError as error:  # a full disk, mostly
            todo = "make room, or write elsewhere"
            raise UserError(f"the weights could not be written ({error})", where=out, todo=todo) from error


# ---- reading ----


def read_section(path: Path) -> object:
    """What a folder's `config.json` says of quantised matrices; None where it says nothing."""
    raw = read_json(path / "config.json", what="model config")
    return raw.get(SECTION) if isinstance(raw, dict) else None


def is_packed(path: Path) -> bool:
    """Whether a quantised model of ours lies in this folder."""
    return (path / FILE).is_file() and read_section(path) is not None


def load_packed(
    path: Path, cfg: ModelConfig, section: object, *, dtype: torch.dtype, device: str | torch.device, packed: bool
) -> Decoder:
    """The decoder in a quantised folder, in evaluation mode.

    Args:
        section: of `config.json`.
        dtype: of what is not quantised, and of the computation.
        packed: keep the matrices as they are; otherwise they are written out in `dtype`, one after the other.

    Raises UserError, with the names, when the section, the shape and the tensors do not belong together.
    """
    file = path / FILE
    if not file.is_file():
        raise UserError("the weights are missing", where=file, todo="fetch the folder again")
    with open_tensors(file) as tensors:
        header = tensors.header()
        require_plausible(
            cfg, stored_bytes=file.stat().st_size, tensors=len(header), where=path, settings="config.json",
            least_bits=LEAST_BITS,
        )  # fmt: skip
        with torch.device("meta"):
            model = Decoder(cfg)
        forms = _forms(section, model, path)
        _require_fit(header, model, forms, path)
        if packed:
            for name, form in forms.items():
                put(model, name, _read(tensors, name, form, file))
        model = with_room(model, dtype, device)
        with torch.no_grad():
            for name, held in contents(model).items():
                if isinstance(held, Tensor):
                    layer = name.removesuffix(".weight")
                    written_out = name.endswith(".weight") and layer in forms
                    held.copy_(_read(tensors, layer, forms[layer], file).dense() if written_out else tensors.tensor(name))
    model.compute_dtype = dtype
    return model.eval()


def _forms(section: object, model: Decoder, path: Path) -> dict[str, Form]:
    """How each matrix is quantised, each a layer of the decoder that can be. Raises UserError for anything else."""
    where, todo = path / "config.json", "the folder was made by another version, or is damaged"
    rows = section.get("matrices") if isinstance(section, dict) and set(section) == {"format", "matrices"} else None
    if not isinstance(section, dict) or section.get("format") != FORMAT or not isinstance(rows, dict) or not rows:
        raise UserError(f"{SECTION} is not of the form that this version reads", where=where, todo=todo)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)}
    forms = {}
    for name, row in rows.items():
        if name not in layers:
            raise UserError(f"{SECTION} names {shown(name)}, which is no matrix of this model", where=where, todo=todo)
        form = _form(row, layers[name].weight.shape[1])
        if form is None:
            raise UserError(f"{SECTION}: {name} cannot be {shown(row)}", where=where, todo=todo)
        forms[name] = form
    return forms


def _form(row: object, columns: int) -> Form | None:
    """What one entry says, or None where a matrix of so many columns cannot be like that."""
    if not isinstance(row, dict) or set(row) != set(Form._fields) or not isinstance(row["affine"], bool):
        return None
    bits, group = row["bits"], row["group"]
    if type(bits) is not int or type(group) is not int or group < 1 or columns % group:
        return None
    if bits == 4 and columns % 2 == 0:
        return Form(4, group, row["affine"])
    return Form(8, group, row["affine"]) if bits == 8 else None


def _require_fit(header: Mapping[str, Entry], model: Decoder, forms: Mapping[str, Form], path: Path) -> None:
    """Every tensor in its type and shape, and nothing besides."""
    wanted: dict[str, tuple[tuple[str, ...], list[int]]] = {}
    for name, parameter in model.named_parameters():
        form = forms.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if form is None:
            wanted[name] = FLOAT_TYPES, list(parameter.shape)
            continue
        layer, (rows, columns) = name.removesuffix(".weight"), parameter.shape
        numbers = (("I8",), [rows, columns]) if form.bits == 8 else (("U8",), [rows, columns // 2])
        wanted[f"{layer}.numbers"] = numbers
        for part in ("scale", "least") if form.affine else ("scale",):
            kind = header.get(f"{layer}.scale", Entry("F16", [])).type  # both are of one type
            wanted[f"{layer}.{part}"] = ("F32",) if kind == "F32" else ("F16",), [rows, columns // form.group]
    wrong = [
        f"{name} ({entry.type} {sizes(entry.shape)} instead of {wanted[name][0][-1]} {sizes(wanted[name][1])})"
        for name, entry in header.items()
        if name in wanted and (entry.type not in wanted[name][0] or entry.shape != wanted[name][1])
    ]
    missing, unknown = [name for name in wanted if name not in header], [name for name in header if name not in wanted]
    problems = {"missing tensors": missing, "unknown tensors": unknown, "tensors that do not fit": wrong}
    require_none(problems, path, "config.json")


def _read(tensors: TensorFile, name: str, form: Form, file: Path) -> Quantized:
    """A matrix, in memory of its own. Raises UserError when its scales are no numbers."""
    scale = tensors.tensor(f"{name}.scale").clone()
    least = tensors.tensor(f"{name}.least").clone() if form.affine else None
    if not all(bool(level.isfinite().all()) for level in (scale, least) if level is not None):
        raise UserError(f"{name} has scales that are no numbers", where=file, todo="the file is damaged")
    return Quantized(form.bits, from_bytes(tensors.tensor(f"{name}.numbers").clone(), form), scale, least)
