"""Model folders in Hugging Face's layout, written and read by hand, for every family that transformers has a class for.

What `config.json` says is in `hf_config`, where tensors go in `families`, how files are opened in `tensor_files`. Reading goes
tensor by tensor, from files that are mapped into memory, into a model that is allocated once, in the type that was asked for,
and only after the headers have shown that every tensor is there in its right shape.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from herdbook.errors import UserError
from herdbook.facts.licenses import find_expression
from herdbook.files import atomic_path, write_json, write_text
from herdbook.interop.checks import narrowed, require_none, require_plausible, sizes
from herdbook.interop.families import Family, Row, family_of
from herdbook.interop.hf_config import config_json, read_config, read_config_and_family, token_ids
from herdbook.interop.packed import FILE, SECTION, load_packed, read_section, section_of, write_packed
from herdbook.interop.rows import stack, unstack
from herdbook.interop.tensor_files import FLOAT_TYPES, SAFE, Entry, open_tensors, weight_files
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.model.quantized import matrices
from herdbook.tokenizer import Tokenizer

__all__ = ["config_json", "load_folder", "read_config", "save_folder"]

WEIGHTS, INDEX = SAFE
SHARD_BYTES = 5_000_000_000  # what transformers splits at
COMPARED_ROWS = 4096  # of a tied head at a time, so that comparing takes no memory to speak of

Weights = dict[str, torch.nn.Parameter]  # ours, by name


# ---- where tensors go ----


def _rows(model: Decoder, family: Family | None) -> list[Row]:
    """Where each parameter of this model goes, layers written out."""
    names = [name for name, _ in model.named_parameters()]
    if family is None:
        return [Row(name, (name,)) for name in names]
    rows = []
    for row in family.rows:
        if row.blocks and model.cfg.block not in row.blocks:
            continue
        for n in range(model.cfg.n_layers) if "{n}" in row.theirs else [0]:
            ours = tuple(name.format(n=n) for name in row.ours)
            if set(ours) <= set(names):
                rows.append(replace(row, theirs=row.theirs.format(n=n), ours=ours))
    assert sorted(name for row in rows for name in row.ours) == sorted(names), f"the key map of {family.model_type} has gaps"
    return rows


# ---- writing ----


def save_folder(
    model: Decoder, out: Path, *, tokenizer: Path | Tokenizer | None, chat_template: str | None = None,
    license_id: str | None = None, card: str | None = None, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES,
    bases: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write a model folder that `AutoModelForCausalLM.from_pretrained` opens; other files in `out` stay.

    A quantised model becomes a folder that only herdbook opens, see `interop.packed`.

    Args:
        model: the decoder.
        out: the folder; each file is written whole or not at all, config.json last.
        tokenizer: a tokenizer, or a folder that holds one; None: the folder gets none.
        chat_template: a Jinja template to store with the tokenizer.
        license_id: SPDX identifier or expression for the card; None: unknown.
        card: Markdown for README.md below its front matter.
        dtype: type to store the weights in, of a quantised model those that are not; None: the type they have.
        bases: the published models that it was made of, as hubs name them, for the card.
        shard_bytes: a larger model is split over files of about this size.

    Warns (UserWarning) when no class of transformers expresses the model, and when the one that does computes it wrongly.
    """
    if isinstance(tokenizer, Path):
        tokenizer = Tokenizer.load(tokenizer)
    dtype = dtype or next(model.parameters()).dtype
    quantised = bool(matrices(model))
    family = None if quantised else family_of(model.cfg)
    if family is None and not quantised:
        warnings.warn("no class of transformers expresses this model: only herdbook will open the folder", stacklevel=2)
    for applies, sentence in family.caveats if family is not None else ():
        if applies(model.cfg):
            warnings.warn(sentence, stacklevel=2)
    if quantised:
        write_packed(model, out, dtype)
        _remove_weights(out, except_for=(FILE,))
    else:
        _write_weights(model, family, out, dtype, shard_bytes)
    if tokenizer is not None:
        if chat_template is not None:
            tokenizer = tokenizer.with_chat_template(chat_template)
        tokenizer.save(out)
        write_json(out / "generation_config.json", _generation_config(tokenizer))
    write_text(
        out / "README.md", _card(model.cfg, license_id, card, bases, library="herdbook" if quantised else "transformers")
    )
    config = config_json(model.cfg, dtype=dtype, tokenizer=tokenizer, own=quantised)
    write_json(out / "config.json", {**config, **({SECTION: section_of(model)} if quantised else {})})


