"""Meta's own layout of LLaMA and LLaMA-2: `params.json` and `consolidated.00.pth` …, one file a GPU it was made for.

Notable choices:
- The .pth files are pickles, and a pickle is a program. They are opened only when `allow_pickle` says so, and even then with
  torch's reader for weights, which runs nothing. `consolidated.safetensors`, which newer releases have, needs no permission.
- Files are memory-mapped and copied tensor by tensor into a model that is allocated once, after every name and shape was
  checked: what is needed is the model and no more.
- Query and key come in interleaved order (`rows.py`). They are put in the order of halves, so that the decoder can be saved
  as a Hugging Face folder.
- Neither the context nor, in most files, the vocabulary is written down. The rows of the embedding give the one; the other
  has no effect on the logits, follows from what tells the releases apart, and can be said by the caller.

How a model is cut over files, as its layers are over GPUs (Megatron, arXiv:1909.08053, section 3)::

    wq wk wv w1 w3 output   by outputs     wo w2   by inputs     tok_embeddings   by width; in LLaMA 3 by vocabulary
    norms                   whole in each file

Sources: LLaMA (arXiv:2302.13971), LLaMA-2 (arXiv:2307.09288), Code Llama (arXiv:2308.12950), Mistral 7B (arXiv:2310.06825,
table 1); the settings and names that Meta's published code reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from herdbook.errors import UserError
from herdbook.files import atomic_path, read_json, write_json
from herdbook.interop.checks import first_problem, listing, narrowed, require_none, require_plausible, sizes, window_of
from herdbook.interop.rows import to_halves, to_interleaved, turned_heads
from herdbook.interop.tensor_files import read_pickled
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

PARAMS, SAFE_WEIGHTS = "params.json", "consolidated.safetensors"
FLOAT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LLAMA1_CONTEXT, LLAMA2_CONTEXT = 2048, 4096
MISTRAL_CONTEXT = 32_768
CONTEXT_BY_THETA = {5e5: 8192, 1e6: 16_384}  # LLaMA 3 and Code Llama stretched the waves for their contexts

_NEEDED = ("dim", "n_layers", "n_heads")
# `hidden_dim` and `head_dim` are of later releases in this layout, which write down what Meta's code derives; `sliding_window`
# is of Mistral 7B's, whose code has it.
_WHOLE = {*_NEEDED, "n_kv_heads", "vocab_size", "multiple_of", "hidden_dim", "head_dim", "max_seq_len", "max_batch_size",
          "sliding_window"}  # fmt: skip
_REAL = {"norm_eps", "rope_theta", "ffn_dim_multiplier"}
_DEFAULTS = {"multiple_of": 256, "norm_eps": 1e-5, "rope_theta": 10_000.0}  # of Meta's code
_LARGEST = 2**31 - 1

Shard = dict[str, Tensor]  # one file: Meta's names to memory-mapped tensors


class Row(NamedTuple):
    """A tensor of theirs and of ours; `{n}` is the layer. `cut`: the dimension files cut it along, None: whole in each."""

    theirs: str
    ours: str
    cut: int | None = None


ROWS = (
    Row("tok_embeddings.weight", "embed.weight", 1),
    Row("layers.{n}.attention_norm.weight", "blocks.{n}.attn_norm.weight"),
    Row("layers.{n}.attention.wq.weight", "blocks.{n}.attn.q.weight", 0),
    Row("layers.{n}.attention.wk.weight", "blocks.{n}.attn.k.weight", 0),
    Row("layers.{n}.attention.wv.weight", "blocks.{n}.attn.v.weight", 0),
    Row("layers.{n}.attention.wo.weight", "blocks.{n}.attn.o.weight", 1),
    Row("layers.{n}.ffn_norm.weight", "blocks.{n}.ff_norm.weight"),
    Row("layers.{n}.feed_forward.w1.weight", "blocks.{n}.ff.gate.weight", 0),
    Row("layers.{n}.feed_forward.w2.weight", "blocks.{n}.ff.down.weight", 1),
    Row("layers.{n}.feed_forward.w3.weight", "blocks.{n}.ff.up.weight", 0),
    Row("norm.weight", "norm.weight"),
    Row("output.weight", "unembed.weight", 0),
)


# ---- params.json ----


def feed_forward_width(dim: int, multiple_of: int = 256, multiplier: float | None = None) -> int:
    """F by Meta's rule: 2/3 of 4·dim, times the multiplier, rounded up to a multiple (LLaMA, section 2.2)."""
    width = 8 * dim // 3
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


