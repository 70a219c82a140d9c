"""Model folders in Hugging Face's layout, written and read by hand.

`config.json` is written so that transformers 5 (`rope_parameters`) and 4 (`rope_theta`) read it alike. A shape that none of
its classes expresses is saved under our own type `herdbook`: everything here reads it, transformers does not. Weights are
safetensors only, because a pickle is a program. Reading goes tensor by tensor into a model that is allocated once, and only
after the headers have shown that every tensor is there in its right shape.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from herdbook.errors import UserError
from herdbook.facts.licenses import find_expression
from herdbook.files import atomic_path, read_json, write_json, write_text
from herdbook.interop.families import FAMILIES, Family, Row, family_of
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OWN_TYPE = "herdbook"
SHARD_BYTES = 5_000_000_000  # what transformers splits at
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


# ---- config.json ----


def read_config(path: Path) -> ModelConfig:
    """The config of a model folder. Raises UserError when there is none, or it says something our decoder cannot do."""
    file = path / "config.json"
    todo = "name a model folder: one with config.json and model.safetensors"
    if not path.exists():
        raise UserError("there is no such model folder", where=path, todo=todo)
    raw = read_json(file, what="model config", todo=todo)
    if not isinstance(raw, dict):
        raise UserError("a model config is a JSON object", where=file)
    model_type = raw.get("model_type")
    family = next((family for family in FAMILIES if family.model_type == model_type), None)
    if family is None and model_type != OWN_TYPE:
        known = ", ".join([*(family.model_type for family in FAMILIES), OWN_TYPE])
        raise UserError(f"the model type {model_type!r} is not one we read", where=file, todo=f"known types: {known}")
    values = raw.get(OWN_TYPE) if family is None else _from_theirs(raw, family, file)
    try:
        return ModelConfig.model_validate(values).resolved()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise UserError(f"{place}: {message}" if place else message, where=file) from error


def _from_theirs(raw: dict[str, Any], family: Family, file: Path) -> dict[str, Any]:
    """Our fields from their config; raises UserError for a setting that our decoder does not have."""
    raw = {**raw, **_rope(raw, file)}
    for key, wanted in family.constants.items():
        if raw.get(key, wanted) != wanted:
            raise UserError(f"{key} is {raw[key]!r}, and only {wanted!r} is supported", where=file)
    ours: dict[str, Any] = {name: allowed[0] for name, allowed in family.fixed.items()}
    origin: dict[str, str] = {}
    for key, name in family.fields.items():
        value = raw.get(key, family.defaults[key])
        if key in family.values:
            if value not in family.values[key]:
                raise UserError(f"{key} {value!r} is not supported", where=file, todo=f"known: {', '.join(family.values[key])}")
            value = family.values[key][value]
        if name in origin and name != "dropout" and ours[name] != value:
            raise UserError(f"{origin[name]} and {key} differ, which is not supported", where=file)
        ours[name], origin[name] = value, key
    return ours


def _rope(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    """The rotary settings of transformers 5 (`rope_parameters`) under the names of transformers 4."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError("rope_parameters is not an object", where=file)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"rotary positions of type {kind!r} are not supported", where=file)
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError("rotary positions on a part of the head are not supported", where=file)
    return {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}


def _to_theirs(cfg: ModelConfig, family: Family) -> dict[str, Any]:
    theirs: dict[str, Any] = dict(family.constants)
    for key, name in family.fields.items():
        value = getattr(cfg, name)
        if key in family.values:
            value = next(other for other, own in family.values[key].items() if own == value)
        theirs[key] = value
    if "rope_theta" in family.fields:
        theirs["rope_parameters"] = {"rope_theta": cfg.rope_theta, "rope_type": "default"}
    return theirs


