"""What a server allows, and how its engines work. Imports nothing heavy, so that the command line can read it."""

from __future__ import annotations

from pydantic import Field

from herdbook.config import Config
from herdbook.infer.config import EngineConfig
from herdbook.units import Bytes, Count, Seconds


class Limits(Config):
    """What one request may take of a server, and how long it may take.

    What a reader has not taken yet is kept, and is bounded by `max_tokens` and `choices`; generation never waits for a reader.
    """

    body: Bytes = Field(default=4_000_000, gt=0, description="bytes of a request's body")
    head: Bytes = Field(default=16_384, gt=0, description="bytes of a request's head")
    prompt: Count | None = Field(default=None, gt=0, description="tokens of a prompt; null: what the model reads")
    max_tokens: Count | None = Field(default=None, gt=0, description="tokens of a text; null: what the context leaves")
    choices: Count = Field(default=128, gt=0, description="texts of a request: its prompts times n, best_of or beams")
    top_logprobs: Count = Field(default=20, ge=0, description="alternatives at a token's place")
    form: Bytes = Field(default=65_536, gt=0, description="bytes of a schema, regular expression or grammar")
    form_seconds: Seconds = Field(default=20.0, gt=0, description="time for a form to be compiled, those before it included")
    concurrency: Count = Field(default=512, gt=0, description="requests in hand at once, those that wait included")
    connections: Count = Field(default=2048, gt=0, description="open connections")
    seconds: Seconds = Field(default=600.0, gt=0, description="time of a request, after which it ends with what it has")
    arrival: Seconds = Field(default=20.0, gt=0, description="time for a request's head, and for its body, to arrive")
    stall: Seconds = Field(default=60.0, gt=0, description="time a reader may take nothing of a stream before it is dropped")
    drain: Seconds = Field(default=30.0, ge=0, description="time for running requests to end after SIGTERM")


class ServeConfig(Config):
    """`limits.KEY=VALUE` and `engine.KEY=VALUE` of the command line."""

    limits: Limits = Field(default_factory=Limits)
    engine: EngineConfig = Field(default_factory=EngineConfig)
