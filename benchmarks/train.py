"""Training speed: our loop beside litgpt's and Hugging Face's Trainer, with equal models, tokens and data.

    python benchmarks/train.py [--quick] [--device cuda] [--turns N] [--sizes 10M,50M] [--threads N]

Text is the source of Python's standard library, cut into tokens by a tokenizer of 8,192 trained on it. Models are of LLaMA-2's
shape with one matrix for embedding and head, 4,096 tokens a step; a peer gets the very rows that our loader gives. Each trainer
is a process that runs its own loop (`train_worker.py`): it trains a turn of steps while the others wait, and what counts is
the median turn. The losses must fall, and a peer's be near ours, or the run is not counted.

"best" is the fastest of a peer's settings. All of these have the allocator's settings that Herdbook makes for itself, and its
short spin of waiting threads; "as it comes" has neither, and the precision that is the peer's default. The share of the peak is
that of the best matrix product tried on this machine in the precision in question. "First step" counts from the start of the
process, compilation with an empty cache included, while nothing else of this benchmark runs. "Stall" is by how much a turn
with a checkpoint in it is longer, as a share of the time between two checkpoints as set by default.

On a GPU: 1.1B parameters at 2,048 tokens, and twins of MPT's (ALiBi) and Falcon's (parallel block) shape of the same size.
nanoGPT is no package in any registry and so is absent. Peers live in an environment of their own under `.bench/train`, made
at the first run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness import finish, table
from herdbook.console import Terminal
from herdbook.documents import DocumentWriter
from herdbook.model.config import ModelConfig
from herdbook.pedigree import cores
from herdbook.plan.peak import measure_peak, training_dtype
from herdbook.threads import SPINS
from herdbook.tokens.build import build_tokens
from herdbook.tokens.config import TokenizerConfig, TokensConfig
from herdbook.tokens.loader import Mixture
from herdbook.tokens.tokenizer import train_tokenizer
from herdbook.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".bench" / "train"
PACKAGES = ["torch", "litgpt", "transformers", "accelerate", "numpy"]
VOCABULARY = 8192
LLAMA = {"vocab_size": VOCABULARY, "tied": True}
SIZES: dict[str, dict[str, Any]] = {
    "10M": {**LLAMA, "d_model": 320, "n_layers": 6, "n_heads": 5, "d_ff": 896, "context": 256},
    "50M": {**LLAMA, "d_model": 640, "n_layers": 9, "n_heads": 10, "d_ff": 1792, "context": 512},
}
BIG = {"vocab_size": 32_000, "tied": False, "d_model": 2048, "n_layers": 22, "n_heads": 32, "context": 2048}
GPU_SIZES: dict[str, dict[str, Any]] = {"1.1B": {**BIG, "n_kv_heads": 4, "d_ff": 5632}}
TWINS: dict[str, dict[str, Any]] = {
    "ALiBi": {**BIG, "positions": "alibi", "norm": "layernorm_low_precision", "activation": "gelu", "d_ff": 8192,
              "n_layers": 21},
    "parallel block": {**BIG, "n_kv_heads": 1, "block": "parallel_one_norm", "norm": "layernorm", "norm_bias": True,
                       "activation": "gelu", "d_ff": 8192, "n_layers": 25},
}  # fmt: skip
# Trainer, precision as it names it, compiled, allocator and waiting as ours.
CASES: dict[str, tuple[str, str, bool, bool]] = {
    "ours": ("ours", "bfloat16", True, True),
    "ours, not compiled": ("ours", "bfloat16", False, True),
    "ours, float32": ("ours", "float32", True, True),
    "litgpt": ("litgpt", "bf16-mixed", True, True),
    "litgpt, as it comes": ("litgpt", "bf16-mixed", True, False),
    "Trainer, bf16": ("trainer", "bf16", False, True),
    "Trainer, bf16 compiled": ("trainer", "bf16", True, True),
    "Trainer, as it comes": ("trainer", "float32", False, False),
}
QUICK = ("ours", "litgpt", "Trainer, bf16", "Trainer, as it comes")
# At 50M each process takes 3.5 GB, and not more than these have room beside each other in 24.
LARGE = ("ours", "litgpt", "Trainer, bf16", "Trainer, bf16 compiled", "Trainer, as it comes")
ON_GPU = ("ours", "litgpt", "Trainer, bf16", "Trainer, bf16 compiled")


class Worker:
    """A trainer in a process of its own; see `train_worker.py`."""

    def __init__(self, name: str, case: dict[str, Any], scratch: Path) -> None:
        self.name, self.turns, self.said = name, [], {}  # type: ignore[var-annotated]
        plain = "".join(letter if letter.isalnum() else "_" for letter in name)  # compilers stumble over spaces in paths
        python = sys.executable if case["trainer"] == "ours" else str(ENVIRONMENT / "bin" / "python")
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TORCHINDUCTOR_CACHE_DIR": str(scratch / "cache" / plain),
               "OMP_NUM_THREADS": str(case["threads"])}  # fmt: skip
        if case["tuned"]:
            env["GOMP_SPINCOUNT"] = SPINS
        words = [python, str(ROOT / "benchmarks" / "train_worker.py"), json.dumps({**case, "started": time.time()})]
        self.errors = (scratch / f"{plain}.txt").open("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(words, env=env, text=True, **pipes)  # type: ignore[call-overload]

    def hear(self) -> bool:
        """Wait for what the worker says at the end of a turn; False when it has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            print(f"{self.name} is absent: {self.errors.read()[-1500:]}", file=sys.stderr)
            return False
        self.said = json.loads(line)
        return True

    def turn(self) -> dict[str, Any]:
        """Let it train for a turn."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise SystemExit(f"{self.name} died while it waited; is there memory for all of them?") from None
        if not self.hear():
            raise SystemExit(f"{self.name} died while training")
        return self.said

    def end(self) -> None:
        """Stop it."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


