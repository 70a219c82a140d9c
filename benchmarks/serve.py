"""What the server costs over the engine alone, and whether many slow clients are all served.

    python benchmarks/serve.py [--quick] [--device cuda] [--model PATH] [--clients N]

Speed: 8 texts of equal length, once by `Engine.generate`, once as 8 streams of a server that is a process of its own, in turns;
tokens a second, medians. The client reads raw sockets, so that it takes little of the machine that it shares with the server.
On Linux also the time that processors worked for a token, which other work on the machine blurs less: of the engine alone, and
of server and client together.

Soak: many clients at once that read slowly, of which every tenth leaves in the middle. All others must get their whole text,
and afterwards no block may be held.

Without --model it is a random model of LLaMA-2's shape with 10 (--quick) or 135 million parameters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers

import herdbook as hb
from harness import finish, table
from herdbook.api import LanguageModel
from herdbook.infer.config import Sampling
from herdbook.infer.engine import Engine
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.threads import SPINS
from herdbook.tokenizer import Tokenizer

STREAMS = 8
SHAPES: dict[bool, dict[str, Any]] = {
    True: {"d_model": 320, "n_layers": 8, "n_heads": 5, "context": 2048},
    False: {"d_model": 576, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "d_ff": 1536, "context": 2048},
}


def random_model(folder: Path, *, small: bool) -> Path:
    """A model of random weights and single bytes, in a folder."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Trained(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trained.add_special_tokens(["<|end|>"])
    model = Decoder(ModelConfig.model_validate({"vocab_size": 32_000, **SHAPES[small]}))
    model.init_weights(torch.Generator().manual_seed(0))
    LanguageModel(model, Tokenizer(trained.to_str(), {"eos_token": "<|end|>"})).save(folder)
    return folder


@contextmanager
def served(model: Path, device: str) -> Iterator[tuple[int, int]]:
    """A server of the model; its port and the number of its process."""
    words = [sys.executable, "-m", "herdbook", "serve", f"it={model}", "--port", "0", "--device", device]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found:
                break
        else:
            sys.exit("the server did not start")
        try:
            yield int(found[1]), process.pid
        finally:
            process.terminate()


