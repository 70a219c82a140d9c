"""What is cut out of documents that stay: passages that stand elsewhere in the corpus, and passages of evaluation sets.

Both need all documents that stay before the first is written, so they come after deduplication: `look` reads them once (or
twice), `judge` then edits them one by one in the same order. Each copy that is cut is told with where else it stands, and
each hit of an evaluation set with the item it is of; the report counts the items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from herdbook.corpus.blocks import Names
from herdbook.corpus.config import DedupConfig
from herdbook.corpus.contamination import EvaluationIndex, Hit, decontaminate, hit_texts, words_of
from herdbook.corpus.evaluation_items import evaluation_files, read_items
from herdbook.corpus.filters import Removal
from herdbook.corpus.funnel import Funnel, Step, example
from herdbook.corpus.ledger import CONTAMINATION, LedgerWriter
from herdbook.corpus.substring import Span, apply_spans, find_spans, word_tokens
from herdbook.files import write_json

Rows = Iterable[dict[str, Any]]
_ITEMS_NAMED = 3  # items of evaluation sets that the reason of a removal names


class Passages:
    """Substring deduplication and decontamination of one run.

    Args:
        ids: of all documents, by number.
        ledger: where cuts are noted.
    """

    def __init__(self, cfg: DedupConfig, funnel: Funnel, ids: Names, ledger: LedgerWriter) -> None:
        self.cfg, self.funnel, self._ids, self._ledger = cfg, funnel, ids, ledger
        self._alive: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._spans: Iterator[list[Span]] | None = None
        self._cuts: list[dict[str, Any]] = []  # of the document at hand
        self._index = EvaluationIndex(_items(cfg), cfg.contamination) if cfg.contamination.sets else None

    def look(self, rows: Callable[[], Rows], alive: npt.NDArray[np.int64], scratch: Path) -> None:
        """Read all documents that stay; `alive` are their numbers. Spans speak of documents by their place among these."""
        self._alive = alive
        if self.cfg.substring.enabled:
            tokens = (word_tokens(row["text"])[0] for row in rows())
            self._spans = find_spans(tokens, self.cfg.substring.tokens, scratch=scratch)
        if self._index is not None and self.cfg.contamination.max_documents is not None:
            for row in rows():
                self._index.count(words_of(row["text"]))
            self._index.ignore_common()

    def judge(self, row: dict[str, Any]) -> Removal | None:
        """Edit the next document's text in place; why it goes, if it does."""
        self._cuts = []
        removal = self._substring(row) or self._contamination(row)
        for cut in self._cuts:
            # Whatever was to become of a passage, it goes with its document.
            self._ledger.cut({**cut, "decision": "removed"} if removal else cut)
        return removal

    def _substring(self, row: dict[str, Any]) -> Removal | None:
        if self._spans is None:
            return None
        step = self._begin("substring", row)
        began = time.process_time()
        spans = next(self._spans)
        removal = None
        if spans:
            offsets = word_tokens(row["text"])[1]
            done = apply_spans(row["text"], offsets, spans, self.cfg.substring)
            removal = done.removal
            if removal is None and done.cuts:
                self._note(row, spans, offsets)
                row["text"] = done.text.strip()
                removal = None if row["text"] else Removal("few_characters", 0, self.cfg.substring.min_characters)
                step.edits["passage"] += len(done.cuts) if removal is None else 0
        step.cpu_s += time.process_time() - began
        return self._end(step, row, removal)

    def _note(self, row: dict[str, Any], spans: list[Span], offsets: Any) -> None:
        decision = "masked" if self.cfg.substring.variant == "mask" else "cut"
        for number, span in enumerate(spans):
            begin, end = int(offsets[span.start, 0]), int(offsets[span.end - 1, 1])
            self._cuts.append(
                {"id": row["id"], "number": number, "rule": "passage", "decision": decision, "text": row["text"][begin:end],
                 "words": span.end - span.start, "also_in": self._ids[int(self._alive[span.other_document])],
                 "also_at": span.other_start}
            )  # fmt: skip

    def _contamination(self, row: dict[str, Any]) -> Removal | None:
        if self._index is None:
            return None
        step = self._begin("contamination", row)
        began = time.process_time()
        hits = self._index.find_hits(words_of(row["text"]))
        verdict = decontaminate(row["text"], hits, self.cfg.contamination) if hits else None
        removal = None
        if verdict is not None:
            removal = verdict.removal and verdict.removal._replace(detail=_items_in_words(hits))
            kept = verdict.pieces == [row["text"]]
            self._cuts += [
                {"id": row["id"], "number": number, "rule": CONTAMINATION, "decision": "kept" if kept else "cut", "text": text,
                 "words": hit.length, "evaluation_set": hit.task, "item": hit.item, "also_at": hit.item_start}
                for number, (hit, text) in enumerate(zip(hits, hit_texts(row["text"], hits), strict=True))
            ]  # fmt: skip
            if removal is None and not kept:
                step.edits["passage"] += len(hits)
                row["text"] = "\n\n".join(verdict.pieces).strip()
        step.cpu_s += time.process_time() - began
        return self._end(step, row, removal)

    def _begin(self, name: str, row: dict[str, Any]) -> Step:
        step = self.funnel.steps[name]
        step.documents_in += 1
        step.bytes_in += len(row["text"].encode())
        return step

    def _end(self, step: Step, row: dict[str, Any], removal: Removal | None) -> Removal | None:
        if removal is None:
            step.documents_out += 1
            step.bytes_out += len(row["text"].encode())
        else:
            step.drop(removal.reason, example(row["id"], row["url"], removal, row["text"]))
        return removal

    def write(self, out: Path) -> None:
        """Leave the report on evaluation sets beside the corpus."""
        if self._index is not None:
            write_json(out / "contamination.json", self._index.report())


def _items_in_words(hits: list[Hit]) -> str:
    """`quiz: q1, q7 and 3 more`: what a document has of evaluation sets."""
    names = list(dict.fromkeys(f"{hit.task}: {hit.item}" for hit in hits))
    more = f" and {len(names) - _ITEMS_NAMED} more" if len(names) > _ITEMS_NAMED else ""
    return ", ".join(names[:_ITEMS_NAMED]) + more


def _items(cfg: DedupConfig) -> Iterator[Any]:
    for name, path in evaluation_files(cfg.contamination):
        yield from read_items(path, name)
