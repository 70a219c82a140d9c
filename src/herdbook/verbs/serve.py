"""`herdbook serve`: models behind OpenAI's API, by our engine or by vLLM's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from herdbook.config import Draft, apply_overrides, build
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.facts.licenses import License
from herdbook.serve.config import ServeConfig
from herdbook.serve.door import bind, hosts, keys_of, require_door
from herdbook.verbs.subject import find_subject
from herdbook.verbs.talk import find_model

if TYPE_CHECKING:
    from herdbook.serve.served import Served

SECTIONS = ("limits.", "engine.")


def serve(
    words: Sequence[str], terminal: Terminal, *, host: str, port: int, keys: Sequence[str], open_to_the_network: bool,
    engine: str, device: str, dtype: str | None, commercial: bool, allow_pickle: bool,
) -> None:  # fmt: skip
    """Serve models until a signal comes.

    Args:
        words: models (`MODEL` or `NAME=MODEL`) and settings (`limits.KEY=VALUE`, `engine.KEY=VALUE`).
        keys: API keys; none: those in HERDBOOK_API_KEY.
        engine: `herdbook` or `vllm`.
        device: `auto`, or as torch names it.
        dtype: of the computation; None: what runs fastest.
    """
    models, settings = split(words)
    keys = keys_of(keys)
    require_door(host, keys, open_to_the_network=open_to_the_network)
    if engine == "vllm":
        _hand_to_vllm(models, settings, host, port, keys)
        return
    if engine != "herdbook":
        raise UserError(f"the engine {engine!r} is not known", where="--engine", todo="use herdbook or vllm")
    draft = Draft(source="command line")
    apply_overrides(draft, settings)
    cfg = build(ServeConfig, draft)
    from herdbook.serve.app import Server
    from herdbook.serve.guard import Gate
    from herdbook.serve.run import serve as run

    with bind(host, port) as at:
        served = []
        for name, path in models.items():
            terminal.step(name, path)
            served.append(_load(name, path, cfg, device, dtype, commercial=commercial, allow_pickle=allow_pickle))
            show(served[-1], terminal)
        server = Server(served, Gate(cfg.limits, keys, hosts(host, keys, open_to_the_network=open_to_the_network)))
        number = at.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        terminal.say(f"http://{shown}:{number}/v1  ({'with a key' if keys else 'no key'}; Ctrl-C ends it)")
        run(server, at)


def split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Models by name, and settings. Raises UserError when there is no model, and when a name is used twice."""
    models: dict[str, str] = {}
    settings: list[str] = []
    for word in words:
        if word.startswith(SECTIONS) and "=" in word and not Path(word).exists():
            settings.append(word)
            continue
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists() or "/" in name:
            name, path = Path(word).resolve().name.removesuffix(".gguf") if Path(word).exists() else word, word
        if not name or not path:
            raise UserError(f"{word!r} is neither a model nor a setting", where="command line", todo="write NAME=MODEL")
        if name in models:
            raise UserError(f"two models are called {name!r}", where="command line", todo="name them: NAME=MODEL OTHER=MODEL")
        models[name] = path
    if not models:
        raise UserError("no model to serve", where="command line", todo="name a model folder, a .gguf file or a run's folder")
    return models, settings


def _load(
    name: str, path: str, cfg: ServeConfig, device: str, dtype: str | None, *, commercial: bool, allow_pickle: bool
) -> Served:
    """A model, its engine and its licence. Raises UserError when it is none, has no tokenizer, or may not be used so."""
    import torch

    from herdbook.api import load
    from herdbook.infer.engine import Engine
    from herdbook.interop.licenses import require_commercial
    from herdbook.serve.served import Served

    license_ = license_of(path)
    if commercial and license_ is not None:
        require_commercial(license_, path)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    lm = load(find_model(path), dtype=dtype or "auto", device=device, allow_pickle=allow_pickle, packed=True)  # type: ignore[arg-type]
    if lm.tokenizer is None:
        raise UserError("this model has no tokenizer, so it cannot be served", where=path, todo="serve a folder that has one")
    served = Served(name, Engine(lm.model, lm.tokenizer, cfg.engine), license_, path)
    served.engine.stats()  # takes the memory now, and says now when there is too little
    return served


def license_of(path: str) -> License | None:
    """The strictest licence of a model and of what it was made from; None for the random weights of a preset."""
    return find_subject(path).license if Path(path).exists() else None


def show(served: Served, terminal: Terminal) -> None:
    """Print what a model is and what it may be used for."""
    engine = served.engine
    held = engine.stats().blocks
    terminal.say(
        f"  {engine.model.cfg.parameters():,} parameters, context {engine.context:,}, {held:,} blocks of keys and values"
    )
    terminal.say(f"  {served.terms()}")
    if served.template is None:
        terminal.say("  no chat template: it continues text, and /v1/chat/completions refuses it", style="dim")


def _hand_to_vllm(models: dict[str, str], settings: Sequence[str], host: str, port: int, keys: Sequence[str]) -> None:
    """Become `vllm serve` on the same folder; the key goes by the environment, where other users do not see it."""
    if len(models) != 1 or settings:
        raise UserError(
            "vLLM serves one model, with settings of its own", where="--engine vllm",
            todo="name one model and no limits. or engine. settings; `vllm serve --help` lists its own",
        )  # fmt: skip
    ((name, path),) = models.items()
    folder = Path(find_model(path))
    if not (folder / "config.json").is_file():
        raise UserError("vLLM reads model folders in Hugging Face's layout", where=path, todo="`herdbook convert` makes one")
    program = shutil.which("vllm")
    if program is None:
        raise UserError(
            "vLLM is not installed", where="--engine vllm",
            todo="pip install vllm, in an environment of its own; or leave out --engine",
        )  # fmt: skip
    words = ["vllm", "serve", str(folder), "--served-model-name", name, "--host", host, "--port", str(port)]
    environment = {**os.environ, **({"VLLM_API_KEY": keys[0]} if keys else {})}
    os.execve(program, words, environment)
