"""Models in GGUF files: written for llama.cpp, and read back into our decoder.

Matrices are stored in the wanted type; norms, biases and position tables, which are small and sensitive, in float32, and
under a 4- or 5-bit type the embedding and the head in Q8_0. K-quants are read; the `gguf` package cannot make them. Of a
quantised model each matrix goes out bit for bit in the type that holds it, and comes back so with `packed`.
llama.cpp's llama graph turns neighbours (x[2i], x[2i+1]), so the rows of query and key are permuted on the way out and back:
files where this is forgotten load and babble.

Where the families' own code has the exact GELU, llama.cpp computes the tanh approximation (Falcon, MPT, NeoX); its logits
differ from ours by that much. None of the graphs that we write for looks through a sliding window, so a model with one is
refused on the way out; a file that tells of one is read as the model it was made from, not as llama.cpp runs it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from herdbook.errors import UserError
from herdbook.facts.licenses import find_expression
from herdbook.interop.checks import first_problem, listing, require_none, require_plausible, sizes, window_of
from herdbook.interop.gguf import packed as blocks
from herdbook.interop.gguf.architectures import ARCHITECTURES, Architecture, architecture_of
from herdbook.interop.gguf.container import PLAIN, GGUFFile, TensorSource, open_gguf, write_gguf
from herdbook.interop.rows import stack, to_halves, to_interleaved, turned_heads, unstack
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.model.quantized import Quantized, contents, matrices, put, stacked, with_room
from herdbook.tokenizer import Tokenizer

# The number of each type in `general.file_type`.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
PEDIGREE, NORM = "herdbook.pedigree", "herdbook.norm"  # our own keys: where the file comes from, as JSON; the kind of norm
PARALLEL = "use_parallel_residual"
LEAST_BITS = 1.5  # that a weight takes in the narrowest type
# Keys that follow from others or stand for a default when they are absent, …
MAY_MISS = {"vocab_size", "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.freq_base",
            "rope.dimension_count", "attention.clamp_kqv"}  # fmt: skip
# … and keys that say nothing about what is computed.
NEUTRAL = {"tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned", "vocab_size",
           "attention.key_length", "attention.value_length", "rope.dimension_count", "attention.causal"}  # fmt: skip
WINDOW = "attention.sliding_window"
_ROPE_SCALING = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear")
_FEW_BITS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")


class Slot(NamedTuple):
    """A tensor of the file, and the parameters of ours that it holds, stacked along the outputs."""

    theirs: str
    ours: tuple[str, ...]


# ---- writing ----


def save_gguf(
    model: Decoder, out: Path, *, kind: str = "BF16", tokenizer: Tokenizer | None = None, license_id: str | None = None,
    name: str | None = None, pedigree: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a model as one GGUF file that llama.cpp runs.

    Args:
        model: the decoder.
        out: the file; written whole or not at all.
        kind: type of the matrices, one of `FILE_TYPES`; of a quantised model, of those that are not quantised.
        tokenizer: stored with its chat template; without one llama.cpp takes the file for its weights only.
        license_id: SPDX expression; None is stored as unknown.
        name: how the model is called.
        pedigree: what the file was made from, kept as JSON under our own key.

    Raises UserError when llama.cpp has no code for this shape, naming what is in the way, for a type that cannot be written,
    for quantised matrices that no type holds, and for a tokenizer that it has no form for.
    """
    if kind not in FILE_TYPES:
        raise UserError(f"GGUF files of type {kind!r} are not written", todo=f"known types: {', '.join(FILE_TYPES)}")
    architecture = architecture_of(model.cfg)
    if architecture is None:
        raise UserError(_refusal(model.cfg), where=out, todo="keep it as a Hugging Face folder")
    sources = _sources(model, architecture, kind)
    most = Counter(source.type for source in sources if source.ready).most_common(1)
    metadata = _metadata(model.cfg, architecture, most[0][0] if most else kind)
    metadata |= {"general.name": name} if name else {}
    metadata |= {"general.license": find_expression(license_id).id}
    metadata |= {PEDIGREE: json.dumps(pedigree, sort_keys=True)} if pedigree is not None else {}
    metadata |= _vocabulary(tokenizer, model.cfg)
    write_gguf(out, metadata, sources)


def _refusal(cfg: ModelConfig) -> str:
    """Why no graph fits: what is in the way of the nearest one."""
    nearest = min(ARCHITECTURES, key=lambda row: len(row.why_not(cfg)))
    return f"llama.cpp has no code for this model: its nearest, {nearest.name!r}, lacks {', '.join(nearest.why_not(cfg))}"