def feed_forward_rule(dim: int, width: int) -> tuple[int, float | None]:
    """`multiple_of` and multiplier that make `feed_forward_width` give `width`: the released models' where they do."""
    for multiplier in (None, 1.3):
        for multiple_of in (256, *(2**power for power in range(12, -1, -1))):
            if feed_forward_width(dim, multiple_of, multiplier) == width:
                return multiple_of, multiplier
    return 1, (width + 0.5) / (8 * dim // 3)  # the half keeps rounding away from the edge


def read_meta_config(path: Path, *, context: int | None = None, allow_pickle: bool = False) -> ModelConfig:
    """The config of a folder in Meta's layout. What `params.json` leaves open is read from the weights.

    Args:
        path: the folder.
        context: longest sequence in tokens. None: as params.json says, else by what tells the releases apart: the base of
            the rotary waves (Code Llama 16,384, LLaMA 3 8,192), a sliding window (Mistral 7B 32,768) or the tables LLaMA
            stored in each layer (2,048), else LLaMA-2's 4,096.
        allow_pickle: whether .pth files may be opened for it.

    Raises UserError when there is no such folder, params.json is broken or says something our decoder cannot do, or the
    weights are needed and cannot be read.
    """
    params = _read_params(path)
    complete = "vocab_size" in params and (context is not None or params.keys() & {"max_seq_len", "sliding_window"})
    return _config(params, [] if complete else _open_shards(path, allow_pickle), context, path)


def _read_params(path: Path) -> dict[str, Any]:
    """The settings in params.json, each a number in its range; absent and -1 are left out."""
    file, todo = path / PARAMS, "name a folder with params.json and consolidated.00.pth or consolidated.safetensors"
    if not path.is_dir():
        raise UserError("there is no such model folder", where=path, todo=todo)
    raw = read_json(file, what=PARAMS, todo=todo)
    if not isinstance(raw, dict):
        raise UserError("params.json is a JSON object", where=file)
    params = {key: value for key, value in raw.items() if value is not None and (key, value) != ("vocab_size", -1)}
    if params.pop("use_scaled_rope", False):
        raise UserError("the scaled rotary positions of LLaMA 3.1 are not supported", where=file)
    if unknown := sorted(params.keys() - _WHOLE - _REAL):
        what = f"unknown settings, which could change what the model computes: {listing(unknown)}"
        raise UserError(what, where=file, todo="if they change nothing, take them out")
    if missing := [key for key in _NEEDED if key not in params]:
        raise UserError(f"missing settings: {listing(missing)}", where=file, todo=todo)
    for key, value in params.items():
        kind, word = (int, "positive whole") if key in _WHOLE else ((int, float), "positive")
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value <= _LARGEST:
            raise UserError(f"{key} is {str(value)[:40]!r}, and must be a {word} number below 2^31", where=file)
    return {**_DEFAULTS, **params}


def _config(params: dict[str, Any], shards: Sequence[Shard], context: int | None, path: Path) -> ModelConfig:
    width = params.get("hidden_dim") or feed_forward_width(
        params["dim"], params["multiple_of"], params.get("ffn_dim_multiplier")
    )
    context = _context(params, shards) if context is None else context
    try:
        return ModelConfig(
            vocab_size=params.get("vocab_size") or _vocabulary(shards, params["dim"], path), d_model=params["dim"],
            n_layers=params["n_layers"], n_heads=params["n_heads"], n_kv_heads=params.get("n_kv_heads"),
            head_dim=params.get("head_dim"), d_ff=width, context=context,
            window=window_of(params.get("sliding_window"), context, path / PARAMS, "sliding_window"),
            positions="rope", rope_theta=params["rope_theta"], norm="rmsnorm", norm_eps=params["norm_eps"],
            activation="swiglu", bias=False, tied=False,
        ).resolved()  # fmt: skip
    except ValidationError as error:
        raise UserError(first_problem(error), where=path / PARAMS) from error


def _vocabulary(shards: Sequence[Shard], dim: int, path: Path) -> int:
    """The rows of the embedding over all files, whichever way it is cut."""
    table = shards[0].get("tok_embeddings.weight")
    if table is None or table.dim() != 2 or table.shape[0] < 1:
        raise UserError("there is no table tok_embeddings.weight in the weights", where=path)
    return table.shape[0] * (len(shards) if _cut_by_vocabulary(shards, dim) else 1)


def _cut_by_vocabulary(shards: Sequence[Shard], dim: int) -> bool:
    """Whether the files hold rows of the embedding, as LLaMA 3's do, and not columns. One file alone holds both."""
    table = shards[0].get("tok_embeddings.weight")
    return table is not None and tuple(table.shape[1:]) == (dim,)


def _context(params: dict[str, Any], shards: Sequence[Shard]) -> int:
    if "max_seq_len" in params:
        return int(params["max_seq_len"])
    if "sliding_window" in params:
        return MISTRAL_CONTEXT
    if params["rope_theta"] in CONTEXT_BY_THETA:
        return CONTEXT_BY_THETA[params["rope_theta"]]
    # LLaMA's files have the table layers.N.attention.inner_attention.rope.freqs in each layer, LLaMA-2's one rope.freqs.
    first = any(".inner_attention." in name for shard in shards for name in shard)
    return LLAMA1_CONTEXT if first else LLAMA2_CONTEXT


# ---- reading ----


def load_meta(
    path: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", context: int | None = None,
    allow_pickle: bool = False,
) -> Decoder:  # fmt: skip
    """The decoder in a folder of Meta's layout, in evaluation mode; weights in `dtype`, which is also its `compute_dtype`.

    Args:
        path: the folder with params.json and the weights.
        dtype: type of the weights in memory, whatever the files have.
        device: where they go.
        context: longest sequence in tokens; None: see `read_meta_config`.
        allow_pickle: whether .pth files may be opened. Nothing in them is run: torch reads them with `weights_only`.

    Raises UserError, with the names, when tensors are missing, unknown, of another shape or type, or differ between files
    that should agree; when a file is missing, cut off, no file of weights, or a pickle without permission; when params.json
    is broken or describes more than the files can hold.
    """
    params = _read_params(path)
    shards = _open_shards(path, allow_pickle)
    cfg = _config(params, shards, context, path)
    size = sum(file.stat().st_size for file in _weight_files(path))
    require_plausible(cfg, stored_bytes=size, tensors=len(shards[0]), where=path, settings=PARAMS)
    _require_split(cfg, len(shards), path)
    with torch.device("meta"):
        model = Decoder(cfg)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    rows = list(_rows(cfg, embed_cut=0 if _cut_by_vocabulary(shards, cfg.d_model) else 1))
    _check_tensors(shards, rows, shapes, path)
    model = model.to(dtype).to_empty(device=device)
    model.compute_dtype = dtype
    _fill(dict(model.named_parameters()), rows, shards, cfg)
    return model.eval()


def stored_type(path: Path, *, allow_pickle: bool = False) -> torch.dtype:
    """The type that a folder in Meta's layout keeps its weights in. Raises UserError as `load_meta` does."""
    table = _open_shards(path, allow_pickle)[0].get("tok_embeddings.weight")
    return table.dtype if table is not None and table.dtype in FLOAT_TYPES else torch.float32


def _weight_files(path: Path) -> list[Path]:
    """The files of weights in order. Raises UserError when there are none or one of a row is missing."""
    if (path / SAFE_WEIGHTS).is_file():
        return [path / SAFE_WEIGHTS]
    files = _pickled_files(path)
    if not files:
        raise UserError("there are no weights here: neither consolidated.00.pth nor consolidated.safetensors", where=path)
    for wanted in range(len(files)):
        if wanted not in files:
            raise UserError("a part of the weights is missing", where=path / _file_name(wanted), todo="fetch the folder again")
    return [files[rank] for rank in sorted(files)]


def _pickled_files(path: Path) -> dict[int, Path]:
    found = ((re.fullmatch(r"consolidated\.(\d{2,4})\.pth", file.name), file) for file in path.glob("consolidated.*.pth"))
    return {int(match[1]): file for match, file in found if match}


def _file_name(rank: int) -> str:
    return f"consolidated.{rank:02d}.pth"


def _open_shards(path: Path, allow_pickle: bool) -> list[Shard]:
    """The tensors of each file, memory-mapped."""
    files = _weight_files(path)
    if files[0].suffix == ".pth" and not allow_pickle:
        raise UserError(
            "the weights here are pickled (.pth), and a pickle can be a program, so they are opened only with permission",
            where=path,
            todo="if you trust where they come from: --allow-pickle on the command line, allow_pickle=True in Python",
        )  # fmt: skip
    return [_open_shard(file) for file in files]


def _open_shard(file: Path) -> Shard:
    if file.suffix == ".pth":
        return read_pickled(file)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"this is not a whole safetensors file ({error})", where=file, todo="fetch or make it again") from error


