"""Main-content extraction: quality and speed, ours beside resiliparse, trafilatura and jusText.

    python benchmarks/extraction.py [--quick]

Pages: Mozilla Readability's, with the main content as they expect it, from the shared data folder (`HERDBOOK_SHARED`). A third
of them, by a hash of the name, is "held out": the rules were written on the others, and it was looked at once. Measure: the set
of word 4-grams (`\\w+`, lower case) of the text found against that of the text expected; precision, recall and F1 a page, then
their means. Speed: pages per second of processor time, second pass, one process. trafilatura and jusText run in an environment
of their own under `.bench/`, made here at the first run; without the network they are absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from resiliparse.extract.html2text import extract_plain_text

from harness import arguments, finish, table
from herdbook.corpus.native import extract_native

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("HERDBOOK_SHARED", ROOT / "shared" / "data"))
BENCH = ROOT / ".bench" / "extraction"
PEERS = {
    "trafilatura": "import trafilatura\ndef run(page): return trafilatura.extract(page, include_comments=False)",
    "trafilatura fast": "import trafilatura\n"
    "def run(page): return trafilatura.extract(page, include_comments=False, fast=True)",
    "jusText": "import justext\nstop = justext.get_stoplist('English')\n"
    "def run(page): return '\\n\\n'.join(p.text for p in justext.justext(page, stop) if not p.is_boilerplate)",
}
WORKER = """
import json, sys, time
{engine}
def safe(page):
    try: return run(page) or ""
    except Exception: return ""
pages = json.load(sys.stdin)
[safe(page) for page in pages[:3]]
began = time.process_time()
texts = [safe(page) for page in pages]
json.dump([time.process_time() - began, texts], sys.stdout)
"""


def pages_and_texts() -> dict[str, tuple[str, str]]:
    """Pages by name, each with the text of the main content expected."""
    files: dict[str, dict[str, str]] = {}
    with tarfile.open(SHARED / "html" / "readability" / "test-pages.tar.gz") as tar:
        for member in tar:
            if member.name.endswith(".html") and (file := tar.extractfile(member)) is not None:
                path = Path(member.name)
                files.setdefault(path.parent.name, {})[path.name] = file.read().decode("utf-8", "replace")
    return {
        name: (pair["source.html"], extract_plain_text(pair["expected.html"], list_bullets=False, alt_texts=False))
        for name, pair in sorted(files.items())
    }


def shingles(text: str) -> set[tuple[str, ...]]:
    """The word 4-grams of a text; all of its words if they are fewer."""
    words = re.findall(r"\w+", text.lower())
    if len(words) < 4:
        return {tuple(words)} if words else set()
    return set(zip(words, words[1:], words[2:], words[3:], strict=False))


def score(found: str, expected: str) -> tuple[float, float, float]:
    """Precision, recall and F1 of one page."""
    ours, theirs = shingles(found), shingles(expected)
    if not ours or not theirs:
        return (1.0, 1.0, 1.0) if not ours and not theirs else (0.0, 0.0, 0.0)
    both = len(ours & theirs)
    return both / len(ours), both / len(theirs), 2 * both / (len(ours) + len(theirs))


def here(run: Callable[[str], str], pages: list[str]) -> tuple[float, list[str]]:
    """Processor seconds of a second pass in this process, and the texts."""
    for page in pages:
        run(page)
    began = time.process_time()
    texts = [run(page) for page in pages]
    return time.process_time() - began, texts


def there(engine: str, pages: list[str]) -> tuple[float, list[str]] | None:
    """The same in the peers' environment, made if it is not there; None if it cannot be."""
    python = BENCH / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", BENCH], check=True, capture_output=True)
            needed = ["trafilatura==2.3.1", "lxml_html_clean", "justext"]
            subprocess.run([python, "-m", "pip", "install", "-q", *needed], check=True, capture_output=True)
        worker = WORKER.format(engine=engine)
        done = subprocess.run([python, "-c", worker], input=json.dumps(pages), check=True, capture_output=True, text=True)
    except (subprocess.CalledProcessError, OSError):
        return None
    seconds, texts = json.loads(done.stdout)
    return seconds, texts


def main() -> None:
    options = arguments(__doc__ or "")
    known = pages_and_texts()
    names = list(known)[:: 3 if options.quick else 1]
    held = [hashlib.sha256(name.encode()).digest()[0] % 3 == 0 for name in names]
    pages = [known[name][0] for name in names]
    runs = {
        "native": here(extract_native, pages),
        "resiliparse": here(
            lambda page: extract_plain_text(page, main_content=True, alt_texts=False, list_bullets=False), pages
        ),
        **{name: there(engine, pages) for name, engine in PEERS.items()},
    }
    results: dict[str, dict[str, float]] = {}
    rows = []
    for name, run in runs.items():
        if run is None:
            rows.append([name, "absent", "", "", "", ""])
            continue
        seconds, texts = run
        scores = [score(text, known[page][1]) for page, text in zip(names, texts, strict=True)]
        p, r, f1 = (sum(column) / len(scores) for column in zip(*scores, strict=True))
        apart = [each[2] for each, out in zip(scores, held, strict=True) if out]
        speed = len(pages) / seconds
        results[name] = {
            "precision": round(p, 4), "recall": round(r, 4), "f1": round(f1, 4),
            "f1_held_out": round(sum(apart) / len(apart), 4), "pages_per_cpu_second": round(speed, 1),
        }  # fmt: skip
        rows.append([name, f"{p:.3f}", f"{r:.3f}", f"{f1:.3f}", f"{results[name]['f1_held_out']:.3f}", f"{speed:.0f}"])
    header = ["engine", "precision", "recall", "F1", "F1, held out", "pages per CPU second"]
    table(f"Main content of {len(names)} pages, word 4-grams", header, rows)
    ratios = {}
    for peer in [name for name in results if name != "native"]:
        ratios[f"f1 native/{peer}"] = results["native"]["f1"] / results[peer]["f1"]
        ratios[f"speed native/{peer}"] = results["native"]["pages_per_cpu_second"] / results[peer]["pages_per_cpu_second"]
    goals = {"f1 native/resiliparse": 1.0, "f1 native/trafilatura": 1.0, "speed native/trafilatura": 7.0}
    finish("extraction", results, ratios, {key: goal for key, goal in goals.items() if key in ratios})


if __name__ == "__main__":
    main()
