"""Log-likelihoods through a prefix tree: right for every request, whatever the tree and the memory, and nothing read twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.infer.backend import Span
from herdbook.infer.blocks import BlockPool, blocks_for
from herdbook.infer.scoring import score
from herdbook.infer.torch_backend import TorchBackend

from .conftest import CONTEXT, KINDS, make_decoder

MODELS = {kind: make_decoder(kind) for kind in KINDS}


class Counting(TorchBackend):
    """Counts what goes through the model."""

    tokens = 0

    def run(self, spans: list[Span]) -> torch.Tensor:  # type: ignore[override]
        self.tokens += sum(len(span.tokens) for span in spans)
        return super().run(spans)


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(sorted(KINDS)), data=st.data(), remember=st.booleans())
def test_each_request_has_the_scores_it_has_alone(kind: str, data: st.DataObject, remember: bool) -> None:
    letters = st.lists(st.integers(0, 1), min_size=1, max_size=CONTEXT // 2)  # few, so that much is shared
    requests = data.draw(st.lists(st.tuples(letters, letters), min_size=1, max_size=8))
    longest = max(len(context) + len(continuation) - 1 for context, continuation in requests)
    model = MODELS[kind]
    backend = Counting(model, blocks=data.draw(st.integers(2 * blocks_for(longest) + 1, 30)))
    pool = BlockPool(backend.blocks, remember=remember)
    found = score(backend, pool, requests)
    assert pool.held == 0
    for (context, continuation), scores in zip(requests, found, strict=True):
        with torch.inference_mode():
            logprobs = model(torch.tensor([[*context, *continuation[:-1]]]))[0, len(context) - 1 :].log_softmax(-1)
        wanted = [float(row[token]) for row, token in zip(logprobs, continuation, strict=True)]
        assert [logprob for logprob, _ in scores] == pytest.approx(wanted, abs=1e-4)
        assert [likeliest for _, likeliest in scores] == [
            int(row.argmax()) == token for row, token in zip(logprobs, continuation, strict=True)
        ]
    texts = [(*context, *continuation[:-1]) for context, continuation in requests]
    nodes = {text[:end] for text in texts for end in range(1, len(text) + 1)}
    assert backend.tokens == len(nodes)


def test_the_cache_serves_the_next_call() -> None:
    backend, shots = Counting(MODELS["gqa"], blocks=20), [*range(32)]
    pool = BlockPool(20)
    first = score(backend, pool, [([*shots, 50], [1]), ([*shots, 51], [1])])
    before = backend.tokens
    assert before == 34
    assert score(backend, pool, [([*shots, 50], [1])])[0][0] == pytest.approx(first[0][0], abs=1e-5)
    assert backend.tokens == before + 1


def test_many_children_of_a_half_filled_block_fit_little_memory() -> None:
    backend = TorchBackend(MODELS["mha"], blocks=4)
    requests = [([*range(20)], [token, token + 1, token + 2]) for token in range(30)]
    pool = BlockPool(4)
    assert len(score(backend, pool, requests)) == 30
    assert pool.held == 0


@pytest.mark.parametrize("remember", [True, False])
def test_memory_for_one_request_serves_all(remember: bool) -> None:
    requests = [([0] * size + [1], [2] * 5) for size in range(1, 36)]
    wanted = score(TorchBackend(MODELS["mha"], blocks=60), BlockPool(60), requests)
    pool = BlockPool(3, remember=remember)
    found = score(TorchBackend(MODELS["mha"], blocks=3), pool, requests)
    for left, right in zip(found, wanted, strict=True):
        assert [one for one, _ in left] == pytest.approx([one for one, _ in right], abs=1e-4)
    assert pool.held == 0


def test_what_never_fits_is_said() -> None:
    pool = BlockPool(2)
    with pytest.raises(UserError, match="do not fit the memory"):
        score(TorchBackend(MODELS["mha"], blocks=2), pool, [([1] * 40, [1])])
    assert pool.held == 0


def test_long_texts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [([1], [*range(2, 39)]), ([1, 2, 3], [*range(5, 30)])]
    whole = score(TorchBackend(MODELS["mha"], blocks=9), BlockPool(9), requests)
    monkeypatch.setattr("herdbook.infer.scoring.PASS_TOKENS", 7)
    for left, right in zip(score(TorchBackend(MODELS["mha"], blocks=9), BlockPool(9), requests), whole, strict=True):
        assert [one for one, _ in left] == pytest.approx([one for one, _ in right], abs=1e-4)
