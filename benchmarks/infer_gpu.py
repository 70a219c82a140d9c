"""The engine on a GPU: one text and many, beside transformers, and what fewer key/value heads and fewer bits bring.

    python benchmarks/infer_gpu.py [--quick] [--dry]

- One text: tokens a second and the share of the memory's bandwidth that its reads make, of the step alone in 16, 8 and 4 bits,
  without the CUDA graph, and of the whole engine. The bandwidth is that of copies, measured in the same run.
- 64 texts at once: tokens a second, beside transformers on the same weights.
- MHA, GQA and MQA: the same decoder with fewer key/value heads, 64 texts behind long prompts.

Weights are random: what they say does not matter to the clock. Medians of steps count. Without a GPU it says so and exits with
2; `--dry` runs all of it on the CPU with tiny models, Triton's interpreter included: that it runs, not how fast.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if "--dry" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import torch

from harness import finish, table
from herdbook.api import LanguageModel
from herdbook.infer.backend import BLOCK, Span
from herdbook.infer.bench import ours
from herdbook.infer.gpu import have_triton
from herdbook.infer.torch_backend import TorchBackend
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.model.quantized import Form, put
from herdbook.quantize.grid import quantized

GOALS = {"one text: share of bandwidth, 16 bits": 0.6, "64 texts: over transformers": 2.0, "GQA over MHA": 1.5}
FORMS = {"8 bits": Form(8, 128, False), "4 bits": Form(4, 32, True)}
DTYPE = torch.bfloat16
Step = Literal["kernels", "none"]


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        shape: of the decoder of the first two parts.
        prompt, written, together: tokens of each prompt and text, and texts at once.
        heads: a decoder whose key/value heads are varied, and the length of the prompts there.
        copied: bytes to measure the bandwidth with.
        turns: repetitions of what is timed by itself.
    """

    shape: dict[str, Any]
    prompt: int
    written: int
    together: int
    heads: dict[str, Any]
    long: int
    copied: int
    turns: int