def config_json(cfg: ModelConfig, *, dtype: torch.dtype = torch.float32, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """What `config.json` says of a decoder, in the words of transformers' class for it, or in ours where it has none."""
    family = family_of(cfg)
    if family is None:
        body: dict[str, Any] = {
            "model_type": OWN_TYPE,
            "architectures": ["HerdbookDecoder"],
            OWN_TYPE: cfg.model_dump(mode="json"),
        }
    else:
        body = {"model_type": family.model_type, "architectures": [family.architecture], **_to_theirs(cfg, family)}
    name = str(dtype).removeprefix("torch.")
    return {**body, "use_cache": True, "dtype": name, "torch_dtype": name, **_token_ids(tokenizer)}


def _token_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Special ids under their names; null where there is none, because transformers' classes have defaults of their own."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}


# ---- writing ----


def save_folder(
    model: Decoder, out: Path, *, tokenizer: Path | Tokenizer | None, chat_template: str | None = None,
    license_id: str | None = None, card: str | None = None, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES,
) -> None:  # fmt: skip
    """Write a model folder that `AutoModelForCausalLM.from_pretrained` opens; other files in `out` stay.

    Args:
        model: the decoder.
        out: the folder; each file is written whole or not at all, config.json last.
        tokenizer: a tokenizer, or a folder that holds one; None: the folder gets none.
        chat_template: a Jinja template to store with the tokenizer.
        license_id: SPDX identifier or expression for the card; None: unknown.
        card: Markdown for README.md below its front matter.
        dtype: type to store the weights in; None: the type they have.
        shard_bytes: a larger model is split over files of about this size.

    Warns (UserWarning) when no class of transformers expresses the model.
    """
    if isinstance(tokenizer, Path):
        tokenizer = Tokenizer.load(tokenizer)
    dtype = dtype or next(model.parameters()).dtype
    family = family_of(model.cfg)
    if family is None:
        warnings.warn("no class of transformers expresses this model: only herdbook will open the folder", stacklevel=2)
    _write_weights(model, family, out, dtype, shard_bytes)
    if tokenizer is not None:
        if chat_template is not None:
            tokenizer = tokenizer.with_chat_template(chat_template)
        tokenizer.save(out)
        write_json(out / "generation_config.json", _generation_config(tokenizer))
    write_text(out / "README.md", _card(model.cfg, license_id, card))
    write_json(out / "config.json", config_json(model.cfg, dtype=dtype, tokenizer=tokenizer))


def _write_weights(model: Decoder, family: Family | None, out: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    ours = dict(model.named_parameters())
    rows = _rows(model, family)
    shards: list[list[Row]] = [[]]
    filled = 0
    for row in rows:
        size = sum(ours[name].numel() for name in row.ours) * dtype.itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(row)
        filled += size
    names = (
        [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))] if len(shards) > 1 else [WEIGHTS]
    )
    for name, shard in zip(names, shards, strict=True):
        with atomic_path(out / name) as aside:
            save_file({row.theirs: _stack(row, ours, dtype) for row in shard}, aside, metadata={"format": "pt"})
    if len(shards) > 1:
        places = {row.theirs: name for name, shard in zip(names, shards, strict=True) for row in shard}
        total = sum(weight.numel() for weight in ours.values()) * dtype.itemsize
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    stale = {WEIGHTS, INDEX, *(path.name for path in out.glob("model-*-of-*.safetensors"))} - set(names)
    for leftover in stale - ({INDEX} if len(shards) > 1 else set()):
        (out / leftover).unlink(missing_ok=True)


@torch.no_grad()
def _stack(row: Row, ours: dict[str, torch.nn.Parameter], dtype: torch.dtype) -> Tensor:
    parts = [ours[name].detach().to("cpu", dtype) for name in row.ours]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return (whole.mT if row.transposed else whole).contiguous()


