"""Questions and answers made from the corpus itself: real text on both sides, nothing a model has made up.

- From docstrings (`signature`, blank line, text): what a function does, its docstring, its signature, and the function that
  does what is described.
- From encyclopaedia articles: what or who something is, asked in the language of the article (en, fr, es).

Which pairs a document gives, and how they are worded, is decided by a hash of its id: the same corpus gives the same pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import xxhash

from herdbook.align.config import PairsConfig
from herdbook.align.data import Conversation
from herdbook.documents import read_documents

_SIGNATURE = re.compile(r"(?P<class>class )?(?P<name>[A-Za-z_][\w.]*)(?P<arguments>\(.*\))?")
_SENTENCE = re.compile(r"(.+?[.!?])(?=\s|$)", re.DOTALL)
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|c|ca|born|St|Dr|Mr|Mrs|No|[A-Z]))\.$")
_SHORTEST = 15  # characters of an answer in words

DOES = ("What does `{name}` do?", "What is `{name}` for?", "Explain `{name}` in one sentence.")
WRITE = ("Write the docstring of `{signature}`.", "Document this: `{signature}`")
WHICH = ("Which function or class does this: {sentence}", "What is the name of what does the following? {sentence}")
CALLED = ("What is the signature of `{name}`?", "How is `{name}` called?")
WHAT_IS = {
    "en": ("What is {title}?", "Who or what is {title}?", "Tell me about {title} in one sentence."),
    "fr": ("Qu'est-ce que {title} ?", "Qui ou qu'est-ce que {title} ?", "Présentez {title} en une phrase."),
    "es": ("¿Qué es {title}?", "¿Quién o qué es {title}?", "Habla de {title} en una frase."),
}


def corpus_pairs(corpus: Path, cfg: PairsConfig) -> list[Conversation]:
    """The pairs made from the training documents of a corpus, without repeats, at most `cfg.max_pairs`, sorted by a hash.

    Raises UserError when the corpus cannot be read.
    """
    columns = ["id", "text", "url", "source", "license", "language"]
    by_source: dict[str, dict[tuple[str, str], Conversation]] = {}
    for row in read_documents(corpus, columns=columns):
        if cfg.sources is not None and row["source"] not in cfg.sources:
            continue
        for pair in document_pairs(row, max_answer=cfg.max_answer):
            question, answer = pair.messages[0]["content"], pair.messages[1]["content"]
            by_source.setdefault(row["source"], {}).setdefault((question, answer), pair)
    return _cap({source: list(_unambiguous(pairs.values())) for source, pairs in by_source.items()}, cfg.max_pairs)


def _host(url: str) -> str:
    """The host of an address; empty for what is none (crawls hold every kind of nonsense)."""
    try:
        return urlparse(url).hostname or ""
    except ValueError:
        return ""


def document_pairs(row: dict[str, Any], *, max_answer: int) -> list[Conversation]:
    """The pairs that one document gives; none when it has no form that is known."""
    url = row.get("url") or ""
    if url.startswith("pydoc://"):
        pairs = _docstring_pairs(row["text"], row["id"], max_answer)
    elif f".{_host(url)}".endswith(".wikipedia.org"):
        pairs = _article_pairs(row, url)
    else:
        return []
    return [
        Conversation(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            row["id"],
            row.get("license"),
            kind,
        )
        for kind, question, answer in pairs
        if len(answer) <= max_answer
    ]


def _docstring_pairs(text: str, key: str, max_answer: int) -> Iterator[tuple[str, str, str]]:
    signature, blank, body = text.partition("\n\n")
    match = _SIGNATURE.fullmatch(signature.strip())
    body = body.strip()
    if not blank or match is None or len(body) < _SHORTEST:
        return
    name, signature = match["name"], signature.strip()
    sentence = first_sentence(body.split("\n\n", 1)[0])
    if sentence is not None:
        yield "does", _word(DOES, key).format(name=name), sentence
        if name.rsplit(".", 1)[-1].lower() not in sentence.lower():
            yield "which", _word(WHICH, key).format(sentence=sentence), f"`{name}`"
    if match["arguments"] not in (None, "(...)"):
        yield "signature", _word(CALLED, key).format(name=name), f"`{signature}`"
    written = whole_paragraphs(body, max_answer)
    if written is not None and written != sentence:
        yield "docstring", _word(WRITE, key).format(signature=signature), written


def _article_pairs(row: dict[str, Any], url: str) -> Iterator[tuple[str, str, str]]:
    title = unquote(urlparse(url).path.rsplit("/", 1)[-1]).replace("_", " ").strip()
    wordings = WHAT_IS.get(row.get("language") or "")
    sentence = first_sentence(row["text"].strip().split("\n\n", 1)[0])
    if wordings and title and sentence is not None:
        yield "what is", _word(wordings, row["id"]).format(title=title), sentence


def first_sentence(paragraph: str) -> str | None:
    """The first sentence of a paragraph as one line; None when it does not begin like prose or has no end."""
    flat = " ".join(paragraph.split())
    if not flat[:1].isalpha() or flat.startswith(("http:", "https:")):
        return None
    for match in _SENTENCE.finditer(flat):
        end = match.end()
        is_inside = _ABBREVIATION.search(flat[:end]) or flat.count("(", 0, end) > flat.count(")", 0, end)
        if not is_inside or end == len(flat):
            return flat[:end] if end >= _SHORTEST else None
    return None


def whole_paragraphs(text: str, longest: int) -> str | None:
    """The first paragraphs that fit into `longest` characters, None when not even the first does."""
    kept = ""
    for paragraph in text.split("\n\n"):
        longer = f"{kept}\n\n{paragraph}" if kept else paragraph
        if len(longer) > longest:
            break
        kept = longer
    return kept.strip() or None


def _word(wordings: tuple[str, ...], key: str) -> str:
    return wordings[xxhash.xxh3_64_intdigest(key.encode(), seed=1) % len(wordings)]


def _unambiguous(pairs: Iterable[Conversation]) -> Iterator[Conversation]:
    """The pairs whose question has one answer only: two functions may share a first sentence, and then none is right."""
    by_question: dict[str, list[Conversation]] = {}
    for pair in pairs:
        by_question.setdefault(pair.messages[0]["content"], []).append(pair)
    return (group[0] for group in by_question.values() if len(group) == 1)


def _cap(by_source: dict[str, list[Conversation]], most: int) -> list[Conversation]:
    """At most `most` pairs, as evenly over the sources as they reach, in the order of a hash."""
    chosen: list[Conversation] = []
    waiting = sorted(by_source.items(), key=lambda item: (len(item[1]), item[0]))
    for number, (_, pairs) in enumerate(waiting):
        share = (most - len(chosen)) // (len(waiting) - number)
        chosen += sorted(pairs, key=_order)[:share]
    return sorted(chosen, key=_order)


def _order(pair: Conversation) -> tuple[int, str]:
    return xxhash.xxh3_64_intdigest(f"{pair.origin}\0{pair.kind}".encode(), seed=2), str(pair.messages[0]["content"])
