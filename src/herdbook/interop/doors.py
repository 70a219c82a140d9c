"""One door for every layout that a model lies in.

    hf        a folder with config.json and safetensors, as transformers writes and reads
    gguf      one file for llama.cpp
    meta      a folder with params.json and consolidated.*.pth, as Meta published LLaMA
    llama2c   one .bin file for karpathy's llama2.c

`load_decoder` tells them apart by what is there; `save_decoder` writes the one that is asked for, or that the name says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from herdbook import pedigree
from herdbook.errors import UserError
from herdbook.files import read_json
from herdbook.interop.hf import load_folder, save_folder
from herdbook.interop.hf_config import read_config
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.model.quantized import require_dense
from herdbook.tokenizer import Tokenizer

Layout = Literal["hf", "gguf", "meta", "llama2c"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def layout_of(path: Path) -> Layout:
    """How the model at `path` is laid out. Raises UserError when there is nothing, or nothing we know."""
    if not path.exists():
        raise UserError("there is no such model", where=path, todo="name a model folder, or a .gguf or .bin file")
    if path.is_file():
        return _layout_of_file(path)
    if (path / "params.json").is_file() and not (path / "config.json").is_file():
        return "meta"
    return "hf"


def _layout_of_file(path: Path) -> Layout:
    """By the first bytes: GGUF says what it is, a pickle of tensors belongs to a folder, and llama2.c says little."""
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"GGUF" or path.suffix.lower() == ".gguf":
        return "gguf"
    if magic[:2] in (b"PK", b"\x80\x02") or path.suffix in (".safetensors", ".pth", ".pt"):
        raise UserError("this is a part of a model: its config and tokenizer lie beside it", where=path, todo="name its folder")
    if path.suffix.lower() == ".bin":
        return "llama2c"
    raise UserError("this file is no model that we read", where=path, todo="name a model's folder, or a .gguf or .bin file")


def layout_for(out: Path) -> Layout:
    """The layout that a name to write to asks for: `x.gguf` and `x.bin` are files, all else is a Hugging Face folder."""
    return {".gguf": "gguf", ".bin": "llama2c"}.get(out.suffix.lower(), "hf")  # type: ignore[return-value]


def check_type(layout: Layout, kind: str | None) -> None:
    """Raise UserError unless weights of a type can be written in a layout; None is the type they have."""
    from herdbook.interop.gguf.model import FILE_TYPES

    fitting = tuple(FILE_TYPES) if layout == "gguf" else ("F32",) if layout == "llama2c" else tuple(TYPES)
    if kind is None or kind in fitting:
        return
    only = " is a type of GGUF files only" if kind in FILE_TYPES and layout != "llama2c" else " is no type of this layout"
    raise UserError(f"{kind}{only}", where="--type", todo=f"choose one of {', '.join(fitting)}, or leave it out")


def load_decoder(
    path: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", allow_pickle: bool = False,
    context: int | None = None, packed: bool = False,
) -> Decoder:  # fmt: skip
    """The decoder at `path`, whatever its layout, in evaluation mode.

    Args:
        dtype: type of the weights and of the computation.
        allow_pickle: read .bin and .pth files too. They are pickles, of which only tensors are accepted.
        context: the longest sequence, for Meta's layout, which does not tell it.
        packed: keep the 8- and 4-bit matrices of a GGUF file or a quantised folder as they are (`model.quantized`), to run
            them; otherwise they are written out, which is what training needs. What is dense anyway stays so.

    Raises UserError when it is absent, broken, of a kind we do not have, or pickled without `allow_pickle`.
    """
    layout = layout_of(path)
    if layout == "gguf":
        from herdbook.interop.gguf.model import load_gguf

        return load_gguf(path, dtype=dtype, device=device, packed=packed)
    if layout == "meta":
        from herdbook.interop.meta import load_meta

        if context is None and pedigree.exists(path):  # our own conversion wrote it down there
            noted = pedigree.read(path)["counts"].get("context")
            context = noted if isinstance(noted, int) and noted > 0 else None
        return load_meta(path, dtype=dtype, device=device, allow_pickle=allow_pickle, context=context)
    if layout == "llama2c":
        from herdbook.interop.llama2c import load_llama2c

        return load_llama2c(path, dtype=dtype, device=device)
    return load_folder(path, dtype=dtype, device=device, allow_pickle=allow_pickle, packed=packed)


def read_shape(path: Path) -> ModelConfig:
    """The shape of the model at `path`, from its header or config alone.

    Raises UserError as `load_decoder` does; Meta's layout tells part of it in the weights only.
    """
    layout = layout_of(path)
    if layout == "gguf":
        from herdbook.interop.gguf.container import open_gguf
        from herdbook.interop.gguf.model import read_gguf_config

        return read_gguf_config(open_gguf(path))
    if layout == "llama2c":
        from herdbook.interop.llama2c import read_llama2c_config

        return read_llama2c_config(path)
    if layout == "meta":
        raise UserError("Meta's layout must be read whole to be described", where=path, todo="convert it: `herdbook convert`")
    return read_config(path)


def find_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer that lies with a model, or None. Raises UserError when it is broken."""
    from herdbook.interop.tokenizers import load_tokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if layout_of(path) == "gguf":
        from herdbook.interop.gguf.container import open_gguf

        kind = open_gguf(path).metadata.get("tokenizer.ggml.model", "none")
        return None if kind == "none" else load_tokenizer(path)
    return load_tokenizer(path) if path.is_dir() and any((path / name).is_file() for name in names) else None


