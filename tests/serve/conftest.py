"""A server in a thread, with tiny random models and a tokenizer of bytes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest
import torch
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers

from herdbook.facts.licenses import find_license
from herdbook.infer.engine import Engine, EngineConfig
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.serve.app import Server
from herdbook.serve.config import Limits
from herdbook.serve.door import bind
from herdbook.serve.guard import Gate
from herdbook.serve.run import Running, configured
from herdbook.serve.served import Served
from herdbook.tokenizer import Tokenizer

SPECIALS = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
TOOLS = "{% if tools %}<tool_call> as JSON: {{ tools | tojson }}\n{% endif %}"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = CHAT) -> Tokenizer:
    """One token a byte, ids 0…255, and four special ones behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Trained(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.decoder = decoders.ByteLevel()
    trained.add_special_tokens(SPECIALS)
    return Tokenizer(trained.to_str(), {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}, chat_template=template)


def make_served(
    name: str, *, seed: int = 0, template: str | None = CHAT, slow: float = 0.0, context: int = 256,
    cfg: EngineConfig | None = None,
) -> Served:  # fmt: skip
    """A tiny model with random weights; `slow` seconds a step more than it takes."""
    shape = {
        "vocab_size": 272,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "context": context,
        "init_std": 0.3,
    }
    model = Decoder(ModelConfig.model_validate(shape))
    model.init_weights(torch.Generator().manual_seed(seed))
    engine = Engine(model.eval(), byte_tokenizer(template), cfg or EngineConfig(backend="torch"))
    if slow:
        backend = engine.scheduler.backend
        run = backend.run
        backend.run = lambda spans: (time.sleep(slow), run(spans))[1]  # type: ignore[method-assign]
    return Served(name, engine, find_license("CC-BY-SA-4.0"), "tests")


@dataclass
class Live:
    """A server that runs.

    Attributes:
        url: its address.
        call: runs a function in its loop.
    """

    server: Server
    running: Running
    port: int
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, **settings: Any) -> openai.OpenAI:
        """OpenAI's own client."""
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 30, **settings})

    def call(self, function: Callable[[], object]) -> None:
        """Run something in the server's loop."""
        self.loop.call_soon_threadsafe(function)

    def quiet(self, within: float = 10.0) -> bool:
        """Whether nothing runs and no block is held, after a while at most."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            stats = self.server.driver.stats().values()
            if not any(one.running or one.waiting or one.blocks_held for one in stats) and not self.server.gate.busy:
                return True
            time.sleep(0.02)
        return False


@contextmanager
def live(*served: Served, limits: Limits | None = None, **gate: Any) -> Iterator[Live]:
    """A server on a free port, until the block ends."""
    at = bind("127.0.0.1", 0)
    server = Server(served, Gate(limits or Limits(), **gate))
    running = Running(configured(server), server)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(running.serve(sockets=[at])))
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield Live(server, running, at.getsockname()[1], loop)
    finally:
        running.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()
        loop.close()


@pytest.fixture(scope="module")
def house() -> Iterator[Live]:
    """Two models: `base`, and `chat`, which knows tools."""
    with live(make_served("base", template=None), make_served("chat", seed=1, template=TOOLS + CHAT)) as running:
        yield running
        assert running.quiet(), "something is still running, or holds blocks"


def events(text: str) -> list[Any]:
    """The documents of a stream of events."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