def _write_weights(model: Decoder, family: Family | None, out: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    ours = dict(model.named_parameters())
    shards: list[list[Row]] = [[]]
    filled = 0
    for row in _rows(model, family):
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
            tensors = {row.theirs: _stored(row, ours, model.cfg, dtype) for row in shard}
            try:
                save_file(tensors, aside, metadata={"format": "pt"})
            except SafetensorError as error:  # a full disk, mostly
                raise UserError(
                    f"the weights could not be written ({error})", where=out, todo="make room, or write elsewhere"
                ) from error
    if len(shards) > 1:
        places = {row.theirs: name for name, shard in zip(names, shards, strict=True) for row in shard}
        total = sum(weight.numel() for weight in ours.values()) * dtype.itemsize
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    _remove_weights(out, except_for=(*names, *([INDEX] if len(shards) > 1 else [])))


def _remove_weights(out: Path, *, except_for: Sequence[str]) -> None:
    """Remove the weights of a model that was in this folder before."""
    for stale in {WEIGHTS, INDEX, FILE, *(path.name for path in out.glob("model-*-of-*.safetensors"))} - set(except_for):
        (out / stale).unlink(missing_ok=True)


@torch.no_grad()
def _stored(row: Row, ours: Weights, cfg: ModelConfig, dtype: torch.dtype) -> Tensor:
    """The tensor a row stands for, as it goes into the file."""
    parts = [narrowed(ours[name], dtype, row.theirs) for name in row.ours]
    whole = parts[0] if len(parts) == 1 else stack(parts, cfg.kv_heads if row.grouped else 1)
    return (whole.mT if row.transposed else whole).contiguous()


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids for `generate`: a text ends at the end of text, and at the end of a turn where there is a chat template."""
    ends = sorted(tokenizer.end_ids)
    ids = {**token_ids(tokenizer), "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    return {key: value for key, value in ids.items() if value is not None}


def _card(cfg: ModelConfig, license_id: str | None, body: str | None, bases: Sequence[str], library: str) -> str:
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
    made_of = "".join(f"\n- {json.dumps(base)}" for base in bases)
    terms += f"\nbase_model:{made_of}" if bases else ""
    front = f"---\n{terms}\npipeline_tag: text-generation\nlibrary_name: {library}\ntags:\n- herdbook\n---\n"
    return (
        f"{front}\n{(body or '# A language model made with herdbook').strip()}\n\n{shape}\n\nLicence: {license_.in_words()}.\n"
    )


# ---- reading ----


def load_folder(
    path: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", allow_pickle: bool = False,
    packed: bool = False,
) -> Decoder:  # fmt: skip
    """The decoder in a model folder, in evaluation mode; weights in `dtype`, which is also its `compute_dtype`.

    Takes the memory of the model and of what it touches of one file at a time.

    Args:
        path: the folder.
        dtype: type of the weights and of the computation.
        device: where the weights go.
        allow_pickle: where there are no safetensors, read `pytorch_model.bin`, of which nothing but tensors is accepted.
        packed: keep the matrices of a quantised folder as they are, instead of writing them out.

    Raises UserError, with the names, when tensors are missing, unknown, of another shape or type, when a file is cut off or
    of another kind, when the copy of a tied head differs from the embedding, and when there are only pickled weights and
    `allow_pickle` is off.
    """
    cfg, family = read_config_and_family(path)
    section = read_section(path)
    if section is not None:
        return load_packed(path, cfg, section, dtype=dtype, device=device, packed=packed)
    headers = _headers(cfg, path, allow_pickle)
    with torch.device("meta"):
        model = Decoder(cfg)
    found = _Found(model, family)
    for file, header in headers.items():
        found.look_into(file, header)
    found.require_all(path)
    model = model.to(dtype).to_empty(device=device)
    model.compute_dtype = dtype
    ours = dict(model.named_parameters())
    for file, places in found.places.items():
        with open_tensors(file) as tensors:
            for stored, row in places.items():
                whole = tensors.tensor(stored)
                parts = [ours[name] for name in row.ours]
                unstack(whole.mT if row.transposed else whole, parts, cfg.kv_heads if row.grouped else 1)
    for file, stored in found.copies:
        _require_copy(file, stored, model.embed.weight)
    return model.eval()


def _headers(cfg: ModelConfig, path: Path, allow_pickle: bool) -> dict[Path, dict[str, Entry]]:
    """What each file of weights holds.

    Raises UserError when that cannot be such a model, before anything is built: a broken config could ask for more than the
    machine has.
    """
    files = weight_files(path, allow_pickle=allow_pickle)
    headers = {}
    for file in files:
        with open_tensors(file) as tensors:
            headers[file] = tensors.header()
    require_plausible(
        cfg, stored_bytes=sum(file.stat().st_size for file in files), tensors=sum(map(len, headers.values())), where=path,
        settings="config.json",
    )  # fmt: skip
    return headers


class _Found:
    """What the headers of the files say, held against what the model needs.

    Attributes:
        places: for each file, the stored names to read and the rows they stand for.
        copies: file and name of each copy of a tied head.
    """

    def __init__(self, model: Decoder, family: Family | None) -> None:
        self.family = family
        self.rows = {row.theirs: row for row in _rows(model, family)}
        self.shapes = {name: weight.shape for name, weight in model.named_parameters()}
        tied = {family.head: Row(family.head, ("embed.weight",))} if family is not None and model.cfg.tied else {}
        self.known = {**self.rows, **tied}
        self.places: dict[Path, dict[str, Row]] = {}
        self.copies: list[tuple[Path, str]] = []
        self.read: set[str] = set()
        self.unknown: list[str] = []
        self.wrong: list[str] = []

    def look_into(self, file: Path, header: dict[str, Entry]) -> None:
        """Note the tensors of one more file."""
        self.places[file] = {}
        prefixes = ("", *self.family.prefixes) if self.family is not None else ("",)
        ignored = self.family.ignored if self.family is not None else ()
        for stored, entry in header.items():
            name = next((name for prefix in prefixes if (name := f"{prefix}{stored}") in self.known), None)
            if name is None:
                self.unknown += [] if stored.endswith(ignored) else [stored]
                continue
            problem = "(given twice)" if name in self.read else self._misfit(entry, self.known[name])
            if problem:
                self.wrong.append(f"{stored} {problem}")
            elif name in self.rows:
                self.places[file][stored] = self.rows[name]
            else:
                self.copies.append((file, stored))
            self.read.add(name)

    def require_all(self, path: Path) -> None:
        """Raise UserError unless every tensor is there, once and in its shape, and no other."""
        missing = [name for name in self.rows if name not in self.read]
        problems = {"missing tensors": missing, "unknown tensors": self.unknown, "tensors that do not fit": self.wrong}
        require_none(problems, path, "config.json")

    def _misfit(self, entry: Entry, row: Row) -> str | None:
        """What is wrong with a stored tensor, or None."""
        wanted = [sum(self.shapes[name][0] for name in row.ours), *self.shapes[row.ours[0]][1:]]
        if row.transposed:
            wanted.reverse()
        if entry.type not in FLOAT_TYPES:
            return f"(of type {entry.type}; dense floating point is needed)"
        return None if entry.shape == wanted else f"({sizes(entry.shape)} instead of {sizes(wanted)})"


@torch.no_grad()
def _require_copy(file: Path, stored: str, embed: Tensor) -> None:
    """Raise UserError when what should be a copy of the embedding differs from it: then the head is not tied."""
    with open_tensors(file) as tensors:
        for copied, own in zip(*(torch.split(x, COMPARED_ROWS) for x in (tensors.tensor(stored), embed)), strict=True):
            if not torch.equal(copied.to(embed.dtype), own.cpu()):
                raise UserError(
                    f"{stored} differs from the embedding, and config.json says that both are one", where=file,
                    todo='set "tie_word_embeddings": false in config.json to read it as a head of its own',
                )  # fmt: skip
