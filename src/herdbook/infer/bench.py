"""How fast a model runs here: reading prompts, writing texts, and which share of the memory's bandwidth writing reaches.

Writing one token in each of B sequences reads every weight once and each sequence's keys and values (Pope et al. 2022,
arXiv:2211.05102, section 3), so

    bytes a step = weights + B · position · bytes a token of the cache
    share        = bytes a step / seconds a step / measured bandwidth

Prompts are random ids: what they say does not matter to the clock. The median step counts. Peers that are installed run the
same on the same weights.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from herdbook.infer.config import EngineConfig, Sampling
from herdbook.infer.engine import Engine
from herdbook.interop.doors import layout_of
from herdbook.model.decoder import Decoder

Writer = Callable[[int], list[float]]


@dataclass(frozen=True)
class Speed:
    """One engine's figures.

    Attributes:
        engine: its name, and how it computes.
        prompt, written: tokens of each prompt and text.
        first_s: seconds from a prompt to its first token, alone.
        prefill: tokens of a prompt a second, alone.
        decode: sequences at once → tokens a second of all together.
        step_bytes: sequences at once → bytes that a step reads; empty where that is not known.
    """

    engine: str
    prompt: int
    written: int
    first_s: float
    prefill: float
    decode: dict[int, float]
    step_bytes: dict[int, float]

    def share(self, sequences: int, bandwidth: float) -> float | None:
        """The share of the bandwidth (bytes/s) that writing reaches."""
        if sequences not in self.step_bytes:
            return None
        return self.step_bytes[sequences] * self.decode[sequences] / sequences / bandwidth

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain JSON."""
        return asdict(self)


def ours(model: Decoder, *, prompt: int, written: int, sequences: Sequence[int], backend: str = "auto") -> Speed:
    """Our engine with its usual settings, but without the prefix cache, which would spare it the prompts."""
    cfg = EngineConfig.model_validate({"backend": backend, "prefix_cache": False, "rows": max(sequences)})
    engine = Engine(model, cfg=cfg)
    first_s = statistics.median(_first(engine, _ids(model, prompt, turn)) for turn in range(4)[1:])
    decode = {count: count / statistics.median(_steps(engine, count, prompt, written)) for count in sequences}
    weights, per_token = engine.scheduler.backend.read_bytes, engine.kv_bytes_per_token
    tokens = prompt + written / 2
    step_bytes = {count: weights + count * min(tokens, model.cfg.window or tokens) * per_token for count in sequences}
    return Speed(f"herdbook ({engine.describe()})", prompt, written, first_s, prompt / first_s, decode, step_bytes)


def _ids(model: Decoder, length: int, seed: int) -> list[int]:
    drawn = torch.randint(model.cfg.vocabulary, (length,), generator=torch.Generator().manual_seed(seed))
    return [int(token) for token in drawn]


def _first(engine: Engine, prompt: list[int]) -> float:
    began = time.perf_counter()
    engine.generate([prompt], Sampling(max_tokens=1, temperature=0, ignore_end=True))
    return time.perf_counter() - began


def _steps(engine: Engine, count: int, prompt: int, written: int) -> list[float]:
    """Seconds of each step in which all of `count` sequences got a token and no prompt was read."""
    scheduler, sampling = engine.scheduler, Sampling(max_tokens=written, temperature=0, ignore_end=True)
    for seed in range(count):
        scheduler.submit(engine.request(_ids(engine.model, prompt, 100 + seed), sampling))
    times = []
    before = scheduler.stats().computed_tokens
    while not scheduler.idle:
        began = time.perf_counter()
        events = scheduler.step()
        elapsed, after = time.perf_counter() - began, scheduler.stats().computed_tokens
        if after - before == count:
            times.append(elapsed)
        before = after
        for error in (event.error for event in events if event.error is not None):
            raise error
    return times


# ---- peers ----


def peers(path: Path, model: Decoder, *, prompt: int, written: int, sequences: Sequence[int]) -> list[Speed]:
    """What is installed of the peers that can read `path`."""
    found = []
    gguf = layout_of(path) == "gguf"
    if not gguf and importlib.util.find_spec("transformers") and (path / "config.json").exists():
        found.append(_transformers(path, model, prompt, written, sequences))
    if gguf and importlib.util.find_spec("llama_cpp"):
        found.append(_llama_cpp(path, model, prompt, written))
    return found


def _transformers(path: Path, model: Decoder, prompt: int, written: int, sequences: Sequence[int]) -> Speed:
    import transformers

    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=model.compute_dtype)
    theirs.eval()

    @torch.inference_mode()
    def run(count: int) -> list[float]:
        times, cache = [], None
        ids = torch.tensor([_ids(model, prompt, 100 + seed) for seed in range(count)])
        for _ in range(written):
            began = time.perf_counter()
            out = theirs(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            times.append(time.perf_counter() - began)
        return times

    return _peer(f"transformers {transformers.__version__}", run, prompt, written, sequences)


def _llama_cpp(path: Path, model: Decoder, prompt: int, written: int) -> Speed:
    llama_cpp = importlib.import_module("llama_cpp")
    threads = torch.get_num_threads()
    theirs = llama_cpp.Llama(str(path), n_ctx=prompt + written, n_batch=prompt, n_ubatch=prompt, n_threads=threads,
                             n_threads_batch=threads, verbose=False)  # fmt: skip

    def run(count: int) -> list[float]:
        theirs.reset()
        times, ids = [], _ids(model, prompt, 100)
        for _ in range(written):
            began = time.perf_counter()
            theirs.eval(ids)
            ids = [theirs.sample(temp=0.0)]
            times.append(time.perf_counter() - began)
        return times

    return _peer(f"llama.cpp ({llama_cpp.__version__})", run, prompt, written, [1])


def _peer(name: str, run: Writer, prompt: int, written: int, sequences: Sequence[int]) -> Speed:
    run(1)
    first_s = statistics.median(run(1)[0] for _ in range(2))
    decode = {count: count / statistics.median(run(count)[1:]) for count in sequences}
    return Speed(name, prompt, written, first_s, prompt / first_s, decode, {})