def main() -> None:
    options = _options()
    peers = peers_at_hand()
    found, rates = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        make_tokens(scratch)
        for size in options.sizes:
            found[size] = measure(size, options, peers, scratch)
            rates[size] = loader_rate(scratch, found[size])
    ratios, goals = judge(found, rates, options.device)
    finish("train", {"sizes": found, "loader": rates, "threads": options.threads}, ratios, goals, options.device)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest size, fewer trainers and turns")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--turns", type=int, help="turns of each trainer, of which the median counts")
    parser.add_argument("--sizes", help="which sizes, with commas between")
    parser.add_argument("--threads", type=int, default=min(2, cores()), help="processor threads of each")
    options = parser.parse_args()
    known = SIZES if options.device == "cpu" else GPU_SIZES | TWINS
    options.sizes = options.sizes.split(",") if options.sizes else list(known)[: 1 if options.quick else None]
    options.turns = options.turns or (3 if options.quick else 7)
    return options


def peers_at_hand() -> bool:
    """Make the peers' environment if it is not there; False when it cannot be."""
    python = ENVIRONMENT / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True, capture_output=True)
        if subprocess.run([str(python), "-c", "import litgpt, transformers, accelerate"], capture_output=True).returncode:
            limits = ["-c", str(ROOT / "constraints.txt")]
            subprocess.run([str(python), "-m", "pip", "install", "-q", *limits, *PACKAGES], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"peers are absent: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
        return False
    return True


def make_tokens(out: Path) -> None:
    """Shards of about two million tokens of Python's standard library."""
    quiet, written = Terminal(quiet=True), 0
    with DocumentWriter(out / "corpus", "documents") as writer:
        for path in sorted(Path(os.__file__).parent.rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="ignore")[:40_000]
            if text and written < 8_000_000 and "site-packages" not in path.parts:
                writer.write({"id": path.name, "text": text, "source": "stdlib", "license": "PSF-2.0", "language": "en"})
                written += len(text)
    train_tokenizer(TokenizerConfig(vocab_size=VOCABULARY), out / "corpus", out / "tokenizer", quiet)
    build_tokens(TokensConfig(), out / "corpus", out / "tokenizer", out / "tokens", quiet, workers=2)


def measure(size: str, options: argparse.Namespace, peers: bool, scratch: Path) -> dict[str, Any]:
    """All trainers of one size in turns."""
    on_gpu = options.device == "cuda"
    shape = (GPU_SIZES | TWINS if on_gpu else SIZES)[size]
    tokens, micro = (131_072, 4) if on_gpu else (4096, 4096 // shape["context"])
    per_turn = 3 if size == "50M" or on_gpu else 6
    # A first turn to warm up, the turns that count, and one with a checkpoint at its beginning.
    steps = per_turn * (options.turns + 2) + 1
    case = {"shape": shape, "tokens": tokens, "micro": micro, "steps": steps, "turn": per_turn,
            "lr": 3e-4 if on_gpu else 1e-3, "device": options.device, "threads": options.threads,
            "data": str(scratch), "rows": str(scratch / f"{size}.npy"),
            "checkpoint": per_turn * (options.turns + 1) + 1}  # fmt: skip
    mixture = Mixture(scratch / "tokens", context=shape["context"], seed=0)
    np.save(case["rows"], mixture.sequences(range((steps + 2) * tokens // shape["context"])).tokens_BT.astype(np.uint16))
    if options.device == "cpu" and training_dtype() == "float32":
        names = [name for name in CASES if CASES[name][1] == "float32"]
    else:
        names = list(ON_GPU if on_gpu else QUICK if options.quick else LARGE if size == "50M" else CASES)
    workers = start([name for name in names if CASES[name][0] == "ours" or (peers and size not in TWINS)], case, scratch)
    for _ in range(options.turns):
        for worker in workers:
            worker.turns.append(worker.turn())
    stalls = {worker.name: worker.turn() for worker in workers if worker.name == "ours"}
    for worker in workers:
        worker.end()
    return summary(size, case, workers, stalls)


def start(names: list[str], case: dict[str, Any], scratch: Path) -> list[Worker]:
    """The workers that came to the end of a first turn. Ours start one after the other, so that their first step is timed."""
    workers, waiting = [], []
    for name in names:
        trainer, precision, compiled, tuned = CASES[name]
        worker = Worker(
            name, {**case, "trainer": trainer, "precision": precision, "compile": compiled, "tuned": tuned}, scratch
        )
        waiting.append(worker)
        if trainer == "ours" and not worker.hear():
            raise SystemExit("our own trainer does not run")
    for worker in waiting:
        if worker.name.startswith("ours") or worker.hear():
            workers.append(worker)
        else:
            worker.end()
    return workers


def summary(size: str, case: dict[str, Any], workers: list[Worker], stalls: dict[str, Any]) -> dict[str, Any]:
    """Rates, shares of the peak and losses by trainer; shown to people as a table."""
    shape, tokens, turn = case["shape"], case["tokens"], case["turn"]
    kinds = {"float32", training_dtype(case["device"])}
    peak = {kind: measure_peak(kind, case["threads"], device=case["device"]) for kind in kinds}
    flops = ModelConfig(**shape).flops_per_token() * tokens
    results: dict[str, Any] = {}
    for worker in workers:
        kind = "float32" if CASES[worker.name][1] == "float32" else "bfloat16"
        step_s, cpu_s = (statistics.median(said[key] for said in worker.turns) for key in ("s", "cpu_s"))
        losses = worker.said["losses"]
        results[worker.name] = {
            "tokens_per_s": tokens / step_s, "cpu_s_per_step": cpu_s, "share_of_peak": flops / step_s / peak[kind],
            "first_step_s": worker.said["first_s"],
            "page_faults_per_step": statistics.median(said["faults"] for said in worker.turns),
            "rss_mb": worker.said["rss_mb"], "loss_first": losses[0], "loss_last": losses[turn * len(worker.turns)],
            "spread": (max(t["s"] for t in worker.turns) - min(t["s"] for t in worker.turns)) / step_s,
        }  # fmt: skip
    for name, said in stalls.items():
        usual_s = tokens / results[name]["tokens_per_s"]
        results[name]["checkpoint_stall_s"] = max(0.0, (said["s"] - usual_s) * turn)
    head = ["trainer", "tokens/s", "± turns", "CPU s a step", "share of peak", "first step", "page faults", "MB", "loss"]
    lines = [
        [name, f"{row['tokens_per_s']:,.0f}", f"{row['spread']:.0%}", f"{row['cpu_s_per_step']:.3f}",
         f"{row['share_of_peak']:.1%}", f"{row['first_step_s']:.1f} s", f"{row['page_faults_per_step']:,.0f}",
         f"{row['rss_mb']:,.0f}", f"{row['loss_first']:.2f} → {row['loss_last']:.2f}"]
        for name, row in results.items()
    ]  # fmt: skip
    tops = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s {kind}" for kind, rate in sorted(peak.items()))
    title = f"{size}, context {shape['context']}, {tokens:,} tokens a step, {case['threads']} threads; best products {tops}"
    table(title, head, lines)
    return {"trainers": results, "peak_flops": peak, "parameters": ModelConfig(**shape).parameters()}


def loader_rate(scratch: Path, found: dict[str, Any]) -> dict[str, float]:
    """Tokens a second that the loader alone gives on one thread, beside what the fastest of ours takes."""
    mixture, context, batch = Mixture(scratch / "tokens", context=512, seed=0), 512, 8
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 2:
        mixture.sequences(range(count * batch, (count + 1) * batch))
        count += 1
    rate = count * batch * context / (time.perf_counter() - began)
    return {"tokens_per_s": rate, "times_training": rate / found["trainers"]["ours"]["tokens_per_s"]}


def judge(found: dict[str, Any], loader: dict[str, Any], device: str) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios and the goals that apply. A trainer whose loss did not fall, or ended far from ours, is not compared with."""
    ratios, goals = {}, {}
    for size, one in found.items():
        trainers = one["trainers"]
        mine = trainers["ours"]
        fair = {name: row for name, row in trainers.items() if abs(row["loss_last"] - mine["loss_last"]) < 1}
        fair = {name: row for name, row in fair.items() if row["loss_last"] < row["loss_first"] - 0.5}
        for name, row in fair.items():
            if not name.startswith("ours"):
                ratios[f"{size} ours/{name}"] = mine["tokens_per_s"] / row["tokens_per_s"]
                ratios[f"{size} CPU time {name}/ours"] = row["cpu_s_per_step"] / mine["cpu_s_per_step"]
        rates = [row["tokens_per_s"] for name, row in fair.items() if not name.startswith("ours")]
        if rates:
            ratios[f"{size} ours/best peer"] = mine["tokens_per_s"] / max(rates)
            goals[f"{size} ours/best peer"] = 1.2 if device == "cpu" else 1.0
        if f"{size} ours/Trainer, as it comes" in ratios:
            goals[f"{size} ours/Trainer, as it comes"] = 3.0
        ratios[f"{size} share of peak"] = mine["share_of_peak"]
        if size in ("50M", "1.1B"):
            goals[f"{size} share of peak"] = 0.65 if device == "cpu" else 0.5
        ratios[f"{size} loader/training"] = loader[size]["times_training"]
        goals[f"{size} loader/training"] = 50.0
        interval = TrainConfig().checkpoint_every_s or 120.0
        ratios[f"{size} 2 %/checkpoint stall"] = 0.02 / max(mine["checkpoint_stall_s"] / interval, 1e-4)
        ratios[f"{size} 25 s/first step"] = 25 / mine["first_step_s"]
        goals |= {f"{size} 2 %/checkpoint stall": 1.0, f"{size} 25 s/first step": 1.0}
        if "ours, not compiled" in trainers:
            ratios[f"{size} 5 s/first step, not compiled"] = 5 / trainers["ours, not compiled"]["first_step_s"]
            goals[f"{size} 5 s/first step, not compiled"] = 1.0
    for twin in TWINS:
        if twin in found and "1.1B" in found:
            pair = (found[name]["trainers"]["ours"]["share_of_peak"] for name in (twin, "1.1B"))
            ratios[f"{twin}/LLaMA-2"] = next(pair) / next(pair)
            goals[f"{twin}/LLaMA-2"] = 0.9
    return ratios, goals


if __name__ == "__main__":
    main()
