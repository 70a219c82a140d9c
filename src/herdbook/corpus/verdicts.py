"""What became of a document, and what two corpora made differently of the same pages.

`find` looks a document up by id, address or place (FILE@OFFSET) in a finished corpus: among those kept, those held out, and the
ledger of those removed. `replay` reads its record again from where it came and takes it through the steps once more. `diff`
compares the verdicts of two corpora document by document; memory is some 40 bytes a document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import xxhash

from herdbook import pedigree
from herdbook.corpus import builtin
from herdbook.corpus.config import CorpusConfig
from herdbook.corpus.places import is_url
from herdbook.corpus.reasons import REASONS
from herdbook.corpus.records import Skip
from herdbook.corpus.shards import read_at
from herdbook.corpus.urlfilter import prepare
from herdbook.corpus.urls import normal_url
from herdbook.corpus.work import Trace, Worker
from herdbook.errors import UserError

KINDS = {"kept": "documents-*.parquet", "held out": "heldout-*.parquet", "removed": "removed-*.parquet"}
NOT_READ = "not read"
_EXAMPLES = 3
_FOUND = 20


@dataclass(frozen=True)
class Verdict:
    """What became of a document: `kept`, `held out` or `removed`; its row; and passages cut out of it."""

    kind: str
    row: dict[str, Any]
    cuts: list[dict[str, Any]]


def find(corpus: Path, name: str) -> list[Verdict]:
    """The documents with this id, address or place (`FILE@OFFSET`, as the columns `file` and `offset` say them).

    Of addresses scheme, fragment and case of the host do not matter.
    A corpus that came to nothing has a ledger too. Raises UserError when the folder is neither that nor a finished corpus.
    """
    if not (corpus / "funnel.json").is_file():  # written after the ledger
        require_corpus(corpus)
    bare = normal_url(name)
    wanted = (pc.field("id") == name) | pc.match_substring(pc.field("url"), bare.rstrip("/"), ignore_case=True)
    file, _, offset = name.rpartition("@")
    if place := (file, int(offset)) if file and offset.isdecimal() else None:
        wanted |= pc.field("offset") == place[1]
    found: list[Verdict] = []
    for kind, pattern in KINDS.items():
        for row in _scan(corpus, pattern, wanted):
            here = place is not None and row["offset"] == place[1] and _same_file(row["file"], place[0])
            if row["id"] != name and normal_url(row["url"] or "") != bare and not here:
                continue
            # Of two documents with one id, one of which went, each has its own: what was cut says whether its document stays.
            cuts = _scan(corpus, "cuts-*.parquet", pc.field("id") == row["id"])
            told = [{"decision": "cut", "evaluation_set": None, **cut} for cut in cuts]  # older corpora do not say
            found.append(Verdict(kind, row, [cut for cut in told if (cut["decision"] == "removed") == (kind == "removed")]))
            if len(found) == _FOUND:
                return found
    return found


def _same_file(one: str | None, other: str) -> bool:
    """Whether two names, as recipes write them, are those of one file."""
    return one is not None and (one == other or (not is_url(one) and Path(one).resolve() == Path(other).resolve()))


def by_id(corpus: Path, id_: str) -> Verdict | None:
    """The document of an id, wherever it is now."""
    for kind, pattern in KINDS.items():
        for row in _scan(corpus, pattern, pc.field("id") == id_):
            return Verdict(kind, row, [])
    return None


def _scan(corpus: Path, pattern: str, wanted: Any) -> Iterator[dict[str, Any]]:
    for path in sorted(corpus.glob(pattern)):
        for batch in ds.dataset(path, format="parquet").to_batches(filter=wanted, batch_size=4096):
            yield from batch.to_pylist()


def require_corpus(corpus: Path) -> dict[str, Any]:
    """The pedigree of a finished corpus. Raises UserError when the folder is none."""
    if not pedigree.exists(corpus) or pedigree.read(corpus)["station"] != "corpus":
        raise UserError("this is no finished corpus", where=corpus, todo="name the folder that `herdbook curate` wrote")
    return pedigree.read(corpus)


def replay(corpus: Path, row: dict[str, Any]) -> list[Trace] | str:
    """A document's way through the steps, from its record; or why the record cannot be read again."""
    if row["file"] is None or row["offset"] is None:
        return "the ledger does not say where this document came from"
    if not pedigree.exists(corpus):
        return "nothing was left of this corpus, so its settings are not on record"
    cfg = CorpusConfig.model_validate(require_corpus(corpus)["config"])
    source = next((source for source in cfg.sources if source.name == row["source"]), None)
    if source is None:
        return f"the corpus has no source {row['source']!r}"
    try:
        item = read_at(row["file"], str(Path(row["file"]).parent), source.format, source, row["offset"],
                       cfg.limits.max_record_bytes)  # fmt: skip
    except OSError as error:
        return f"{row['file']} cannot be read from here: {error.strerror or error}"
    if isinstance(item, Skip):
        return f"it cannot be read: {REASONS[item.reason].words if item.reason in REASONS else item.reason}"
    if item is None:
        return f"there is no record at byte {row['offset']:,} of {row['file']} any more"
    url = prepare(cfg.url, builtin.cache_folder()) if cfg.url.enabled else cfg.url
    return Worker(cfg.model_copy(update={"url": url})).trace(item, source)


@dataclass
class _Side:
    """The verdicts of one corpus: sorted keys, a code each, and a hash of the text of what was kept."""

    keys: npt.NDArray[np.uint64]
    codes: npt.NDArray[np.uint16]
    texts: npt.NDArray[np.uint64]
    reasons: list[str]


