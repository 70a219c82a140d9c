"""What happens to a batch of records: decode, extract, identify, judge, and the hashes that find duplicates.

A pure function of the batch and the config, so batches may be worked on anywhere, in any number of processes; what compares
documents with each other comes after, in `curate`.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from herdbook.corpus.builtin import license_of
from herdbook.corpus.c4 import bad_word_pattern, judge_c4
from herdbook.corpus.config import CorpusConfig, Source
from herdbook.corpus.dedup import band_keys, exact_key
from herdbook.corpus.extract import clean, extract
from herdbook.corpus.filters import Removal, judge_quality, judge_repetition
from herdbook.corpus.fineweb import judge_fineweb
from herdbook.corpus.funnel import Funnel, example
from herdbook.corpus.language import identify
from herdbook.corpus.lines import Corrected, correct_lines
from herdbook.corpus.minhash import normalize, signature
from herdbook.corpus.pii import mask_pii
from herdbook.corpus.records import Record, Skip, Unreadable, decode_payload
from herdbook.corpus.rights import find_rights, judge_rights
from herdbook.corpus.urlfilter import judge_url, open_lists
from herdbook.corpus.words import Array
from herdbook.errors import UserError
from herdbook.facts.licenses import UNKNOWN, find_expression


@dataclass(frozen=True)
class Task:
    """Records of one source, in reading order."""

    source: Source
    items: list[Record | Skip]


@dataclass(frozen=True)
class Kept:
    """A document that no rule removed, with what deduplication asks for."""

    row: dict[str, Any]
    place: int
    size: int
    exact: bytes
    keys: Array


@dataclass
class Removed:
    """Removed documents, kept by sample: of each rule those with the lowest hash, so that merging parts changes nothing.

    Args:
        limit: how many a rule; None keeps all.
    """

    limit: int | None
    rows: dict[str, list[tuple[int, str, dict[str, Any]]]] = field(default_factory=dict)

    def add(self, row: dict[str, Any], removal: Removal, seed: int, **more: Any) -> None:
        """Note a removed document."""
        full = {**row, "removed_by": removal.reason, "value": removal.value, "threshold": removal.threshold, **more}
        # Negated, since heapq keeps the smallest on top and the largest hash is the one to go.
        self._push(removal.reason, (-hash_id(row["id"], seed, "removed"), row["id"], full))

    def merge(self, other: Removed) -> None:
        """Add the sample of another part of the run."""
        for reason, entries in other.rows.items():
            for entry in entries:
                self._push(reason, entry)

    def _push(self, reason: str, entry: tuple[int, str, dict[str, Any]]) -> None:
        heap = self.rows.setdefault(reason, [])
        if self.limit is None:
            heap.append(entry)
        elif any(known[:2] == entry[:2] for known in heap):
            return  # dictionaries do not compare, and one row of two with the same id is enough for a sample
        elif len(heap) < self.limit:
            heapq.heappush(heap, entry)
        elif heap:
            heapq.heappushpop(heap, entry)

    def sorted_rows(self) -> list[dict[str, Any]]:
        """The rows by rule, those of a rule in the order of their hash (or, with all kept, in reading order)."""
        reasons = sorted(self.rows)
        if self.limit is None:
            return [entry[2] for reason in reasons for entry in self.rows[reason]]
        return [entry[2] for reason in reasons for entry in sorted(self.rows[reason], key=lambda entry: (-entry[0], entry[1]))]


@dataclass
class Result:
    """What came of a batch: counts, documents kept and removed, what could not be read, and how many records were text."""

    source: str
    funnel: Funnel
    removed: Removed
    kept: list[Kept] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    texts: int = 0

    def merge(self, other: Result) -> None:
        """Add what came of the records after ours."""
        self.funnel.merge(other.funnel)
        self.removed.merge(other.removed)
        self.kept += other.kept
        self.skips += other.skips
        self.texts += other.texts


def skip_record(item: Skip, source: Source, result: Result) -> None:
    """Count something that could not be read."""
    step, count = result.funnel.steps["read"], result.funnel.source(source.name)
    result.skips.append(item)
    step.documents_in += 1
    step.bytes_in += item.bytes
    count.documents_in += 1
    count.bytes_in += item.bytes
    step.drop(item.reason, example(item.where, None, item.reason, float(item.bytes) or None, None, item.detail))


def hash_id(id_: str, seed: int, purpose: str) -> int:
    """A 63-bit hash of a document's id, another one for every seed and purpose."""
    return xxhash.xxh3_64_intdigest(f"{purpose}:{seed}:{id_}".encode()) >> 1


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
    license: str | None = None  # what the page itself states

    def set_text(self, text: str) -> None:
        """Another text in place of the one so far."""
        self.text, self.size, self.words = text, len(text.encode()), []

    def row(self) -> dict[str, Any]:
        record = self.record
        return {"id": record.id, "text": self.text, "url": record.url, "date": record.date, "source": self.source.name,
                "license": record.license or self.license or license_of(self.source) or UNKNOWN, "language": self.language,
                "language_score": self.score}  # fmt: skip


class Worker:
    """Works on batches; one of these lives in each process."""

    def __init__(self, cfg: CorpusConfig) -> None:
        self.cfg = cfg
        self._steps: list[tuple[str, Callable[[_Draft, Funnel], Removal | None]]] = [
            (name, getattr(self, f"_{name}")) for name in cfg.steps
        ]
        self._lists = open_lists(cfg.url) if cfg.url.enabled else None

    def __call__(self, task: Task) -> Result:
        """Work on one batch."""
        limit = None if self.cfg.removed_sample == "all" else self.cfg.removed_sample
        result = Result(task.source.name, Funnel(), Removed(limit))
        for item in task.items:
            if isinstance(item, Skip):
                skip_record(item, task.source, result)
            else:
                self._process(_Draft(item, task.source), result)
        return result

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
                step.drop(removal.reason, example(record.id, record.url, *removal, draft.text))
                if name in ("read", "extract"):
                    result.skips.append(Skip(removal.reason, record.url or record.id, draft.size))
                else:
                    result.removed.add(draft.row(), removal, self.cfg.seed)
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

    def _url(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        assert self._lists is not None
        if draft.record.url is None or not draft.source.filtered:
            return None
        found = judge_url(draft.record.url, self._lists, self.cfg.url)
        return None if found is None else Removal(found.reason, found.value, found.threshold)

    def _rights(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        if draft.record.kind != "html":
            return None
        rights = find_rights(draft.text, self.cfg.rights)
        draft.license = _known(rights.base_license)
        return judge_rights(rights, self.cfg.rights)

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
        draft.words = draft.text.split()
        return judge_repetition(draft.text, draft.words, draft.language, self.cfg.repetition)

    def _quality(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        if not draft.source.filtered:
            return None
        return judge_quality(draft.text, draft.words, draft.language, self.cfg.quality)

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
            draft.set_text(done.text)
        return done.removal

    def _fineweb(self, draft: _Draft, funnel: Funnel) -> Removal | None:
        return judge_fineweb(draft.text, self.cfg.fineweb) if draft.source.filtered else None

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
        return Kept(draft.row(), place, draft.size, key, keys)


def _known(license_id: str | None) -> str | None:
    """A licence that a page states, if it is one whose terms we know."""
    try:
        return None if license_id is None else find_expression(license_id).id
    except UserError:
        return None


def stack_keys(keys: list[Array], bands: int) -> Array:
    """The band keys of all documents, shape (documents, bands)."""
    return np.stack(keys) if keys else np.zeros((0, bands), np.uint64)