def _rows(cfg: ModelConfig, embed_cut: int = 1) -> Iterator[Row]:
    """`ROWS` with the layers written out, and the embedding cut as this release does."""
    for theirs, ours, cut in ROWS:
        cut = embed_cut if ours == "embed.weight" else cut
        for n in range(cfg.n_layers) if "{n}" in theirs else [0]:
            yield Row(theirs.format(n=n), ours.format(n=n), cut)


def _require_split(cfg: ModelConfig, parts: int, where: Path) -> None:
    counts = {
        "n_heads": cfg.n_heads, "n_kv_heads": cfg.kv_heads, "the feed-forward width": cfg.ff_width, "dim": cfg.d_model,
        "the vocabulary": cfg.vocabulary,
    }  # fmt: skip
    for name, count in counts.items():
        if count % parts:
            raise UserError(f"{name} ({count:,}) cannot be cut over {parts} files", where=where)


def _check_tensors(shards: Sequence[Shard], rows: Sequence[Row], shapes: dict[str, torch.Size], path: Path) -> None:
    """Raises UserError unless each file has each tensor, of the right shape, and no other."""
    names = {row.theirs for row in rows}
    missing, wrong = [], []
    stored = dict.fromkeys(name for shard in shards for name in shard)
    unknown = [name for name in stored if name not in names and not name.endswith("rope.freqs")]
    for rank, shard in enumerate(shards):
        for row in rows:
            label = row.theirs if len(shards) == 1 else f"{row.theirs} of file {rank}"
            if row.theirs not in shard:
                missing.append(label)
            elif problem := _misfit(shard[row.theirs], row, shapes[row.ours], len(shards)):
                wrong.append(f"{label} {problem}")
    differing: list[str] = []
    if not (missing or wrong):
        whole = [row.theirs for row in rows if row.cut is None]
        differing = [name for name in whole if not all(torch.equal(shard[name], shards[0][name]) for shard in shards[1:])]
    problems = {"missing tensors": missing, "unknown tensors": unknown, "tensors that do not fit": wrong,
                "tensors that should be the same in all files, and are not": differing}  # fmt: skip
    require_none(problems, path, PARAMS)


