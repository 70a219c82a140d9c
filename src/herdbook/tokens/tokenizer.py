"""The station `tokenizer`: one trained on a sample of the corpus or taken from a folder, and measured on held-out documents.

Documents are encoded with special tokens switched off: a page that happens to contain `<|endoftext|>` gets the ids of those
thirteen characters, and cannot end a document or forge a turn of a conversation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.documents import read_documents
from herdbook.errors import UserError
from herdbook.files import read_json, remove_partials, write_json, write_text
from herdbook.pedigree import Record
from herdbook.tokens.config import TokenizerConfig
from herdbook.tokens.measure import Texts, measure, measure_others, open_others, plain, show
from herdbook.tokens.sample import Survey, check_sources, quotas
from herdbook.tokens.train_tokenizer import fit, settings_of
from herdbook.units import human_bytes

TOKENIZER, TOKENIZER_CONFIG, REPORT = "tokenizer.json", "tokenizer_config.json", "report.json"
# What makes up a tokenizer in a Hugging Face folder besides the two above.
OPTIONAL_FILES = ("special_tokens_map.json", "chat_template.jinja")


def train_tokenizer(cfg: TokenizerConfig, corpus: Path, out: Path, terminal: Terminal) -> None:
    """Train (or take, with `cfg.path`) a tokenizer and leave `tokenizer.json`, `tokenizer_config.json`, `report.json` in `out`.

    Raises UserError when the corpus has no documents, a named source is not in it, or `cfg.path` or one of `cfg.compare` holds
    no tokenizer.
    """
    with pedigree.record(out, "tokenizer", cfg.model_dump(mode="json")) as rec:
        remove_partials(out)
        others = open_others(cfg.compare)
        rec.add_input(corpus, "corpus")
        if cfg.path is None:
            trained_on = _train(cfg, corpus, out, rec, terminal)
        else:
            trained_on = 0
            _take(cfg, cfg.path, out, rec, terminal)
        texts = Texts(corpus)
        report = measure(load_encoder(out), texts)
        report["measured_on"]["split"] = texts.split
        report |= {"trained_on_bytes": trained_on, "compare": measure_others(others, texts)}
        write_json(out / REPORT, report)
        rec.counts.update(
            vocab_size=report["vocab_size"], bytes_per_token=report["bytes_per_token"], trained_on_bytes=trained_on
        )
        show(report, terminal)


def load_encoder(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, set to encode documents: no truncation, no padding, special tokens read as plain text.

    Raises UserError when there is none or it is broken.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        todo = "`herdbook tokenizer` trains one; tokenizer.path takes a folder with tokenizer.json"
        raise UserError("there is no tokenizer here", where=path, todo=todo)
    try:
        encoder = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for what it cannot read
        raise UserError(f"this is not a tokenizer that can be read ({error})", where=path) from error
    return plain(encoder)


def separator_id(folder: Path) -> int:
    """The id that begins every document: the end-of-text token (or, without one, the beginning-of-text token).

    Raises UserError when the tokenizer's settings name neither.
    """
    settings = read_json(folder / TOKENIZER_CONFIG, what="tokenizer's settings")
    encoder = load_encoder(folder)
    for role in ("eos_token", "bos_token"):
        token = settings.get(role)
        content = token.get("content") if isinstance(token, dict) else token
        found = encoder.token_to_id(content) if content else None
        if found is not None:
            return int(found)
    raise UserError("the tokenizer names no eos_token that is in its vocabulary", where=folder / TOKENIZER_CONFIG,
                    todo='add "eos_token": "…" to that file')  # fmt: skip


def _train(cfg: TokenizerConfig, corpus: Path, out: Path, rec: Record, terminal: Terminal) -> int:
    """Train and write the tokenizer; the bytes it was trained on."""
    survey = Survey(corpus, "train", cfg.seed)
    check_sources(cfg.sources, survey.sizes, key="tokenizer.sources")
    quota = quotas(survey.sizes, cfg.sources, cfg.sample_bytes)
    taken: Counter[str] = Counter()
    if not quota:
        raise UserError("the corpus holds no text to train a tokenizer on", where=corpus)
    size = sum(quota.values())
    passes = 2 if cfg.kind == "llama" else 1
    with terminal.progress(f"training a tokenizer of {cfg.vocab_size:,} on {human_bytes(size)}", passes * size) as progress:

        def texts() -> Iterator[str]:
            taken.clear()
            for document in survey.draw(quota):
                size = len(document.text.encode())
                taken[document.source] += size
                progress.advance(size)
                yield document.text

        encoder = fit(cfg, texts)
    if encoder.get_vocab_size() < cfg.vocab_size:
        terminal.warn(
            f"the sample gives a vocabulary of {encoder.get_vocab_size():,}, not {cfg.vocab_size:,}: "
            "nothing else occurs often enough. More text, or a smaller tokenizer.vocab_size, would fit better"
        )
    write_text(out / TOKENIZER, encoder.to_str(pretty=True))
    write_json(out / TOKENIZER_CONFIG, settings_of(cfg))
    _inherit_corpus(corpus, rec, taken)
    rec.notes["sample_bytes_by_source"] = dict(sorted(taken.items()))
    return sum(taken.values())


def _inherit_corpus(corpus: Path, rec: Record, taken: Counter[str]) -> None:
    """Note the licences of the corpus: those of its pedigree, or of the documents when others made it."""
    if corpus.is_dir() and pedigree.exists(corpus):
        rec.inherit_licenses(corpus)
        return
    for license_id in sorted(
        {row["license"] for row in read_documents(corpus, columns=["source", "license"]) if row["source"] in taken}
    ):
        rec.add_license(license_id)


def tokenizer_file(path: Path) -> Path:
    """The file that a tokenizer's definition is in: `path` itself, or the one of a folder that `load_tokenizer` reads."""
    names = (TOKENIZER, "tokenizer.model", "vocab.json")
    return path if path.is_file() else next((path / name for name in names if (path / name).is_file()), path / TOKENIZER)


def _take(cfg: TokenizerConfig, path: Path, out: Path, rec: Record, terminal: Terminal) -> None:
    """Copy a tokenizer that exists, or bring it into this form, and see whether it can be used."""
    for name in (TOKENIZER, TOKENIZER_CONFIG, *OPTIONAL_FILES):
        (out / name).unlink(missing_ok=True)
    if (path / TOKENIZER).is_file():
        load_encoder(path)
        separator_id(path)
        for name in (TOKENIZER, TOKENIZER_CONFIG, *OPTIONAL_FILES):
            if (path / name).is_file():
                write_text(out / name, (path / name).read_text(encoding="utf-8"))
    else:
        from herdbook.interop.tokenizers import load_tokenizer  # brings torch with it

        load_tokenizer(path).save(out)
        separator_id(out)
    rec.add_input(tokenizer_file(path), "tokenizer", license_id=cfg.license)
    if pedigree.exists(path) and cfg.license is None:
        rec.inherit_licenses(path)
    else:
        rec.add_license(cfg.license)
        if cfg.license is None:
            terminal.warn(f"the licence of the tokenizer at {path} is not known; name it with tokenizer.license=…")