async def stream(port: int, body: dict[str, Any], *, pause: float = 0.0, leave_after: int | None = None) -> int:
    """Read a stream; how many tokens came, or -1 when it did not end as it should."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    text = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
    )
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + text)
    end = b""
    try:
        pieces = 0
        while block := await reader.read(2**16):
            end = (end + block)[-1000:]
            if pause:
                pieces += block.count(b"data: ")
                if leave_after is not None and pieces >= leave_after:
                    return 0
                await asyncio.sleep(pause)
    finally:
        writer.close()
    found = re.search(rb'"completion_tokens":(\d+)', end)
    return int(found[1]) if found is not None and b"data: [DONE]\n\n" in end else -1


def prompt(number: int, turn: int, length: int) -> str:
    """Texts that share no beginning, in other turns neither."""
    return (f"{turn:03d} {number:03d} " * length)[:length]


async def streams(port: int, turn: int, tokens: int) -> float:
    """Tokens a second of the server's streams."""
    asked = [
        {"prompt": prompt(number, turn, 64), "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        for number in range(STREAMS)
    ]
    began = time.perf_counter()
    counts = await asyncio.gather(*(stream(port, body) for body in asked))
    assert counts == [tokens] * STREAMS, counts
    return sum(counts) / (time.perf_counter() - began)


def alone(engine: Engine, turn: int, tokens: int) -> float:
    """Tokens a second of the engine itself."""
    began = time.perf_counter()
    done = engine.generate(
        [prompt(number, turn, 64) for number in range(STREAMS)], Sampling(max_tokens=tokens, ignore_end=True, temperature=0)
    )
    assert all(len(one.ids) == tokens for one in done)
    return STREAMS * tokens / (time.perf_counter() - began)


def busy(*processes: int) -> float:
    """Seconds that processors have worked for processes; 0 where the system does not say."""
    stats = [Path(f"/proc/{number}/stat") for number in processes]
    ticks = sum(int(tick) for one in stats if one.exists() for tick in one.read_text().rpartition(")")[2].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def in_turns(lm: LanguageModel, port: int, server: int, turns: int, tokens: int) -> dict[str, list[tuple[float, float]]]:
    """Tokens a second, and microseconds of processors a token, of each turn of the engine and the server."""
    found: dict[str, list[tuple[float, float]]] = {"engine": [], "server": []}
    for turn in range(turns + 1):  # the first one warms up
        for name in ("engine", "server") if turn % 2 else ("server", "engine"):
            before = busy(os.getpid(), server)
            rate = alone(lm.engine, turn, tokens) if name == "engine" else asyncio.run(streams(port, turn, tokens))
            work = (busy(os.getpid(), server) - before) / (STREAMS * tokens) * 1e6
            found[name] += [(rate, work)] if turn else []
    return found


async def soak(port: int, clients: int, tokens: int) -> dict[str, Any]:
    """Many slow clients at once: how many texts were lost, and how long it took."""
    began = time.perf_counter()
    counts = await asyncio.gather(*(
        stream(port, {"prompt": prompt(number, 999, 32), "max_tokens": tokens, "ignore_eos": True, "seed": number}, pause=0.02,
               leave_after=tokens // 4 if number % 10 == 9 else None)
        for number in range(clients)
    ))  # fmt: skip
    stayed = [count for number, count in enumerate(counts) if number % 10 != 9]
    await asyncio.sleep(1)
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    held = float(re.findall(r"^herdbook_kv_blocks_held\{.*\} (\S+)$", metrics, re.MULTILINE)[0])
    return {"clients": clients, "lost": sum(count != tokens for count in stayed), "blocks_held_after": held,
            "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer turns, within two minutes")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", type=Path, help="a model folder or .gguf file")
    parser.add_argument("--clients", type=int, default=200)
    asked = parser.parse_args()
    if "GOMP_SPINCOUNT" not in os.environ:  # the server's threads wait like this too, and torch has been loaded here already
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GOMP_SPINCOUNT": SPINS})
    turns, tokens = (3, 192) if asked.quick else (7, 256)
    with tempfile.TemporaryDirectory() as scratch:
        path = asked.model or random_model(Path(scratch) / "model", small=asked.quick)
        lm = hb.load(path, dtype="auto", device=asked.device, packed=True)
        with served(path, asked.device) as (port, server):
            found = in_turns(lm, port, server, turns, tokens)
            lasted = asyncio.run(soak(port, asked.clients, 64))
    medians = {name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in found.items()}
    pairs = list(zip(found["engine"], found["server"], strict=True))
    share = statistics.median(theirs[0] / ours[0] for ours, theirs in pairs)
    work = statistics.median(theirs[1] / ours[1] for ours, theirs in pairs) if busy(os.getpid()) else None
    table(f"{STREAMS} texts at once, {lm.parameters:,} parameters", ["what", "tokens/s", "µs of processors a token"],
          [[name, f"{rate:,.0f}", f"{cost:,.0f}"] for name, (rate, cost) in medians.items()])  # fmt: skip
    table("slow clients", list(lasted), [[str(value) for value in lasted.values()]])
    whole = float(lasted["lost"] == 0 and lasted["blocks_held_after"] == 0)
    results = {"tokens_per_second": {name: rate for name, (rate, _) in medians.items()}, "parameters": lm.parameters,
               "processor_us_per_token": {name: cost for name, (_, cost) in medians.items()},
               "processor_time_server/engine": work, "soak": lasted}  # fmt: skip
    ratios = {"server/engine at 8 streams": share, "soak without loss or leak": whole}
    finish("serve", results, ratios, {"server/engine at 8 streams": 0.95, "soak without loss or leak": 1.0}, asked.device)


if __name__ == "__main__":
    main()