LLAMA_2 = {"vocab_size": 32_000, "context": 4096, "d_model": 4096, "n_layers": 32, "n_heads": 32, "d_ff": 11_008, "tied": False}
TINYLLAMA = {**LLAMA_2, "context": 2048, "d_model": 2048, "n_layers": 22, "n_kv_heads": 4, "d_ff": 5632}
TINY = {"vocab_size": 320, "context": 64, "d_model": 128, "n_layers": 1, "n_heads": 4, "d_ff": 128, "tied": False}
FULL = Sizes(LLAMA_2, 512, 128, 64, {**LLAMA_2, "n_layers": 4}, 4000, 2**31, 50)
QUICK = Sizes(TINYLLAMA, 512, 64, 64, {**LLAMA_2, "n_layers": 2}, 2000, 2**30, 20)
DRY = Sizes(TINY, 20, 3, 3, TINY, 20, 2**16, 2)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1.1 billion parameters instead of 7, within two minutes")
    parser.add_argument("--dry", action="store_true", help="on the CPU with tiny models: that it runs, not how fast")
    asked = parser.parse_args()
    if not asked.dry and not torch.cuda.is_available():
        print("there is no GPU here (torch.cuda.is_available() is false), and nothing was measured; --dry runs it on the CPU",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    if not have_triton():
        print("there is no Triton here: pip install 'herdbook[gpu]'", file=sys.stderr)
        sys.exit(2)
    device, sizes = ("cpu", DRY) if asked.dry else ("cuda", QUICK if asked.quick else FULL)
    bandwidth = copy_bandwidth(sizes, device)
    one = one_text(sizes, device, bandwidth)
    many = many_texts(sizes, device)
    heads = key_heads(sizes, device)
    ratios = {
        "one text: share of bandwidth, 16 bits": one["16 bits"]["share"],
        "one text: graph over single launches": one["16 bits"]["share"] / one["16 bits, launched"]["share"],
        "64 texts: over transformers": many["herdbook"] / many["transformers"],
        **{f"{kind} over MHA": heads[kind]["tokens_per_second"] / heads["MHA"]["tokens_per_second"] for kind in ("GQA", "MQA")},
    }
    results = {"bandwidth": bandwidth, "one_text": one, "many_texts": many, "key_heads": heads, "dry": asked.dry}
    finish("infer_gpu", results, ratios, GOALS, device)


def seconds(run: Callable[[], object], turns: int, device: str) -> float:
    """Median seconds of a call, the GPU's work included, after two that warm up."""
    times = []
    for turn in range(turns + 2):
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times += [time.perf_counter() - began] if turn > 1 else []
    return statistics.median(times)


def copy_bandwidth(sizes: Sizes, device: str) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(sizes.copied, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * sizes.copied / seconds(lambda: target.copy_(source), sizes.turns, device)


def drawn(shape: dict[str, Any], device: str) -> Decoder:
    """A decoder at random; the memory of what is over is given back before, so that the engine sees what is free."""
    gc.collect()
    torch.cuda.empty_cache()
    with torch.device(device):
        model = Decoder(ModelConfig.model_validate(shape)).to(DTYPE)
    model.compute_dtype = DTYPE
    return model.eval()


def in_few_bits(model: Decoder, form: Form) -> Decoder:
    """The decoder with all matrices but the embedding quantised, in place."""
    for name, part in [(name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]:
        put(model, name, quantized(part.weight.detach().float(), form, search=False))
    return model


def one_text(sizes: Sizes, device: str, bandwidth: float) -> dict[str, dict[str, float]]:
    """Tokens a second of one text and what share of the bandwidth its reads make: by bits, and without the graph."""
    found: dict[str, dict[str, float]] = {}
    for kind in ("16 bits", "16 bits, launched", "16 bits, the engine", *FORMS):
        model = drawn(sizes.shape, device)
        if kind in FORMS:
            in_few_bits(model, FORMS[kind])
        if kind == "16 bits, the engine":
            speed = ours(model, prompt=sizes.prompt, written=sizes.written, sequences=[1])
            rate, read_bytes = speed.decode[1], speed.step_bytes[1]
        else:
            took, read_bytes = steps(model, sizes, device, 1, sizes.prompt, "none" if "launched" in kind else "kernels")
            rate = 1 / took
        found[kind] = {"tokens_per_second": rate, "bytes": read_bytes, "share": rate * read_bytes / bandwidth}
        del model
    rows = [[kind, f"{one['tokens_per_second']:,.1f}", f"{one['bytes'] / 1e9:,.2f}", f"{one['share']:.0%}"]
            for kind, one in found.items()]  # fmt: skip
    table(f"one text behind {sizes.prompt} tokens; copies run at {bandwidth / 1e9:,.0f} GB/s",
          ["weights", "tokens/s", "GB a token", "of bandwidth"], rows)  # fmt: skip
    return found


def steps(model: Decoder, sizes: Sizes, device: str, count: int, prompt: int, step: Step) -> tuple[float, float]:
    """Median seconds of a step of `count` texts behind prompts by a backend alone, the likeliest ids fetched; bytes read."""
    each = -(-(prompt + sizes.turns + 2) // BLOCK)
    backend = TorchBackend(model, blocks=count * each, step=step)
    tables = [range(row * each, (row + 1) * each) for row in range(count)]
    for table_ in tables:
        backend.run([Span([place % 100 for place in range(prompt)], 0, table_)])
    at = prompt

    def run() -> None:
        nonlocal at
        backend.run([Span([at % 100], at, table_, [0]) for table_ in tables]).argmax(-1).tolist()
        at += 1

    took = seconds(run, sizes.turns, device)
    cache = count * prompt * backend.block_bytes(model) // BLOCK
    return took, float(backend.read_bytes + cache)


def many_texts(sizes: Sizes, device: str) -> dict[str, float]:
    """Tokens a second of many texts at once: the engine, and transformers on the same weights."""
    import transformers

    model = drawn(sizes.shape, device)
    found = {"herdbook": ours(model, prompt=sizes.prompt, written=sizes.written, sequences=[sizes.together])
             .decode[sizes.together]}  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        LanguageModel(model, None).save(Path(scratch) / "model", "hf", dtype="bfloat16")
        del model
        theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(Path(scratch) / "model", dtype=DTYPE)
    theirs = theirs.to(device).eval()
    ids = torch.randint(sizes.shape["vocab_size"], (sizes.together, sizes.prompt), device=device)
    times, cache = [], None
    with torch.inference_mode():
        for _ in range(sizes.written):
            began = time.perf_counter()
            out = theirs(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            ids.tolist()  # the clock stops when they are there
            times.append(time.perf_counter() - began)
    found["transformers"] = sizes.together / statistics.median(times[1:])
    table(f"{sizes.together} texts at once behind {sizes.prompt} tokens", ["engine", "tokens/s"],
          [[name, f"{rate:,.0f}"] for name, rate in found.items()])  # fmt: skip
    return found


def key_heads(sizes: Sizes, device: str) -> dict[str, dict[str, float]]:
    """Tokens a second of many texts behind long prompts, with fewer and fewer key/value heads."""
    heads, found = sizes.heads["n_heads"], {}
    for kind, count in {"MHA": heads, "GQA": max(2, heads // 4), "MQA": 1}.items():
        model = drawn({**sizes.heads, "n_kv_heads": count}, device)
        took, read = steps(model, sizes, device, sizes.together, sizes.long, "kernels")
        found[kind] = {"key_heads": count, "tokens_per_second": sizes.together / took, "bytes": read,
                       "kv_bytes_per_token": model.cfg.kv_bytes_per_token()}  # fmt: skip
        del model
    first = found["MHA"]["tokens_per_second"]
    rows = [[kind, f"{one['key_heads']:.0f}", f"{one['tokens_per_second']:,.0f}", f"{one['tokens_per_second'] / first:.2f}×",
             f"{one['kv_bytes_per_token'] / 1024:,.0f} KiB"] for kind, one in found.items()]  # fmt: skip
    table(f"{sizes.together} texts at once behind {sizes.long} tokens, {sizes.heads['n_layers']} layers",
          ["", "key heads", "tokens/s", "over MHA", "memory a token"], rows)  # fmt: skip
    return found


if __name__ == "__main__":
    main()
