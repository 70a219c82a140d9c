"""`herdbook quantize`: a model in 8 or 4 bits, with its licence and its pedigree; and what each form of it costs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from herdbook.console import Terminal, emit
from herdbook.errors import UserError
from herdbook.interop.doors import find_tokenizer, layout_for, layout_of, load_decoder, packed_type, type_of
from herdbook.interop.packed import is_packed
from herdbook.interop.tokenizers import load_tokenizer
from herdbook.quantize.config import QuantizeConfig
from herdbook.quantize.text import corpus_near, token_rows
from herdbook.tokenizer import Tokenizer
from herdbook.units import human_bytes, parse_count
from herdbook.verbs.remake import begin, warnings_said
from herdbook.verbs.talk import find_model

if TYPE_CHECKING:
    from torch import Tensor

    from herdbook.model.decoder import Decoder
    from herdbook.quantize.measure import Measured

# What `--table` measures, from the most bits to the fewest.
FORMS: tuple[dict[str, Any], ...] = (
    {"bits": 8}, {"bits": 4}, {"bits": 4, "method": "awq"}, {"bits": 4, "method": "gptq"},
    {"bits": 4, "group": 64}, {"bits": 4, "group": 64, "method": "awq"}, {"bits": 4, "group": 64, "method": "gptq"},
    {"bits": 4, "affine": False}, {"bits": 4, "affine": False, "method": "awq"}, {"bits": 4, "affine": False, "method": "gptq"},
)  # fmt: skip


def settings(given: dict[str, Any]) -> QuantizeConfig:
    """The config of what was given on the command line; raises UserError with all that is wrong."""
    try:
        return QuantizeConfig.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        mistakes = [f"--{'.'.join(map(str, row['loc'])).replace('_', '-')}: {row['msg']}" for row in error.errors()]
        raise UserError("; ".join(mistakes), where="quantize", todo="see `herdbook quantize --help`") from error


def quantize(
    model: str,
    out: Path | None,
    given: dict[str, Any],
    *,
    calibration: Path | None,
    tokenizer: Path | None,
    license_id: str | None,
    commercial: bool,
    allow_pickle: bool,
    force: bool,
    terminal: Terminal,
) -> None:
    """Quantise a model into a folder of our own, or a GGUF file where `out` is called so."""
    from herdbook.quantize.run import quantize_model

    if out is None:
        raise UserError("it is not said where to write", where="quantize", todo="--out DIR writes a model, --table measures")
    cfg, layout = settings(given), layout_for(out)
    if layout == "llama2c":
        raise UserError("llama2.c's file has no form for this", where=out, todo="name a folder, or a file that ends in .gguf")
    source = Path(find_model(model))
    come_from, words = layout_of(source), _words(source, tokenizer)
    remake = begin(
        "quantize", source, come_from, out, layout, license_id=license_id, words=words, commercial=commercial, force=force
    )
    text = calibration or (corpus_near(source) if cfg.method != "rtn" else None)
    with warnings_said(terminal):
        terminal.step("quantize", f"{source} → {out}: {cfg.in_words()}")
        decoder = _load(source, allow_pickle)
        rows = None if text is None else _sample(text, words, cfg, decoder.cfg.context)
        quantize_model(decoder, cfg, terminal, rows)
        counts = {} if rows is None else {"calibration_tokens": rows.numel()}
        card = f"# {source.stem}\n\nQuantised with herdbook: {cfg.in_words()}."
        remake.write(decoder, kind=None, config=cfg.model_dump(), card=card, counts=counts, also_read=text)
    if packed_type(source) is not None or is_packed(source):
        terminal.warn("the model was quantised before; what that lost stays lost")
    if words is None:
        terminal.warn("no tokenizer lay with the model, so none was written: name its folder or file with --tokenizer")
    remake.report(decoder, terminal, **cfg.model_dump())


def show_table(
    model: str, text: Path | None, given: dict[str, Any], *, tokens: str, out: Path | None, calibration: Path | None,
    tokenizer: Path | None, allow_pickle: bool, terminal: Terminal,
) -> None:  # fmt: skip
    """Perplexity against bits, on text that no method has looked at."""
    from herdbook.quantize.measure import table

    if out is not None:
        raise UserError("--table writes nothing", where="--out", todo="leave one of the two out")
    try:
        count = parse_count(tokens)
    except ValueError as error:
        raise UserError(str(error), where="--tokens") from error
    source = Path(find_model(model))
    words, text = _words(source, tokenizer), text or corpus_near(source)
    if text is None:
        raise UserError(
            "there is no text to measure on", where="--text", todo="name a corpus, or a file of plain text or jsonl"
        )
    forms = [settings({**given, **form}) for form in FORMS]
    context = _load(source, allow_pickle).cfg.context
    rows = _rows(text, words, tokens=count, row=min(forms[0].row, context))
    # The same text for both: what is measured comes first, what is looked at behind it.
    sample = _sample(calibration or text, words, forms[0], context, skip=0 if calibration not in (None, text) else len(rows))
    terminal.step("quantize", f"{source}: perplexity on {rows.numel():,} tokens of {text}")
    found = []
    with terminal.progress("measure", len(forms) + 1) as progress:
        for row in table(partial(_load, source, allow_pickle), forms, rows, sample, Terminal(quiet=True)):
            found.append(row)
            progress.advance(note=f"{row.form}: {row.perplexity:.3f}")
    if terminal.as_json:
        emit({"model": str(source), "text": str(text), "tokens": rows.numel(), "rows": [row.as_dict() for row in found]})
    terminal.table(["form", "bits a weight", "size", "perplexity", "± ", "to bf16"], [_cells(row) for row in found])


def _cells(row: Measured) -> list[str]:
    cost = "" if row.cost is None or row.cost_stderr is None else f"{row.cost:+.2%} ± {row.cost_stderr:.2%}"
    return [row.form, f"{row.bits:.2f}", human_bytes(row.bytes), f"{row.perplexity:.3f}", f"{row.stderr:.3f}", cost]


def _load(source: Path, allow_pickle: bool) -> Decoder:
    """The model, dense, computing in bfloat16 where its text is read."""
    import torch

    decoder = load_decoder(source, dtype=type_of(source, allow_pickle=allow_pickle), allow_pickle=allow_pickle)
    decoder.compute_dtype = torch.bfloat16
    return decoder


def _words(source: Path, tokenizer: Path | None) -> Tokenizer | None:
    return find_tokenizer(source) if tokenizer is None else load_tokenizer(tokenizer)


def _sample(text: Path, words: Tokenizer | None, cfg: QuantizeConfig, context: int, *, skip: int = 0) -> Tensor:
    """What methods look at."""
    return _rows(text, words, tokens=cfg.tokens, row=min(cfg.row, context), skip=skip)


def _rows(text: Path, words: Tokenizer | None, *, tokens: int, row: int, skip: int = 0) -> Tensor:
    if words is None:
        raise UserError("text is to be read, and no tokenizer lies with the model", todo="name its folder with --tokenizer")
    return token_rows(text, words, tokens=tokens, row=row, skip=skip)