def require_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that lies with a model. Raises UserError when there is none, or it is broken."""
    words = find_tokenizer(path)
    if words is None:
        raise UserError("no tokenizer lies with this model", where=path, todo="`herdbook convert --tokenizer` puts one there")
    return words


def packed_type(path: Path) -> str | None:
    """The type that most matrices of a GGUF file are packed in, if it is one that we write; None for all else."""
    if layout_of(path) != "gguf":
        return None
    from herdbook.interop.gguf.container import open_gguf
    from herdbook.interop.gguf.model import FILE_TYPES

    kinds = Counter(row.type for row in open_gguf(path).tensors.values() if len(row.shape) > 1)
    kind = kinds.most_common(1)[0][0] if kinds else "F32"
    return kind if kind in FILE_TYPES and kind not in TYPES else None


def type_of(path: Path, *, allow_pickle: bool = False) -> torch.dtype:
    """The type a model's weights are best read in: the one they are stored in; packed ones in float32."""
    layout = layout_of(path)
    if layout == "hf":
        raw = read_json(path / "config.json", what="model config")
        name = raw.get("dtype", raw.get("torch_dtype")) if isinstance(raw, dict) else None
        return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(str(name), torch.float32)
    if layout == "gguf":
        from herdbook.interop.gguf.container import open_gguf

        kinds = {row.type for row in open_gguf(path).tensors.values() if len(row.shape) > 1}
        return TYPES[kinds.pop()] if len(kinds) == 1 and kinds <= set(TYPES) else torch.float32
    if layout == "meta":
        from herdbook.interop.meta import stored_type

        return stored_type(path, allow_pickle=allow_pickle)
    return torch.float32


def save_decoder(
    model: Decoder, out: Path, layout: Layout | None = None, *, kind: str | None = None, tokenizer: Tokenizer | None = None,
    license_id: str | None = None, name: str | None = None, card: str | None = None, bases: Sequence[str] = (),
    origin: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a model in a layout; files are whole or not there.

    Args:
        layout: None takes the one that the name asks for.
        kind: type to store the weights in: F32, F16, BF16, in GGUF also Q8_0, Q5_1, Q5_0, Q4_1, Q4_0; None: the one they
            have. A quantised model's matrices stay as they are; it is about the rest.
        license_id, name, card: what the layout has a place for is written there.
        bases: the published models that this one was made of, for the card.
        origin: what a GGUF file was made from, kept in its header.

    Raises UserError when the layout has no form for this model or type.
    """
    layout = layout or layout_for(out)
    check_type(layout, kind)
    if tokenizer is not None and tokenizer.vocab_size > model.cfg.vocabulary:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, and the model only {model.cfg.vocabulary:,}", where=out,
            todo="tokenizer and model do not belong together",
        )  # fmt: skip
    if layout in ("gguf", "llama2c") and out.is_dir():
        raise UserError("this is a folder, and the model becomes one file", where=out, todo="name a file")
    if layout in ("meta", "llama2c"):
        require_dense(model, f"write in the layout {layout}")
    own = next((name for name, dtype in TYPES.items() if dtype == next(model.parameters()).dtype), "F32")
    if layout == "gguf":
        from herdbook.interop.gguf.model import save_gguf

        save_gguf(model, out, kind=kind or own, tokenizer=tokenizer, license_id=license_id, name=name, pedigree=origin)
        return
    if layout == "meta":
        from herdbook.interop.meta import save_meta

        save_meta(model, out, dtype=TYPES[kind or own])
        if tokenizer is not None:
            tokenizer.save(out)
    elif layout == "llama2c":
        from herdbook.interop.llama2c import save_llama2c

        save_llama2c(model, out)
    else:
        save_folder(model, out, tokenizer=tokenizer, license_id=license_id, card=card, dtype=TYPES[kind or own], bases=bases)
