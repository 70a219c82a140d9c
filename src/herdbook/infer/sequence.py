"""One text on its way: what is computed of it, how its next tokens are drawn, what is reported of them.

Shapes: V vocabulary, W rows of logits.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

import numpy as np
import torch

from herdbook.infer.blocks import Blocks
from herdbook.infer.constraint import Guide
from herdbook.infer.request import Completion, Request, Token
from herdbook.infer.sampling import FloatArray, History, adjusted, distribution, draw, log_probabilities
from herdbook.infer.speculate import Ahead, Guess, verify
from herdbook.infer.text import Writer

SEEDS = 2**63


@dataclass(eq=False)
class Sequence:
    """A text of a request.

    Attributes:
        job: number of the request; choice: which of its texts. By both, sequences take their turns.
        request: what is wanted.
        known: size of the tokenizer's vocabulary, if there is one.
        blocks: of keys and values; `computed` says how many tokens of `ids` they hold.
        writer: takes the text.
        guide: where the text stands in a form.
        ids: prompt and text.
        guess: tokens to check with the next pass.
        reach: tokens to guess next time; fewer where guesses do not stand.
        score: sum of the log-probabilities of the text's tokens, where they are asked for.
    """

    job: int
    choice: int
    request: Request
    known: int | None
    blocks: Blocks
    writer: Writer
    guide: Guide | None = None
    reach: int = 0
    ids: list[int] = field(default_factory=list)
    computed: int = 0
    guess: Guess | None = None
    tokens: list[Token] = field(default_factory=list)
    prompt_tokens: list[Token] = field(default_factory=list)
    score: float = 0.0

    def __post_init__(self) -> None:
        self.ids = self.ids or list(self.request.prompt)
        self.history = History(set(self.request.prompt) if self.request.sampling.repetition_penalty != 1 else set())
        self._seed(self.choice)
        sampling = self.request.sampling
        self._scored = sampling.logprobs or sampling.top_logprobs > 0 or (sampling.best_of or 0) > sampling.n
        self._bare = (
            sampling.temperature == 0 and self.guide is None and not sampling.logit_bias
            and (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1, 0, 0)
        )  # fmt: skip

    def _seed(self, choice: int) -> None:
        self.generator = torch.Generator().manual_seed((self.request.sampling.seed + choice) % SEEDS)

    @property
    def turn(self) -> tuple[int, int]:
        """First come, first served."""
        return self.job, self.choice

    @property
    def pending(self) -> int:
        """Tokens to compute before the next draw, without a guess."""
        return len(self.ids) - self.computed

    @property
    def begun(self) -> bool:
        """Whether the text has a token."""
        return len(self.ids) > len(self.request.prompt)

    @property
    def reads_logits(self) -> bool:
        """Whether more of its logits is wanted than the likeliest id."""
        sampling = self.request.sampling
        return not self._bare or self._scored or sampling.prompt_logprobs or sampling.beams > 0

    def ahead(self, most: int) -> Ahead:
        """What a drafter needs to know; at most `most` tokens."""
        count = max(0, min(self.reach, most, self.writer.room - 1))
        return Ahead(self.turn, self.ids, count, self.request.sampling, self.generator)

    def branch(self, choice: int) -> Sequence:
        """Another text with the same beginning and blocks, and random numbers of its own."""
        twin = Sequence(
            self.job, choice, self.request, self.known, self.blocks.branch(), self.writer.copy(),
            None if self.guide is None else self.guide.copy(), self.reach, list(self.ids), self.computed,
        )  # fmt: skip
        twin.history, twin.tokens, twin.prompt_tokens = self.history.copy(), list(self.tokens), self.prompt_tokens
        twin.score = self.score
        return twin

    # ---- logits in ----

    def read_prompt(self, rows_WV: FloatArray, first: int) -> None:
        """Logits behind the prompt's tokens from place `first` on: log-probabilities of the tokens that follow."""
        prompt, top = self.request.prompt, self.request.sampling.top_logprobs
        if not self.prompt_tokens:
            self.prompt_tokens.append(Token(prompt[0]))
        for place, row_V in enumerate(rows_WV, start=first + 1):
            if place == len(self.prompt_tokens) < len(prompt):
                self.prompt_tokens.append(Token(prompt[place], *log_probabilities(row_V, prompt[place], top)))

    def draw(self, rows_WV: FloatArray, greedy_W: Ids[int]) -> tuple[list[Token], int]:
        """Draw from the logits behind the last token and behind each guessed one, as far as the guesses stand.

        Args:
            rows_WV: one row, and one more for each token of `guess`.
            greedy_W: the likeliest id of each row, of those that the tokenizer knows.

        Returns the tokens that joined the text, and how many guesses stood.
        """
        guess, self.guess = self.guess or Guess([]), None
        drawn: list[Token] = []
        stood = 0
        for place, row_V in enumerate(rows_WV):
            token, agreed = self._next(row_V, greedy_W[place], guess, place)
            stood += agreed
            drawn += self.take(token, row_V)
            if self.writer.reason is not None or not agreed:
                break
        if guess.tokens:
            self.reach = min(self.reach + 1, 2**10) if stood == len(guess.tokens) else max(1, stood, self.reach // 2)
        return drawn, stood

    def _next(self, row_V: FloatArray, greedy: int, guess: Guess, place: int) -> tuple[int, bool]:
        """The token at a place, and whether it is the guessed one."""
        guessed = guess.tokens[place] if place < len(guess.tokens) else None
        if self._bare:
            return greedy, greedy == guessed
        choices = distribution(self.logits(row_V), self.request.sampling)
        if self.request.sampling.temperature == 0:
            return int(choices.ids[0]), int(choices.ids[0]) == guessed
        if guessed is None:
            return draw(choices, self.generator), False
        return verify(choices, guessed, guess.drawn_from[place] if guess.drawn_from else None, self.generator)

    def logits(self, row_V: FloatArray) -> FloatArray:
        """The model's logits after penalties, bias and constraint."""
        allowed_V = None if self.guide is None else self.guide.allowed()
        return adjusted(row_V, self.request.sampling, self.history, allowed_V=allowed_V, known=self.known)

    def take(self, token: int, row_V: FloatArray) -> list[Token]:
        """Go on by a token; what of it joins the text."""
        if self.guide is not None:
            self.guide.take(token)
        if not self.writer.take(token):
            return []
        self.ids.append(token)
        self.history.add(token)
        drawn = (
            Token(token, *log_probabilities(row_V, token, self.request.sampling.top_logprobs)) if self._scored else Token(token)
        )
        self.tokens.append(drawn)
        self.score += drawn.logprob or 0.0
        if self.guide is not None and self.guide.over and self.writer.reason is None:
            self.writer.finish("stop")
        return [drawn]

    # ---- results out ----

    def completion(self) -> Completion:
        """The finished text."""
        sampling, reason = self.request.sampling, self.writer.reason
        assert reason is not None
        scored = sampling.logprobs or sampling.top_logprobs > 0
        return Completion(
            self.writer.ids, self.writer.text, reason, len(self.request.prompt),
            logprobs=[token.logprob or 0.0 for token in self.tokens] if scored else None,
            top_logprobs=[token.top for token in self.tokens] if sampling.top_logprobs else None,
            prompt=self.prompt_tokens if sampling.prompt_logprobs else None,
        )  # fmt: skip


def as_array(logits_WV: torch.Tensor) -> FloatArray:
    """Logits as numpy sees them; without a copy on a CPU."""
    rows: np.ndarray = logits_WV.cpu().numpy()
    return rows
