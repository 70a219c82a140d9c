"""Beam search: of all continuations of the live texts the likeliest few live on, until no live one can win any more.

Texts that ended are ranked by log-probability / length ^ length_penalty (Wu et al. 2016, arXiv:1609.08144, section 7, without
the coverage term). The log-probabilities are the model's own after penalties, bias and constraint; nothing is random.

Shapes: V vocabulary.
"""

from __future__ import annotations

import numpy as np

from herdbook.infer.request import Completion
from herdbook.infer.sampling import FloatArray
from herdbook.infer.sequence import Sequence
from herdbook.infer.text import FinishReason


class Beams:
    """The beams of one request.

    Args:
        width: texts that live at once.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.ended: list[tuple[float, Sequence]] = []
        self._offers: dict[tuple[int, int], tuple[Sequence, FloatArray, list[tuple[float, int]]]] = {}
        self._count = 0

    @property
    def offered(self) -> list[Sequence]:
        """Beams whose logits are here."""
        return [beam for beam, _, _ in self._offers.values()]

    def offer(self, beam: Sequence, row_V: FloatArray) -> list[Sequence]:
        """Take the logits behind a beam; all beams that did so since the last `advance`."""
        logits_V = beam.logits(row_V).astype(np.float64)
        best = float(logits_V.max())
        logprobs_V = logits_V - (best + np.log(np.exp(logits_V - best).sum()))
        # Twice the width, so that as many go on even if every other one ends.
        order = np.argsort(-logprobs_V, kind="stable")[: 2 * self.width]
        offers = [(beam.score + float(logprobs_V[token]), int(token)) for token in order if logprobs_V[token] > -np.inf]
        self._offers[beam.turn] = beam, row_V.copy(), offers
        return self.offered

    def advance(self) -> list[Sequence]:
        """The beams that live on from all offers, best first; none when the search is over.

        They share the blocks of those they come from, which the caller releases then.
        """
        ranked = sorted(
            ((score, beam, row_V, token) for beam, row_V, offers in self._offers.values() for score, token in offers),
            key=lambda offer: (-offer[0], offer[1].choice, offer[3]),
        )
        if not ranked:  # a constraint or bias has left no token
            self.close(self.offered, "length")
        self._offers.clear()
        live: list[Sequence] = []
        for rank, (score, beam, row_V, token) in enumerate(ranked):
            if len(live) == self.width:
                break
            self._count += 1
            twin = beam.branch(self._count)
            twin.take(token, row_V)
            twin.score = score
            if twin.writer.reason is None:
                live.append(twin)
                continue
            twin.blocks.release()
            if rank < self.width:
                self._end(twin)
        if live and len(self.ended) >= self.width and self._worth(live[0]) <= self.ended[-1][0]:
            for beam in live:
                beam.blocks.release()
            live = []
        return live

    def close(self, live: list[Sequence], reason: FinishReason) -> None:
        """End the search early, with what there is."""
        for beam in live:
            beam.writer.finish(reason)
            self._end(beam)

    def _end(self, beam: Sequence) -> None:
        self.ended.append((self._worth(beam), beam))
        self.ended.sort(key=lambda pair: (-pair[0], pair[1].choice))
        del self.ended[self.width :]

    @staticmethod
    def _worth(beam: Sequence) -> float:
        return float(beam.score / max(1, len(beam.writer.ids)) ** beam.request.sampling.length_penalty)

    def completions(self) -> list[Completion]:
        """The texts that ended, best first."""
        return [beam.completion() for _, beam in self.ended]
