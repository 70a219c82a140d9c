"""Deduplication: MinHash signatures with normalising, and exact substrings.

    python benchmarks/dedup.py [--quick]

Everything is in CPU seconds of one core, because wall time says little on a shared machine. The peer is datatrove's signature
(its own normalising, tokenizer, hashes), in an environment of its own under .bench/datatrove that this script makes; where that
fails it is absent. Limits: a signature cannot be faster than hashing the words of the text; substring search sorts one 64-bit
number a token, so sorting them in memory is its limit.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness import arguments, finish, table
from herdbook.corpus.config import MINHASH
from herdbook.corpus.dedup import band_keys
from herdbook.corpus.minhash import normalize, signature
from herdbook.corpus.substring import find_spans, word_tokens
from herdbook.corpus.words import word_hashes

ENVIRONMENT = Path(__file__).resolve().parents[1] / ".bench" / "datatrove"
PACKAGES = ("datatrove==0.10.1", "spacy", "aiohttp", "requests", "numpy", "regex", "xxhash<4", "nltk", "tokenizers")
CHARACTERS = 7800  # a document: the mean of the pages on which datatrove was first measured
PEER = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
texts = json.load(open(sys.argv[1]))
result = {}
for name, buckets, hashes in (("fineweb", 14, 8), ("refinedweb", 450, 20)):
    step = MinhashDedupSignature("unused", MinhashConfig(num_buckets=buckets, hashes_per_bucket=hashes, n_grams=5))
    some = texts if name == "fineweb" else texts[: max(2, len(texts) // 10)]
    step.get_signature(step.get_shingles(texts[0]))
    began = time.process_time()
    for text in some:
        step.get_signature(step.get_shingles(text))
    result[name] = len(some) / (time.process_time() - began)
print(json.dumps(result))
"""


def make_texts(count: int) -> list[str]:
    """Documents of words with the frequencies of English (Zipf's law), punctuation, capitals and some curly quotes."""
    pick = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = ["".join(pick.choices(letters, range(26, 0, -1), k=pick.randint(2, 9))) for _ in range(30_000)]
    weights = [1 / rank for rank in range(10, 30_010)]
    texts = []
    for _ in range(count):
        drawn = pick.choices(words, weights, k=CHARACTERS // 6)
        for place in range(0, len(drawn), 12):
            drawn[place] = pick.choice((f"{drawn[place]}.", f"“{drawn[place]}”", drawn[place].title()))
        texts.append(" ".join(drawn))
    return texts


def cpu(run: Callable[[], object], turns: int) -> float:
    """Median CPU seconds, after a warm-up."""
    times = []
    for turn in range(turns + 1):
        began = time.process_time()
        run()
        if turn:
            times.append(time.process_time() - began)
    return statistics.median(times)


def datatrove(texts: list[str]) -> dict[str, float]:
    """Its documents a second by preset; empty when it cannot be installed or run."""
    python = ENVIRONMENT / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True, capture_output=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True, capture_output=True)
        given = ENVIRONMENT / "texts.json"
        given.write_text(json.dumps(texts))
        done = subprocess.run([str(python), "-c", PEER, str(given)], check=True, capture_output=True, text=True, timeout=900)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found
    except (OSError, subprocess.SubprocessError) as error:
        print(f"datatrove is absent: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
        return {}


def signatures(texts: list[str], turns: int) -> dict[str, float]:
    """Our documents a CPU second by preset, from text to band keys; and the limit."""
    speeds = {}
    for name, cfg in MINHASH.items():
        speeds[name] = len(texts) / cpu(
            lambda cfg=cfg: [band_keys(signature(normalize(text), cfg), cfg) for text in texts], turns
        )
    speeds["limit"] = len(texts) / cpu(lambda: [word_hashes(text.split()) for text in texts], turns)
    return speeds


def substrings(texts: list[str], turns: int) -> dict[str, float]:
    """Megabytes of text a CPU second: words to hashes, the search, and the sort that limits it.

    The search is over shuffled words, with a passage of 300 copied into every tenth document.
    """
    size = sum(len(text.encode()) for text in texts) / 1e6
    pick = np.random.default_rng(0)
    flat = pick.permutation(np.concatenate([word_tokens(text)[0] for text in texts]))
    tokens = np.array_split(flat, len(texts))
    for place in range(3, len(tokens), 10):
        tokens[place][300:600] = tokens[place - 3][100:400]
    return {
        "words to hashes": size / cpu(lambda: [word_tokens(text) for text in texts], turns),
        "search": size / cpu(lambda: sum(map(len, find_spans(tokens))), turns),
        "limit": size / cpu(lambda: np.argsort(flat), turns),
    }


def main() -> None:
    options = arguments(__doc__ or "")
    turns = 3 if options.quick else 7
    texts = make_texts(200 if options.quick else 500)
    peer = datatrove(texts[: 50 if options.quick else 200])
    ours, search = signatures(texts, turns), substrings(texts * 8, turns)
    results: dict[str, Any] = {"signatures_documents_per_s": ours, "datatrove": peer or None, "substring_mb_per_s": search}
    hashes = {name: f"{cfg.num_perm:,} hashes" for name, cfg in MINHASH.items()}
    theirs = {name: f"{peer[name]:,.1f}" if peer else "absent" for name in MINHASH}
    rows = [[hashes[name], f"{ours[name]:,.0f}", theirs[name], f"{ours[name] / ours['limit']:.0%}"] for name in MINHASH]
    table(f"Signatures, documents of {CHARACTERS:,} characters a CPU second", ["", "ours", "datatrove", "of the limit"], rows)
    rows = [[name, f"{speed:.0f}", f"{search['limit'] / speed:.1f} ×"] for name, speed in search.items()]
    table("Exact substrings of 50 words, MB of text a CPU second", ["", "MB/s", "time of the limit"], rows)
    ratios = {f"{name}/datatrove": ours[name] / speed for name, speed in peer.items()}
    goals = {key: {"refinedweb/datatrove": 50.0, "fineweb/datatrove": 20.0}[key] for key in ratios}
    ratios["substring search/15 MB a second"] = search["search"] / 15
    finish("dedup", results, ratios, {**goals, "substring search/15 MB a second": 1.0})


if __name__ == "__main__":
    main()
