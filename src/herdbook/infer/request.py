"""What goes into the scheduler and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from herdbook.errors import UserError
from herdbook.infer.config import Sampling
from herdbook.infer.constraint import Guide
from herdbook.infer.text import FinishReason


class Busy(UserError):  # noqa: N818  it is no mistake, only a bad moment
    """The queue is full: try again later."""


@dataclass(frozen=True)
class Request:
    """A prompt and what to make of it.

    Attributes:
        prompt: ids, at least one.
        sampling: settings.
        room: most tokens to generate: `max_tokens`, or what the context leaves.
        before: ids that the text follows, as `TextStream` wants them; none when the text stands alone.
        timeout: seconds after which it ends with what it has; None: never.
        form: what `constraint.guide` makes of settings that want a form.
    """

    prompt: Sequence[int]
    sampling: Sampling
    room: int
    before: Sequence[int] = ()
    timeout: float | None = None
    form: Guide | None = None


@dataclass(frozen=True)
class Token:
    """A token of a prompt or text.

    Attributes:
        id: what it is.
        logprob: its log-probability by the model itself, in nats; None when nobody asked, and for a prompt's first token.
        top: log-probabilities of the likeliest ids at its place, likeliest first.
    """

    id: int
    logprob: float | None = None
    top: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """What was generated for a prompt.

    Attributes:
        ids: the tokens, without the one that ended the text.
        text: their text up to the stop string; empty when the engine has no tokenizer.
        finish_reason: `stop` at an end token or stop string, or when a constraint is fulfilled; `length` when max_tokens or the
            context was used up; `cancelled`; `timeout`.
        prompt_tokens: tokens of the prompt as the model read it.
        logprobs: the log-probability of each token, when asked for.
        top_logprobs: of the likeliest ids at each token's place, when asked for.
        prompt: the prompt's tokens with their log-probabilities, when asked for.
        others: with `n` above 1 the other texts of the prompt, best first where they are ranked.
    """

    ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: list[float] | None = None
    top_logprobs: list[Mapping[int, float]] | None = None
    prompt: list[Token] | None = None
    others: tuple[Completion, ...] = ()


@dataclass(frozen=True)
class Event:
    """What a step made of a request.

    Attributes:
        request: its number.
        choice: which of its texts.
        tokens: ids that joined the text.
        text: what may be shown now; joined, the completion's text.
        reason: why this text is over; None while it goes on.
        completion: with the last event of a request, all of it. Where texts are ranked (best_of, beams) nothing comes before.
        error: what a step failed with that the request was in; this is its last event, and there is no completion.
    """

    request: int
    choice: int = 0
    tokens: Sequence[Token] = ()
    text: str = ""
    reason: FinishReason | None = None
    completion: Completion | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class Stats:
    """How the engine stands.

    Attributes:
        waiting, running: requests or parts of them.
        blocks, blocks_held: of keys and values: all, and those that running requests hold.
        prompt_tokens, cached_tokens: tokens of prompts read so far, and how many of them were in the prefix cache.
        computed_tokens: tokens that went through the model, drafts and what was computed again included.
        preemptions: how often a sequence gave its blocks to an earlier one.
        drafted, accepted: tokens guessed ahead, and how many of them stood.
        steps: passes so far.
    """

    waiting: int
    running: int
    blocks: int
    blocks_held: int
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    preemptions: int
    drafted: int
    accepted: int
    steps: int
