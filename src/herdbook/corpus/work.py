"""What happens to a batch of records: decode, extract, identify, judge, and the hashes that find duplicates.

A pure function of the batch and the config, so batches may be worked on anywhere, in any number of processes; what compares
documents with each other comes after, in `curate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from herdbook.corpus.builtin import license_of
from herdbook.corpus.c4 import bad_word_pattern, judge_c4
from herdbook.corpus.classifier import QualityModel
from herdbook.corpus.config import CorpusConfig, Source
from herdbook.corpus.dedup import band_keys, exact_key
from herdbook.corpus.extract import clean, extract, visible_text
from herdbook.corpus.filters import Removal, judge_quality, judge_repetition
from herdbook.corpus.fineweb import judge_fineweb
from herdbook.corpus.funnel import Funnel, example
from herdbook.corpus.language import identify, probability
from herdbook.corpus.ledger import hash_id
from herdbook.corpus.lines import Corrected, correct_lines
from herdbook.corpus.located import Located
from herdbook.corpus.minhash import normalize, signature
from herdbook.corpus.perplexity import PerplexityModel, cutoffs, judge_perplexity
from herdbook.corpus.pii import mask_pii
from herdbook.corpus.records import Record, Skip, Unreadable, decode_payload
from herdbook.corpus.rights import Rights, find_rights, judge_rights, rights_columns
from herdbook.corpus.urlfilter import judge_url, open_lists
from herdbook.corpus.urls import url_hashes
from herdbook.corpus.words import Array, WordArrays, split_words
from herdbook.errors import UserError
from herdbook.facts.licenses import UNKNOWN, find_expression


@dataclass(frozen=True)
class Task:
    """Records of one source, in reading order."""

    source: Source
    items: list[Record | Skip]


@dataclass(frozen=True)
class Kept:
    """A document that no rule removed, with what deduplication asks for.

    Attributes:
        place: where the held-out split sees it, in [0, 2^63).
        size: bytes of its text.
        exact: the 16 bytes that documents of the same words share.
        url: hash of its address; 0 without one.
        keys: one a band of MinHash, shape (bands,); all zero without a signature.
        cuts: what was cut out of it, rows of `ledger.CUTS_SCHEMA`.
    """

    row: dict[str, Any]
    place: int
    size: int
    exact: bytes
    url: int
    keys: Array
    cuts: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Result:
    """What came of a batch: counts, documents kept and removed, and what could not be read.

    Attributes:
        removed: rows of `ledger.REMOVED_SCHEMA`.
        texts: how many records were text.
    """

    source: str
    funnel: Funnel
    kept: list[Kept] = field(default_factory=list)
    removed: list[dict[str, Any]] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    texts: int = 0

    def merge(self, other: Result) -> None:
        """Add what came of the records after ours."""
        self.funnel.merge(other.funnel)
        self.kept += other.kept
        self.removed += other.removed
        self.skips += other.skips
        self.texts += other.texts


def skip_record(item: Skip, source: Source, result: Result) -> None:
    """Count something that could not be read."""
    step, count = result.funnel.steps["read"], result.funnel.source(source.name)
    step.documents_in += 1
    step.bytes_in += item.bytes
    count.documents_in += 1
    count.bytes_in += item.bytes
    removal = Removal(item.reason, float(item.bytes) or None, None, item.detail or None)
    step.drop(item.reason, example(item.where, None, removal, item.detail))
    result.skips.append(item)
    row = {
        "id": item.where,
        "url": item.where if "://" in item.where else None,
        "source": source.name,
        "license": license_of(source) or UNKNOWN,
        "file": item.file if isinstance(item, Located) else None,
        "offset": item.offset if isinstance(item, Located) else None,
    }
    result.removed.append(removed_row(row, removal))


def removed_row(row: dict[str, Any], removal: Removal, duplicate_of: str | None = None) -> dict[str, Any]:
    """A document as the ledger has it."""
    return {**row, "removed_by": removal.reason, "value": removal.value, "threshold": removal.threshold,
            "detail": removal.detail, "duplicate_of": duplicate_of}  # fmt: skip


@dataclass
class _Draft:
    """A document on its way through the steps."""

    record: Record
    source: Source
    text: str = ""
    size: int = 0
    language: str = "und"
    score: float = 0.0
    words: list[str] = field(default_factory=list)
    arrays: WordArrays | None = None  # the same words, for rules that count
    license: str | None = None  # what the page itself states
    more: dict[str, Any] = field(default_factory=dict)  # further columns
    cuts: list[dict[str, Any]] = field(default_factory=list)

    def set_text(self, text: str) -> None:
        """Another text in place of the one so far."""
        self.text, self.size, self.words, self.arrays = text, len(text.encode()), [], None

    def cut_words(self, how: str) -> None:
        """Make the words of the text that rules count."""
        self.words = split_words(self.text, how)
        self.arrays = WordArrays(self.words)

    def cut(self, rule: str, text: str) -> None:
        """Note a passage that was cut out."""
        self.cuts.append({"id": self.record.id, "number": len(self.cuts), "rule": rule, "text": text,
                          "words": len(text.split())})  # fmt: skip

    def row(self) -> dict[str, Any]:
        """The document as `documents.SCHEMA` has it."""
        record = self.record
        return {"id": record.id, "text": self.text, "url": record.url, "date": record.date, "source": self.source.name,
                "license": record.license or self.license or license_of(self.source) or UNKNOWN, "language": self.language,
                "language_score": self.score, "dump": record.dump, "file": record.file, "offset": record.offset,
                **self.more}  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """What one step made of a document."""

    step: str
    bytes_in: int
    bytes_out: int
    removal: Removal | None
    cuts: tuple[str, ...] = ()

    def words(self) -> str:
        """The verdict for a person."""
        if self.removal is None:
            return f"passes; cut: {', '.join(self.cuts)}" if self.cuts else "passes"
        rest = [f"{name} {value:,.4g}" for name, value in zip(("measured", "limit"), self.removal[1:3], strict=True)
                if value is not None]  # fmt: skip
        return ", ".join([self.removal.reason, *rest, *([self.removal.detail] if self.removal.detail else [])])

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {**vars(self), "removal": self.removal._asdict() if self.removal else None, "cuts": list(self.cuts)}


class Worker:
    """Works on batches; one of these lives in each process."""

    def __init__(self, cfg: CorpusConfig) -> None:
        self.cfg = cfg
        self._steps: list[tuple[str, Callable[[_Draft, Funnel], Removal | None]]] = [
            (name, getattr(self, f"_{name}")) for name in cfg.steps
        ]
        self._lists = open_lists(cfg.url) if cfg.url.enabled else None
        self._classifier_model = QualityModel(cfg.classifier) if cfg.classifier.enabled else None
        self._perplexity_model: PerplexityModel | None = None
        if cfg.perplexity.model is not None:
            self._perplexity_model = PerplexityModel(cfg.perplexity.model, max_bytes=cfg.perplexity.max_bytes)
            self._cutoffs = cutoffs(cfg.perplexity, self._perplexity_model)

    def __call__(self, task: Task) -> Result:
        """Work on one batch."""
        result = Result(task.source.name, Funnel())
        for item in task.items:
            if isinstance(item, Skip):
                skip_record(item, task.source, result)
            else:
                self._process(_Draft(item, task.source), result)
        return result

    def trace(self, record: Record, source: Source) -> list[Trace]:
        """What each step makes of one record, up to the one that removes it."""
        draft, funnel = _Draft(record, source), Funnel()
        draft.size = len(record.payload)
        traces: list[Trace] = []
        for name, run in self._steps:
            size, cuts = draft.size, len(draft.cuts)
            removal = run(draft, funnel)
            traces.append(Trace(name, size, draft.size, removal, tuple(cut["rule"] for cut in draft.cuts[cuts:])))
            if removal is not None:
                break
        return traces

    def _process(self, draft: _Draft, result: Result) -> None:
        draft.size = len(draft.record.payload)
        source = result.funnel.source(draft.source.name)
        source.documents_in += 1
        source.bytes_in += draft.size
        before = time.process_time()
        for name, run in self._steps:
            step = result.funnel.steps[name]
            step.documents_in += 1
            step.bytes_in += draft.size
            removal = run(draft, result.funnel)
            step.cpu_s += (now := time.process_time()) - before  # a system call of microseconds: one a step
            before = now
            if removal is not None:
                record = draft.record
                step.drop(removal.reason, example(record.id, record.url, removal, draft.text))
                result.removed.append(removed_row(draft.row(), removal))
                result.texts += name in ("url", "rights", "first_look")  # what goes for other reasons could have been read
                if name in ("read", "extract"):
                    result.skips.append(Skip(removal.reason, record.url or record.id, draft.size))
                return
            step.documents_out += 1
            step.bytes_out += draft.size
            result.texts += name == "extract"
        result.kept.append(self._hashed(draft, result.funnel, before))

    def _read(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        try:
            draft.text, draft.size = decode_payload(draft.record, self.cfg.limits.max_record_bytes)
        except Unreadable as error:
            return Removal(error.reason, error.value, error.threshold)
        return None

    def _extract(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        try:
            html = draft.record.kind == "html"
            draft.text = extract(draft.text, self.cfg.extract) if html else clean(draft.text)
        except Unreadable as error:
            return Removal(error.reason, error.value, error.threshold)
        draft.size = len(draft.text.encode())
        if not draft.text:
            return Removal("empty")
        limit = self.cfg.limits.max_text_bytes
        return Removal("long_text", draft.size, limit) if draft.size > limit else None

    def _first_look(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        wanted, limit = self.cfg.languages, self.cfg.first_look
        if draft.record.kind != "html" or draft.record.language or draft.source.language or wanted is None or limit is None:
            return None
        try:
            score = probability(visible_text(draft.text, self.cfg.extract), wanted)
        except Unreadable:
            return None  # extraction will say so
        return Removal("other_language", score, limit) if score < limit else None

    def _url(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        assert self._lists is not None
        if draft.record.url is None or not draft.source.filtered:
            return None
        found = judge_url(draft.record.url, self._lists, self.cfg.url)
        return None if found is None else Removal(*found)

    def _rights(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        rights = None
        if draft.record.kind == "html":
            rights = find_rights(draft.text, self.cfg.rights, draft.record.headers)
            draft.license = _known(rights.base_license)
        draft.more |= rights_columns(rights)
        known = draft.record.license or license_of(draft.source)
        return judge_rights(rights or Rights(), self.cfg.rights, known)

    def _license(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        license_id = draft.row()["license"]
        return None if find_expression(license_id).commercial else Removal("not_commercial")

    def _language(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        given = draft.record.language or draft.source.language
        draft.language, draft.score = (given, 1.0) if given else identify(draft.text)
        funnel.count_language(draft.language, draft.size)
        wanted = self.cfg.languages
        if wanted is None:
            return None
        if draft.language not in wanted:
            return Removal("other_language", draft.score)
        return Removal("uncertain_language", draft.score, self.cfg.min_score) if draft.score < self.cfg.min_score else None

    def _repetition(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        if not draft.source.filtered:
            return None
        cfg = self.cfg.repetition
        draft.cut_words(cfg.words)
        return judge_repetition(draft.text, draft.words, draft.language, cfg, draft.arrays)

    def _quality(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        if not draft.source.filtered:
            return None
        cfg = self.cfg.quality
        if not draft.words or cfg.words != self.cfg.repetition.words:
            draft.cut_words(cfg.words)
        return judge_quality(draft.text, draft.words, draft.language, cfg, draft.arrays)

    def _lines(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        return self._edit(draft, funnel, "lines", correct_lines(draft.text, self.cfg.lines, draft.language))

    def _c4(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        bad_words = bad_word_pattern(self.cfg.c4, draft.language)
        return self._edit(draft, funnel, "c4", judge_c4(draft.text, self.cfg.c4, bad_words))

    def _edit(self, draft: _Draft, funnel: Funnel, step: str, done: Corrected) -> Removal | None:
        """Take over a corrected text; a source that is spared the rules keeps its own."""
        if not draft.source.filtered:
            return None
        if done.removal is None and done.cuts:
            funnel.steps[step].edits.update(rule for rule, _ in done.cuts)
            for rule, text in done.cuts:
                draft.cut(rule, text)
            draft.set_text(done.text)
        return done.removal

    def _fineweb(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        return judge_fineweb(draft.text, self.cfg.fineweb) if draft.source.filtered else None

    def _classifier(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        assert self._classifier_model is not None
        score = draft.more["quality"] = self._classifier_model.score(draft.text)
        return self._classifier_model.judge(score) if draft.source.filtered else None

    def _perplexity(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        assert self._perplexity_model is not None
        value = self._perplexity_model.perplexity(draft.text)
        bucket, removal = judge_perplexity(value, self.cfg.perplexity, self._cutoffs)
        draft.more |= {"perplexity": value, "bucket": bucket}
        return removal if draft.source.filtered else None

    def _pii(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        masked = mask_pii(draft.text, self.cfg.pii)
        if masked.counts:
            funnel.steps["pii"].edits.update(masked.counts)
            draft.set_text(masked.text)
        return None

    def _hashed(self, draft: _Draft, funnel: Funnel, began: float) -> Kept:
        words = normalize(draft.text)
        key = exact_key(draft.text, words)
        between = time.process_time()
        cfg = self.cfg.dedup.minhash
        keys = band_keys(signature(words, cfg, self.cfg.seed) if cfg.enabled else None, cfg)
        funnel.steps["exact"].cpu_s += between - began
        funnel.steps["minhash"].cpu_s += time.process_time() - between
        place = hash_id(draft.record.group or draft.record.id, self.cfg.seed, "heldout")
        url = int(url_hashes([draft.record.url])[0]) if draft.record.url and self.cfg.dedup.urls.enabled else 0
        return Kept(draft.row(), place, draft.size, key, url, keys, draft.cuts)


def _known(license_id: str | None) -> str | None:
    """A licence that a page states, if it is one whose terms we know."""
    try:
        return None if license_id is None else find_expression(license_id).id
    except UserError:
        return None