def _metadata(cfg: ModelConfig, architecture: Architecture, kind: str) -> dict[str, Any]:
    name = architecture.name
    values = {f"{name}.{key}": getattr(cfg, ours) for key, ours in architecture.keys.items()}
    if cfg.rope_scaling == "linear":
        values |= {f"{name}.rope.scaling.type": "linear", f"{name}.rope.scaling.factor": cfg.rope_factor}
    if PARALLEL in architecture.flags:
        values[f"{name}.{PARALLEL}"] = cfg.block != "sequential"
    if len(architecture.fixed["norm"]) > 1:
        values[NORM] = cfg.norm  # llama.cpp makes no difference, our training does
    head = {"general.architecture": name, "general.type": "model", "general.file_type": FILE_TYPES[kind]}
    return {**head, "general.quantization_version": 2, **{key: value for key, value in values.items() if value is not None}}


def _vocabulary(tokenizer: Tokenizer | None, cfg: ModelConfig) -> dict[str, Any]:
    if tokenizer is None:
        return {"tokenizer.ggml.model": "none"}
    from herdbook.interop.gguf.vocabulary import gguf_metadata_of

    return gguf_metadata_of(tokenizer, cfg.vocabulary)


def _sources(model: Decoder, architecture: Architecture, kind: str) -> list[TensorSource]:
    if kind not in PLAIN and matrices(model):
        todo = "leave the type out, or pack the model that it was quantised from"
        raise UserError(f"this model is quantised already, so it is not packed in {kind}", todo=todo)
    held = contents(model)
    sources = []
    for slot in _slots(architecture, model.cfg, list(held)):
        parts, heads = [held[name] for name in slot.ours], _turned(architecture, model.cfg, slot)
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        if any(isinstance(part, Quantized) for part in parts):
            sources.append(_ready(slot, shape, parts, heads))
            continue
        take = partial(_stacked, [part for part in parts if isinstance(part, Tensor)], heads)
        sources.append(TensorSource(slot.theirs, shape, _type_of(slot, shape, kind), take))
    return sources


def _ready(slot: Slot, shape: tuple[int, ...], parts: Sequence[Tensor | Quantized], heads: int | None) -> TensorSource:
    """Quantised matrices as they are to lie in the file. Raises UserError when no type holds them."""
    quantised = [part for part in parts if isinstance(part, Quantized)]
    whole = stacked(quantised) if len(quantised) == len(parts) else None
    kind = None if whole is None else blocks.kind_for(whole)
    if whole is None or kind is None:
        first = quantised[0]
        form = f"{first.bits} bits, groups of {first.group}, {'affine' if first.affine else 'symmetric'}, {first.scale.dtype}"
        raise UserError(
            f"no GGUF type holds {slot.ours[0]} as it is quantised ({form.replace('torch.', '')} scales)",
            todo="quantise to 4 bits, or 8 symmetric ones, in groups of 32 or several times 32; or keep a folder",
        )
    turned = whole if heads is None else whole.mapped(partial(to_interleaved, heads=heads))
    return TensorSource(slot.theirs, shape, kind, partial(blocks.packed, turned), ready=True)


def _type_of(slot: Slot, shape: Sequence[int], kind: str) -> str:
    if len(shape) == 1 or slot.ours == ("position_embed.weight",):
        return "F32"
    return "Q8_0" if kind in _FEW_BITS and slot.ours[0].startswith(("embed.", "unembed.")) else kind


@torch.no_grad()
def _stacked(parts: Sequence[Tensor], heads: int | None) -> Tensor:
    whole = stack([part.detach().float().cpu() for part in parts])
    return whole if heads is None else to_interleaved(whole, heads)


def _turned(architecture: Architecture, cfg: ModelConfig, slot: Slot) -> int | None:
    """How many heads' rows are to be permuted; None where they are in order already."""
    if not architecture.interleaved or cfg.rope_interleaved:
        return None
    return turned_heads(slot.ours[0], cfg)


def _slots(architecture: Architecture, cfg: ModelConfig, parameters: Sequence[str]) -> list[Slot]:
    """Where each parameter of a model goes, layers written out."""
    known, slots = set(parameters), []
    for theirs, ours in architecture.names.items():
        for n in range(cfg.n_layers) if "{n}" in theirs else [0]:
            for kind in ("weight", "bias"):
                inside = "blocks.{n}." if "{n}" in theirs else ""
                names = tuple(f"{inside}{name}.{kind}".format(n=n) for name in ours)
                if set(names) <= known:
                    slots.append(Slot(f"{theirs}.{kind}".format(n=n), names))
    assert sorted(name for slot in slots for name in slot.ours) == sorted(known), f"the names of {architecture.name} have gaps"
    return slots