def _rows(model: Decoder, family: Family | None) -> list[Row]:
    """Where each parameter of this model goes, layers written out."""
    names = [name for name, _ in model.named_parameters()]
    if family is None:
        return [Row(name, (name,)) for name in names]
    rows = []
    for row in family.rows:
        for n in range(model.cfg.n_layers) if "{n}" in row.theirs else [0]:
            full = Row(row.theirs.format(n=n), tuple(name.format(n=n) for name in row.ours), row.transposed)
            if set(full.ours) <= set(names):
                rows.append(full)
    assert sorted(name for row in rows for name in row.ours) == sorted(names), f"the key map of {family.model_type} has gaps"
    return rows


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids for `generate`: a text ends at the end of text, and at the end of a turn where there is a chat template."""
    ends = sorted(tokenizer.end_ids)
    ids = {**_token_ids(tokenizer), "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    return {key: value for key, value in ids.items() if value is not None}


def _card(cfg: ModelConfig, license_id: str | None, body: str | None) -> str:
    """README.md: front matter that model hubs read, then prose."""
    license_ = find_expression(license_id)
    plain = " AND " not in license_.id and not license_.id.startswith("LicenseRef-")
    terms = f"license: {license_.id.lower()}" if plain else f"license: other\nlicense_name: {license_.id}"
    heads = "multi-head" if cfg.kv_heads == cfg.n_heads else "multi-query" if cfg.kv_heads == 1 else "grouped-query"
    shape = (
        f"A decoder of {cfg.parameters():,} parameters: {cfg.n_layers} layers of width {cfg.d_model}, {cfg.n_heads} heads "
        f"({heads} attention), {cfg.activation}, {cfg.norm}, {cfg.positions} positions, {cfg.vocabulary:,} tokens, context "
        f"{cfg.context:,}."
    )
    front = f"---\n{terms}\npipeline_tag: text-generation\nlibrary_name: transformers\ntags:\n- herdbook\n---\n"
    return (
        f"{front}\n{(body or '# A language model made with herdbook').strip()}\n\n{shape}\n\nLicence: {license_.in_words()}.\n"
    )


# ---- reading ----


def load_folder(path: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Decoder:
    """The decoder in a model folder, in evaluation mode; weights in `dtype`, which is also its `compute_dtype`.

    Raises UserError, with the names, when tensors are missing, unknown, of another shape or type, when a file is cut off or
    no safetensors file, or when there are only pickled weights.
    """
    cfg = read_config(path)
    raw_type = read_json(path / "config.json").get("model_type")
    family = next((family for family in FAMILIES if family.model_type == raw_type), None)
    files = _weight_files(path)
    size = sum(file.stat().st_size for file in files)
    if cfg.parameters() > size:  # before anything is built: a broken config could ask for more than the machine has
        raise UserError(
            f"config.json describes {cfg.parameters():,} parameters, and the weights have only {size:,} bytes", where=path,
            todo="the folder is incomplete, or config.json belongs to another model",
        )  # fmt: skip
    with torch.device("meta"):
        model = Decoder(cfg)
    rows = {row.theirs: row for row in _rows(model, family)}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    places = _find_tensors(files, rows, shapes, family, path)
    model = model.to(dtype).to_empty(device=device)
    model.compute_dtype = dtype
    ours = dict(model.named_parameters())
    for file in files:
        with _opened(file) as tensors:
            for stored, name in places[file].items():
                _unstack(tensors.get_tensor(stored), rows[name], ours)
    return model.eval()


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder, whole or split. Names in an index may not lead elsewhere."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        index = read_json(path / INDEX, what="weight index")
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
            raise UserError("a weight index has a `weight_map` of tensor names to file names", where=path / INDEX)
        names = sorted(set(places.values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(f"the index names {name!r}, which is no safetensors file of this folder", where=path / INDEX)
            if not (path / name).is_file():
                raise UserError("a part of the weights is missing", where=path / name, todo="fetch the folder again")
        return [path / name for name in names]
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        todo = "convert them to safetensors first, on a machine where you trust the file"
        raise UserError(
            "the weights here are pickled; a pickle can run any program, so they are not read", where=path, todo=todo
        )
    raise UserError("there are no weights here", where=path / WEIGHTS, todo="name a folder with model.safetensors")


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            yield tensors
    except (SafetensorError, struct.error, OverflowError) as error:
        todo = "it is cut off or damaged: fetch or make it again"
        raise UserError(f"this is not a whole safetensors file ({error})", where=file, todo=todo) from error


def _find_tensors(
    files: list[Path], rows: dict[str, Row], shapes: dict[str, torch.Size], family: Family | None, path: Path
) -> dict[Path, dict[str, str]]:
    """For each file, the stored names to read and the names they stand for; raises UserError unless all is as it should be."""
    places: dict[Path, dict[str, str]] = {}
    found: set[str] = set()
    unknown, wrong = [], []
    for file in files:
        places[file] = {}
        with _opened(file) as tensors:
            for stored in tensors.keys():  # noqa: SIM118  no mapping: it has keys and nothing else
                name = _known_name(stored, rows, family)
                if name is None:
                    if not _ignorable(stored, family, rows):
                        unknown.append(stored)
                    continue
                part = tensors.get_slice(stored)
                problem = _misfit(list(part.get_shape()), part.get_dtype(), rows[name], shapes)
                if problem:
                    wrong.append(f"{stored} {problem}")
                places[file][stored] = name
                found.add(name)
    missing = [name for name in rows if name not in found]
    for names, what in ((missing, "missing tensors"), (unknown, "unknown tensors"), (wrong, "tensors that do not fit")):
        if names:
            todo = "config.json and the weights do not belong together, or the weights are of another kind of model"
            raise UserError(f"{what}: {_listing(names)}", where=path, todo=todo)
    return places


def _known_name(stored: str, rows: dict[str, Row], family: Family | None) -> str | None:
    if stored in rows:
        return stored
    longer = f"{family.prefix}{stored}" if family is not None else stored
    return longer if longer in rows else None


def _ignorable(stored: str, family: Family | None, rows: dict[str, Row]) -> bool:
    """Buffers of old versions, and the copy of a tied head."""
    if family is None:
        return False
    return stored.endswith(family.ignored) or (stored == "lm_head.weight" and stored not in rows)


def _misfit(shape: list[int], kind: str, row: Row, shapes: dict[str, torch.Size]) -> str | None:
    """What is wrong with a stored tensor, or None."""
    first = shapes[row.ours[0]]
    wanted = [sum(shapes[name][0] for name in row.ours), *first[1:]]
    if row.transposed:
        wanted.reverse()
    if kind not in FLOAT_TYPES:
        return f"(of type {kind}; floating point is needed)"
    return None if shape == wanted else f"({'×'.join(map(str, shape))} instead of {'×'.join(map(str, wanted))})"


def _listing(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@torch.no_grad()
def _unstack(stored: Tensor, row: Row, ours: dict[str, torch.nn.Parameter]) -> None:
    whole = stored.mT if row.transposed else stored
    start = 0
    for name in row.ours:
        end = start + ours[name].shape[0]
        ours[name].copy_(whole[start:end])
        start = end