def diff(a: Path, b: Path) -> dict[str, Any]:
    """What two corpora decided differently, by document: address where there is one, else id.

    Returns counts of documents kept in both (with the same text, with another), of those kept in one only with what the other
    says of them, settings that differ, and examples. Of several documents with one address one counts.

    Raises UserError when one is no finished corpus.
    """
    manifests = [require_corpus(folder) for folder in (a, b)]
    left, right = _side(a), _side(b)
    common, at_left, at_right = np.intersect1d(left.keys, right.keys, assume_unique=True, return_indices=True)
    both = (left.codes[at_left] == 0) & (right.codes[at_right] == 0)
    same = left.texts[at_left] == right.texts[at_right]
    only = {
        "a": _only(left, right, common, at_left, at_right),
        "b": _only(right, left, common, at_right, at_left),
    }
    changed = common[both & ~same]
    return {
        "a": {"corpus": str(a), "kept": int((left.codes == 0).sum()), "read": len(left.keys)},
        "b": {"corpus": str(b), "kept": int((right.codes == 0).sum()), "read": len(right.keys)},
        "kept_in_both": int(both.sum()),
        "with_another_text": len(changed),
        "kept_only_in_a": only["a"][0],
        "kept_only_in_b": only["b"][0],
        "settings": changed_settings(manifests[0]["config"], manifests[1]["config"]),
        "examples": {
            "with_another_text": _named(a, changed),
            **{f"kept_only_in_a: {reason}": _named(a, keys) for reason, keys in only["a"][1].items()},
            **{f"kept_only_in_b: {reason}": _named(b, keys) for reason, keys in only["b"][1].items()},
        },
    }


def _key(url: str | None, id_: str) -> int:
    return xxhash.xxh3_64_intdigest((normal_url(url) if url else f"id:{id_}").encode("utf-8", "replace"))


def _side(corpus: Path) -> _Side:
    keys: list[npt.NDArray[np.uint64]] = []
    codes: list[npt.NDArray[np.uint16]] = []
    texts: list[npt.NDArray[np.uint64]] = []
    reasons = ["kept"]
    numbers: dict[str, int] = {}
    for kind, pattern in KINDS.items():
        columns = ["url", "id", "removed_by"] if kind == "removed" else ["url", "id", "text"]
        for path in sorted(corpus.glob(pattern)):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=4096, columns=columns):
                    rows = batch.to_pylist()
                    keys.append(np.array([_key(row["url"], row["id"]) for row in rows], np.uint64))
                    if kind == "removed":
                        for row in rows:
                            if row["removed_by"] not in numbers:
                                numbers[row["removed_by"]] = len(reasons)
                                reasons.append(row["removed_by"])
                        codes.append(np.array([numbers[row["removed_by"]] for row in rows], np.uint16))
                        texts.append(np.zeros(len(rows), np.uint64))
                    else:
                        codes.append(np.zeros(len(rows), np.uint16))
                        hashes = [xxhash.xxh3_64_intdigest(row["text"].encode("utf-8", "replace")) for row in rows]
                        texts.append(np.array(hashes, np.uint64))
    if not keys:
        return _Side(np.zeros(0, np.uint64), np.zeros(0, np.uint16), np.zeros(0, np.uint64), reasons)
    # Of several documents with one address the first counts, and those kept stand first.
    unique, first = np.unique(np.concatenate(keys), return_index=True)
    return _Side(unique, np.concatenate(codes)[first], np.concatenate(texts)[first], reasons)


def _only(
    one: _Side, other: _Side, common: npt.NDArray[np.uint64], at_one: Any, at_other: Any
) -> tuple[dict[str, int], dict[str, npt.NDArray[np.uint64]]]:
    """Documents that `one` kept and `other` did not: how many for each reason of the other's, and which."""
    codes = other.codes[at_other]
    lost = (one.codes[at_one] == 0) & (codes != 0)
    keys = {reason: common[lost & (codes == code)] for code, reason in enumerate(other.reasons) if code}
    unread = np.setdiff1d(one.keys[one.codes == 0], other.keys, assume_unique=True)
    found = {reason: rows for reason, rows in [*keys.items(), (NOT_READ, unread)] if len(rows)}
    return dict(Counter({reason: len(rows) for reason, rows in found.items()}).most_common()), found


def _named(corpus: Path, keys: npt.NDArray[np.uint64]) -> list[str]:
    """The addresses (or ids) of the first few of these documents."""
    wanted = set(keys[:_EXAMPLES].tolist())
    found: list[str] = []
    for pattern in ("documents-*.parquet", "heldout-*.parquet"):
        for path in sorted(corpus.glob(pattern)):
            if len(found) >= len(wanted):
                return found
            rows = pq.read_table(path, columns=["url", "id"]).to_pylist()
            found += [row["url"] or row["id"] for row in rows if _key(row["url"], row["id"]) in wanted]
    return found[:_EXAMPLES]


def changed_settings(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[Any]]:
    """The settings of two corpora that differ, by dotted name; what is only in one is null in the other."""
    flat = [dict(_flat({**config, "sources": _paths(config)})) for config in (a, b)]
    names = sorted({*flat[0], *flat[1]})
    return {name: [flat[0].get(name), flat[1].get(name)] for name in names if flat[0].get(name) != flat[1].get(name)}


def _paths(config: dict[str, Any]) -> list[Any]:
    return [source.get("path") or source.get("builtin") for source in config.get("sources", [])]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flat(below, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