# ---- reading ----


def read_gguf_config(file: GGUFFile) -> ModelConfig:
    """The shape of the model in an opened file. Raises UserError when our decoder has none of that kind."""
    return _read_header(file)[1]


def _read_header(file: GGUFFile) -> tuple[Architecture, ModelConfig]:
    architecture = _architecture(file)
    _require_known_keys(file, architecture)
    values: dict[str, Any] = {field: allowed[0] for field, allowed in architecture.fixed.items()}
    for key, ours in architecture.keys.items():
        value = file.metadata.get(f"{architecture.name}.{key}")
        if value is not None and ours in ModelConfig.model_fields:
            values[ours] = _plain(value)
    values |= _rope(file, architecture, values) | _from_tensors(file, architecture)
    window = f"{architecture.name}.{WINDOW}"
    values["window"] = window_of(file.metadata.get(window) or None, values.get("context"), file.path, window)
    if PARALLEL in architecture.flags:
        parallel = file.metadata.get(f"{architecture.name}.{PARALLEL}", True)
        values["block"] = "parallel_two_norms" if parallel else "sequential"
    if file.metadata.get(NORM) in architecture.fixed["norm"]:
        values["norm"] = file.metadata[NORM]
    try:
        cfg = ModelConfig.model_validate(values).resolved()
        size = file.path.stat().st_size
        require_plausible(
            cfg, stored_bytes=size, tensors=len(file.tensors), where=file.path, settings="the header", least_bits=LEAST_BITS
        )
        return architecture, cfg
    except ValidationError as error:
        raise UserError(first_problem(error), where=file.path) from error
    except OverflowError as error:
        raise UserError("some number in the header is too large for any model", where=file.path) from error


def _require_known_keys(file: GGUFFile, architecture: Architecture) -> None:
    """Raise UserError unless the header has what a model needs, and nothing that would change what it computes."""
    prefix = f"{architecture.name}."
    missing = [prefix + key for key in architecture.keys if key not in MAY_MISS and prefix + key not in file.metadata]
    if missing:
        raise UserError(f"the header lacks {listing(missing)}", where=file.path, todo="the file is damaged, or of another kind")
    known = {*architecture.keys, *architecture.flags, *NEUTRAL, *_ROPE_SCALING, WINDOW}
    unknown = [
        f"{key} = {value!r}"[:80]
        for key, value in file.metadata.items()
        if key.startswith(prefix) and key.removeprefix(prefix) not in known and value not in (0, 0.0, False, "", None)
    ]
    if unknown:
        todo = "these settings change what the model computes, and our decoder does not have them"
        raise UserError(f"the header has settings that we do not know: {listing(unknown)}", where=file.path, todo=todo)


def _architecture(file: GGUFFile) -> Architecture:
    """The graph a file is for: of those with its name (Falcon has two) the fullest whose tensors are there."""
    name = file.metadata.get("general.architecture")
    rows = sorted((row for row in ARCHITECTURES if row.name == name), key=lambda row: -len(row.names))
    if not rows:
        known = ", ".join(dict.fromkeys(row.name for row in ARCHITECTURES))
        raise UserError(f"the architecture {name!r} is not one we read", where=file.path, todo=f"known ones: {known}")

    def complete(row: Architecture) -> bool:
        return all(f"{theirs}.weight".format(n=0) in file.tensors for theirs in row.names if theirs.startswith("blk."))

    return next(filter(complete, rows), rows[-1])


def _plain(value: Any) -> Any:
    """A float32 of the file as the decimal number it was made from: 1e-5, not 9.99999974e-06."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _rope(file: GGUFFile, architecture: Architecture, values: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE's base, turned part and scaling, where the architecture has RoPE."""
    if values["positions"] != "rope":
        return {}
    name, found = architecture.name, {"rope_theta": _plain(file.metadata.get(f"{architecture.name}.rope.freq_base", 10_000.0))}
    width = values.get("head_dim") or values.get("d_model", 0) // max(1, values.get("n_heads", 1))
    turned = file.metadata.get(f"{name}.rope.dimension_count", width)
    if width and isinstance(turned, int) and turned != width:
        if "rope_fraction" in architecture.fixed:
            raise UserError(f"{name} with RoPE on a part of the head ({turned} of {width}) is not supported", where=file.path)
        found["rope_fraction"] = turned / width
    old = file.metadata.get(f"{name}.rope.scale_linear")  # of files from before there were types
    kind = file.metadata.get(f"{name}.rope.scaling.type", "none" if old is None else "linear")
    if kind not in ("none", "linear"):
        raise UserError(f"RoPE scaling of type {kind!r} is not supported", where=file.path, todo="known: none, linear")
    factor = file.metadata.get(f"{name}.rope.scaling.factor", 1.0 if old is None else old)
    return {**found, "rope_scaling": "linear", "rope_factor": _plain(factor)} if kind == "linear" and factor != 1 else found


