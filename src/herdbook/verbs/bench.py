"""`herdbook bench`: how fast a model reads and writes on this machine, beside the peers that are installed."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herdbook.console import Terminal, emit
from herdbook.errors import UserError
from herdbook.units import human_bytes, human_count

if TYPE_CHECKING:
    from herdbook.infer.bench import Speed

SEQUENCES = (1, 8)


def bench(
    path: str, terminal: Terminal, *, prompt: int, written: int, dtype: str | None, backend: str, with_peers: bool,
    allow_pickle: bool,
) -> None:  # fmt: skip
    """Measure and show. Raises UserError when there is no such model, or prompt and text are longer than it can read."""
    import torch

    from herdbook.api import load
    from herdbook.infer.bench import ours, peers
    from herdbook.plan.peak import measure_bandwidth
    from herdbook.verbs.talk import find_model

    where = find_model(path)
    wanted: Any = dtype or "auto"
    lm = load(where, dtype=wanted, packed=True, allow_pickle=allow_pickle)
    kind = str(lm.model.compute_dtype).removeprefix("torch.")
    if prompt + written > lm.config.context:
        raise UserError(
            f"a prompt of {prompt} and a text of {written} tokens are longer than the model's context of {lm.config.context}",
            where="--prompt, --tokens", todo="ask for less",
        )  # fmt: skip
    bandwidth = measure_bandwidth()
    with terminal.progress("measuring") as progress:
        found = [ours(lm.model, prompt=prompt, written=written, sequences=SEQUENCES, backend=backend)]
        progress.advance(1)
        if with_peers and Path(where).exists():
            found += peers(Path(where), lm.model, prompt=prompt, written=written, sequences=SEQUENCES)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if terminal.as_json:
        emit({"model": where, "parameters": lm.parameters, "dtype": kind, "threads": torch.get_num_threads(),
              "bandwidth": bandwidth, "peak_memory": peak, "engines": [one.as_dict() for one in found]})  # fmt: skip
        return
    terminal.say(f"{where}: {human_count(lm.parameters)} parameters, {kind}, {torch.get_num_threads()} threads")
    terminal.table(_header(), [_row(one, bandwidth) for one in found])
    terminal.say(
        f"prompts of {prompt} tokens, texts of {written}; memory reads at {human_bytes(bandwidth)}/s (measured now), of which "
        f"a step of one sequence uses that share; peak memory of this process {human_bytes(peak)}", style="dim",
    )  # fmt: skip


def _header() -> list[str]:
    rates = [f"tokens/s, {count} at once" for count in SEQUENCES]
    return ["engine", "first token", "prompt tokens/s", *rates, "of bandwidth"]


def _row(speed: Speed, bandwidth: float) -> list[str]:
    share = speed.share(1, bandwidth)
    rates = [f"{speed.decode[count]:,.1f}" if count in speed.decode else "–" for count in SEQUENCES]
    part = "–" if share is None else f"{share:.0%}"
    return [speed.engine, f"{speed.first_s * 1e3:,.0f} ms", f"{speed.prefill:,.0f}", *rates, part]
