"""Tokenisation beside the `tokenizers` library, and the loader beside what training needs of it.

    python benchmarks/tokens.py [--quick]

Text is the source of Python's standard library. The peer is `tokenizers.Tokenizer.encode_batch` with the same tokenizer on
texts that are in memory: as many processes of one thread as we have workers, each with its part of the texts, only encoding
timed. That is its own rate times the workers, on the very cores and under the very load that ours meets. Ours is the whole
station with that many workers: parquet in, shards with their lists of documents, hashes and index out, processes started and
ended. `threads` is the peer in one process with as many threads. All take turns, and the median counts. On a machine with other
work to do, megabytes a CPU second say more than those a second.

The loader is asked for batches as training asks, in steps of half a million tokens. Fifty devices that train at 10,000
tokens a second each need 500,000 a second.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import arguments, finish, table
from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.documents import DocumentWriter, document_files, read_documents
from herdbook.tokens.build import build_tokens
from herdbook.tokens.config import TokenizerConfig, TokensConfig
from herdbook.tokens.loader import Mixture
from herdbook.tokens.tokenizer import train_tokenizer

NEEDED = 50 * 10_000  # tokens a second
PEER = """
import json, sys, time
from tokenizers import Tokenizer
encoder = Tokenizer.from_file(sys.argv[1])
encoder.encode_special_tokens = True
texts = json.load(open(sys.argv[2]))
encoder.encode_batch(texts[:50], add_special_tokens=False)
began = time.perf_counter()
for start in range(0, len(texts), 256):
    rows = [row.ids for row in encoder.encode_batch(texts[start : start + 256], add_special_tokens=False)]
print(json.dumps(time.perf_counter() - began))
"""


def write_corpus(out: Path, size: int) -> int:
    """A corpus of at least `size` bytes: library sources, gone over again under other names as often as needed."""
    files = sorted(Path(os.__file__).parent.rglob("*.py"))
    written = number = 0
    with DocumentWriter(out, "documents", rows_per_file=4000) as writer:
        while written < size:
            path = files[number % len(files)]
            number += 1
            text = path.read_text(encoding="utf-8", errors="ignore")[:40_000]
            if text:
                writer.write({"id": f"{number}", "text": text, "url": None, "source": "stdlib", "license": "PSF-2.0"})
                written += len(text.encode())
    return written


def peer(tokenizer: Path, texts: list[Path], threads: int) -> float:
    """Seconds until as many processes as there are files of texts have encoded them."""
    env = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    children = [
        subprocess.Popen([sys.executable, "-c", PEER, str(tokenizer / "tokenizer.json"), str(path)], env=env, text=True,
                         stdout=subprocess.PIPE)
        for path in texts
    ]  # fmt: skip
    answers = [child.communicate()[0] for child in children]
    return max(float(json.loads(answer)) for answer in answers)


def cpu() -> float:
    """CPU seconds of this process and of those it has waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(row.ru_utime + row.ru_stime for row in usage)


def encode(folder: Path, size: int, turns: int, workers: int) -> tuple[dict[str, float], dict[str, float]]:
    """Megabytes of text a second and a CPU second, by case."""
    corpus, tokenizer, quiet = folder / "corpus", folder / "tokenizer", Terminal(quiet=True)
    rows = [row["text"] for row in read_documents(corpus)]
    whole, parts = folder / "texts.json", [folder / f"texts-{number}.json" for number in range(workers)]
    whole.write_text(json.dumps(rows))
    for number, part in enumerate(parts):
        part.write_text(json.dumps(rows[number::workers]))
    cases: dict[str, Callable[[], float | None]] = {
        "ours": lambda: build_tokens(TokensConfig(), corpus, tokenizer, folder / "tokens", quiet, workers=workers),
        "peer": lambda: peer(tokenizer, parts, 1),
        "threads": lambda: peer(tokenizer, [whole], workers),
    }
    wall: dict[str, list[float]] = {name: [] for name in cases}
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(turns):
        for name, run in cases.items():
            began, used = time.perf_counter(), cpu()
            encoding = run()
            wall[name].append(encoding or time.perf_counter() - began)
            spent[name].append(cpu() - used)
    rates = {name: size / statistics.median(values) / 1e6 for name, values in wall.items()}
    return rates, {name: size / statistics.median(values) / 1e6 for name, values in spent.items()}


def load(folder: Path, turns: int) -> dict[str, dict[str, float]]:
    """Tokens and sequences a second of the loader on one thread, and the seconds that planning windows takes."""
    found = {}
    for packing in ("concat", "best_fit"):
        index = json.loads((folder / "tokens" / "index.json").read_text())
        index["mixture"]["packing"] = packing
        (folder / "tokens" / "index.json").write_text(json.dumps(index))
        for context in (256, 2048, 8192):
            began = time.perf_counter()
            mixture = Mixture(folder / "tokens", context=context, seed=0)
            opened, rates = time.perf_counter() - began, []
            sequences = (1 << 19) // context
            for step in range(turns):
                began = time.perf_counter()
                mixture.batch(step, sequences)
                rates.append(sequences * context / (time.perf_counter() - began))
            rate = statistics.median(rates)
            found[f"{packing} {context}"] = {"tokens_per_s": rate, "sequences_per_s": rate / context, "opened_s": opened}
    return found


def main() -> None:
    """Encode, load, print."""
    args = arguments(__doc__ or "")
    workers = pedigree.cores()
    turns = 2 if args.quick else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_corpus(folder / "corpus", (12_000_000 if args.quick else 60_000_000) * workers)
        train_tokenizer(TokenizerConfig(vocab_size=16_000, sample_bytes=8_000_000), folder / "corpus", folder / "tokenizer",
                        Terminal(quiet=True))  # fmt: skip
        rates, cpu_rates = encode(folder, size, turns, workers)
        loader = load(folder, 5 * turns)
        files = len(document_files(folder / "corpus"))
    title = f"Tokenisation: {size / 1e6:.0f} MB in {files} files, {workers} workers"
    names = {"ours": "the station", "peer": f"tokenizers, {workers} processes", "threads": f"tokenizers, {workers} threads"}
    table(title, ["case", "MB/s", "MB a CPU second"],
          [[words, f"{rates[name]:.2f}", f"{cpu_rates[name]:.2f}"] for name, words in names.items()])  # fmt: skip
    table("Loader, one thread", ["packing, context", "tokens/s", "sequences/s", "opened in s"], [
        [case, f"{row['tokens_per_s']:,.0f}", f"{row['sequences_per_s']:,.0f}", f"{row['opened_s']:.2f}"]
        for case, row in loader.items()
    ])  # fmt: skip
    ratios = {"station/tokenizers x workers": rates["ours"] / rates["peer"],
              "station/tokenizers' threads": rates["ours"] / rates["threads"],
              "station/tokenizers, CPU": cpu_rates["ours"] / cpu_rates["peer"]}  # fmt: skip
    ratios |= {f"loader {case}/needed": row["tokens_per_s"] / NEEDED for case, row in loader.items()}
    goals = {"station/tokenizers x workers": 0.9, "station/tokenizers, CPU": 0.9} | {
        f"loader {case}/needed": 1.0 for case in loader
    }
    finish(
        "tokens",
        {"workers": workers, "bytes": size, "mb_per_s": rates, "mb_per_cpu_s": cpu_rates, "loader": loader},
        ratios,
        goals,
    )


if __name__ == "__main__":
    main()