def _from_tensors(file: GGUFFile, architecture: Architecture) -> dict[str, Any]:
    """What only the tensors tell: the vocabulary, a head of its own, biases."""
    if "token_embd.weight" not in file.tensors:
        raise UserError("this file holds no model: there is no tensor token_embd.weight", where=file.path,
                        todo="a vocabulary alone can be used as a tokenizer")  # fmt: skip
    found: dict[str, Any] = {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tied": "output.weight" not in file.tensors,
    }
    for field, names in (("attn_bias", ("attn_q", "attn_qkv")), ("ff_bias", ("ffn_up",)), ("norm_bias", ("attn_norm",))):
        if field not in architecture.fixed and not (field == "norm_bias" and architecture.fixed["norm"][0] == "rmsnorm"):
            found[field] = any(f"blk.0.{name}.bias" in file.tensors for name in names)
    return found


def load_gguf(
    path: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", packed: bool = False
) -> Decoder:
    """The decoder in a GGUF file, in evaluation mode, its weights unpacked to `dtype`, which is also its `compute_dtype`.

    With `packed` the matrices of the types that `gguf.packed` reads stay as they are: no more than one tensor is ever written
    out, and none of those.

    Raises UserError, with the names, when tensors are missing, unknown or of another shape, when the file is not in order,
    or when it holds a model of a kind we do not have.
    """
    file = open_gguf(path)
    architecture, cfg = _read_header(file)
    with torch.device("meta"):
        model = Decoder(cfg)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    slots = _slots(architecture, cfg, list(shapes))
    _require_all(file, slots, shapes)
    kept = [slot for slot in slots if packed and file.tensors[slot.theirs].type in blocks.PACKED and _holds(model, slot)]
    for slot in kept:
        for name, matrix in zip(slot.ours, _read_packed(file, slot, shapes, _turned(architecture, cfg, slot)), strict=True):
            put(model, name.removesuffix(".weight"), matrix)
    model = with_room(model, dtype, device)
    model.compute_dtype = dtype
    held = contents(model)
    for slot in slots:
        if slot not in kept:
            heads, whole = _turned(architecture, cfg, slot), file.tensor(slot.theirs)
            parts = [part for name in slot.ours if isinstance(part := held[name], Tensor)]
            unstack(whole if heads is None else to_halves(whole, heads), parts)
    return model.eval()


def _holds(model: Decoder, slot: Slot) -> bool:
    """Whether the layers of a slot can hold a quantised matrix: by what they are."""
    owners = [model.get_submodule(name.rpartition(".")[0]) for name in slot.ours]
    return slot.theirs.endswith(".weight") and all(isinstance(owner, nn.Linear | nn.Embedding) for owner in owners)


def _read_packed(file: GGUFFile, slot: Slot, shapes: Mapping[str, torch.Size], heads: int | None) -> list[Quantized]:
    info = file.tensors[slot.theirs]
    whole = blocks.unpacked(file.stored(slot.theirs), info.type, (info.shape[0], info.shape[1]))
    if not all(bool(level.isfinite().all()) for level in (whole.scale, whole.least) if level is not None):
        raise UserError(f"{slot.theirs} has scales that are no numbers", where=file.path, todo="the file is damaged")
    turned = whole if heads is None else whole.mapped(partial(to_halves, heads=heads))
    return turned.split([shapes[name][0] for name in slot.ours])


def _require_all(file: GGUFFile, slots: list[Slot], shapes: Mapping[str, torch.Size]) -> None:
    """Every tensor in its shape, and nothing besides, before anything is allocated."""
    wanted = {slot.theirs: (sum(shapes[name][0] for name in slot.ours), *shapes[slot.ours[0]][1:]) for slot in slots}
    wrong = [
        f"{name} ({sizes(file.tensors[name].shape)} instead of {sizes(shape)})"
        for name, shape in wanted.items()
        if name in file.tensors and file.tensors[name].shape != shape
    ]
    unknown = [name for name in file.tensors if name not in wanted]
    missing = [name for name in wanted if name not in file.tensors]
    problems = {"missing tensors": missing, "unknown tensors": unknown, "tensors that do not fit": wrong}
    require_none(problems, file.path, "the header")