def _misfit(stored: Tensor, row: Row, shape: torch.Size, parts: int) -> str | None:
    """What is wrong with a stored tensor, or None."""
    wanted = [size // parts if axis == row.cut else size for axis, size in enumerate(shape)]
    if stored.dtype not in FLOAT_TYPES or stored.layout is not torch.strided:
        return f"(of type {str(stored.dtype).removeprefix('torch.')}; floating point is needed)"
    if list(stored.shape) != wanted:
        return f"({sizes(stored.shape)} instead of {sizes(wanted)})"
    return None


@torch.no_grad()
def _fill(ours: dict[str, torch.nn.Parameter], rows: Sequence[Row], shards: Sequence[Shard], cfg: ModelConfig) -> None:
    for row in rows:
        heads = turned_heads(row.ours, cfg)
        for rank, shard in enumerate(shards if row.cut is not None else shards[:1]):
            stored = shard[row.theirs]
            if heads is not None:  # files are cut between heads, so each can be reordered alone
                stored = to_halves(stored, heads // len(shards))
            _part(ours[row.ours], row.cut, rank, len(shards)).copy_(stored)


def _part(weight: Tensor, cut: int | None, rank: int, parts: int) -> Tensor:
    """What the file `rank` of `parts` holds of a weight: a view."""
    if cut is None:
        return weight
    size = weight.shape[cut] // parts
    return weight.narrow(cut, rank * size, size)


# ---- writing ----


def require_llama(cfg: ModelConfig, layout: str, **more: Any) -> None:
    """Raises UserError, with the fields in the way, unless a layout that knows only LLaMA can hold this resolved config.

    Args:
        cfg: the decoder's config.
        layout: how to call the layout in the message.
        more: further fields it fixes, with their values.
    """
    wanted = {
        "positions": "rope", "rope_fraction": 1.0, "rope_scaling": "none", "norm": "rmsnorm", "norm_place": "pre",
        "block": "sequential", "embed_norm": False, "qk_norm": False, "clip_qkv": None, "window": None, "activation": "swiglu",
        "attn_bias": False, "ff_bias": False, "head_bias": False, "embed_dim": cfg.d_model,
        "head_dim": cfg.d_model / cfg.n_heads, **more,
    }  # fmt: skip
    ways = [f"{name} {getattr(cfg, name)}" for name, value in wanted.items() if getattr(cfg, name) != value]
    if ways:
        todo = "save it as a Hugging Face folder instead"
        raise UserError(f"{layout} holds only models shaped like LLaMA; in the way: {', '.join(ways)}", todo=todo)


def save_meta(model: Decoder, out: Path, *, model_parallel: int = 1, dtype: torch.dtype | None = None) -> None:
    """Write params.json and consolidated.00.pth … as Meta's code reads them; other files in `out` stay.

    The context is not stored, because Meta's code refuses a params.json that has it: say it again when loading.

    Args:
        model: a decoder shaped like LLaMA, its head not tied to the embedding.
        out: the folder; each file is written whole or not at all, params.json last.
        model_parallel: how many files, one for each GPU that is to run it; divides heads, widths and vocabulary.
        dtype: type to store the weights in; None: the type they have.

    Raises UserError, with the fields, for a model of another shape or one that cannot be cut so.
    """
    cfg = model.cfg
    require_llama(cfg, "Meta's layout", tied=False)
    if model_parallel < 1:
        raise UserError(f"a model cannot be cut over {model_parallel} files", where=out)
    _require_split(cfg, model_parallel, out)
    for rank in range(model_parallel):
        shard = _shard_of(model, rank, model_parallel, dtype or next(model.parameters()).dtype)
        with atomic_path(out / _file_name(rank)) as aside, aside.open("wb") as stream:
            torch.save(shard, stream)  # into a stream, because the name of a file would get into its bytes
    (out / SAFE_WEIGHTS).unlink(missing_ok=True)  # of a model saved earlier: it would be read instead of these
    for rank, file in _pickled_files(out).items():
        if rank >= model_parallel:
            file.unlink()
    write_json(out / PARAMS, _params_of(cfg))


@torch.no_grad()
def _shard_of(model: Decoder, rank: int, parts: int, dtype: torch.dtype) -> Shard:
    ours, shard = dict(model.named_parameters()), {}
    for row in _rows(model.cfg):
        heads = turned_heads(row.ours, model.cfg)
        part = narrowed(_part(ours[row.ours].detach(), row.cut, rank, parts), dtype, row.theirs)
        if heads is not None and not model.cfg.rope_interleaved:
            part = to_interleaved(part, heads // parts)
        shard[row.theirs] = part.clone(memory_format=torch.contiguous_format)  # a view would be stored with all it looks at
    return shard


def _params_of(cfg: ModelConfig) -> dict[str, Any]:
    """Meta's settings; those that LLaMA's first code does not know are there only when they say something."""
    multiple_of, multiplier = feed_forward_rule(cfg.d_model, cfg.ff_width)
    params: dict[str, Any] = {"dim": cfg.d_model, "multiple_of": multiple_of, "n_heads": cfg.n_heads, "n_layers": cfg.n_layers,
                              "norm_eps": cfg.norm_eps, "vocab_size": cfg.vocabulary}  # fmt: skip
    if cfg.kv_heads != cfg.n_heads:
        params["n_kv_heads"] = cfg.kv_heads
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    if cfg.rope_theta != _DEFAULTS["rope_theta"]:
        params["rope_theta"] = cfg.rope_theta
    return params
