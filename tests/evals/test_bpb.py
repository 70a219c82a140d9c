"""Bits per byte: equal to a computation by hand, and independent of batches, order and how text is cut."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herdbook.console import Terminal
from herdbook.documents import DocumentWriter
from herdbook.errors import UserError
from herdbook.evals.bpb import bits_per_byte, cut_bytes, heldout_sample, windows
from herdbook.evals.scoring import Subject
from herdbook.infer.engine import Engine, EngineConfig
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import Tokenizer


def _bits_by_hand(model: Decoder, tokens: list[int], keep: int) -> float:
    """Full forward passes over windows, nothing batched or cached."""
    sequence, context, bits, start, first = [0, *tokens], model.cfg.context, 0.0, 0, 1
    while first < len(sequence):
        end = min(start + context + 1, len(sequence))
        with torch.inference_mode():
            logprobs_TV = model(torch.tensor([sequence[start : end - 1]]))[0].log_softmax(-1)
        bits -= sum(float(logprobs_TV[at - start - 1, sequence[at]]) for at in range(first, end)) / math.log(2)
        start, first = end - keep, end
    return bits


def test_equals_brute_force(model: Decoder, engine: Engine, tokenizer: Tokenizer, corpus: Path, terminal: Terminal) -> None:
    sample = heldout_sample(corpus, documents=6, document_bytes=4000, seed=0)
    subject = Subject("m", engine, tokenizer, model.cfg.context, chat=False)
    figures, rows = bits_per_byte(subject, sample, terminal, overlap=0.5, seed=0)
    by_hand = [_bits_by_hand(model, tokenizer.encode(document.text), 24) for document in sample.documents]
    assert [row["bits"] for row in rows] == pytest.approx(by_hand, rel=1e-4)
    assert any(row["tokens"] > model.cfg.context for row in rows), "a document should need several windows"
    docstrings = [index for index, document in enumerate(sample.documents) if document.source == "docstrings"]
    size = sum(len(sample.documents[index].text.encode()) for index in docstrings)
    expected = sum(by_hand[index] for index in docstrings) / size
    assert figures["sources"]["docstrings"]["bits_per_byte"] == pytest.approx(expected, rel=1e-4)
    assert figures["sources"]["docstrings"]["stderr"] > 0


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_independent_of_batch_size(
    model: Decoder, tokenizer: Tokenizer, corpus: Path, terminal: Terminal, batch_rows: int
) -> None:
    sample = heldout_sample(corpus, documents=8, document_bytes=300, seed=1)
    figures = [
        bits_per_byte(Subject("m", Engine(model, tokenizer, EngineConfig(rows=rows)), tokenizer, 48, chat=False), sample,
                      terminal, overlap=0.25, seed=0)[0]
        for rows in (batch_rows, 7)
    ]  # fmt: skip
    for source in ("docstrings", "wikipedia"):
        one, two = (found["sources"][source]["bits_per_byte"] for found in figures)
        assert one == pytest.approx(two, abs=1e-5)


def test_overall_of_everything_is_the_pooled_ratio(
    engine: Engine, tokenizer: Tokenizer, corpus: Path, terminal: Terminal
) -> None:
    sample = heldout_sample(corpus, documents=10_000, document_bytes=10_000, seed=0)
    figures, rows = bits_per_byte(Subject("m", engine, tokenizer, 48, chat=False), sample, terminal, overlap=0.0, seed=0)
    pooled = sum(row["bits"] for row in rows) / sum(row["bytes"] for row in rows)
    assert figures["overall"]["bits_per_byte"] == pytest.approx(pooled, rel=1e-9)
    assert figures["overall"]["documents"] == len(rows)


@given(
    length=st.integers(0, 300), context=st.integers(1, 64), overlap=st.floats(0, 0.99), separator=st.sampled_from([[], [7]])
)  # fmt: skip
def test_windows_score_each_token_once_with_context(length: int, context: int, overlap: float, separator: list[int]) -> None:
    tokens = list(range(1000, 1000 + length))
    requests = windows(tokens, separator, context, overlap)
    scored = [token for _, continuation in requests for token in continuation]
    assert scored == (tokens if separator else tokens[1:])
    for number, (before, continuation) in enumerate(requests):
        assert before
        assert len(before) + len(continuation) <= context + 1
        assert number == 0 or len(before) == max(1, int(context * overlap))


@given(text=st.text(max_size=60), limit=st.integers(0, 80))
def test_cut_bytes_is_the_longest_beginning_that_fits(text: str, limit: int) -> None:
    cut = cut_bytes(text, limit)
    assert text.startswith(cut)
    assert len(cut.encode()) <= limit
    assert cut == text or len(text[: len(cut) + 1].encode()) > limit


def test_sample_does_not_depend_on_order_of_documents(tmp_path: Path) -> None:
    rows = [{"id": f"a/{index}", "text": f"text {index}", "source": "a", "license": "MIT"} for index in range(50)]
    for name, order in (("one", rows), ("two", rows[::-1])):
        with DocumentWriter(tmp_path / name, "heldout") as writer:
            for row in order:
                writer.write(row)
    one, two = (heldout_sample(tmp_path / name, documents=9, document_bytes=100, seed=5) for name in ("one", "two"))
    assert one == two
    assert len(one.documents) == 9
    assert one.source_documents == {"a": 50}
    other = heldout_sample(tmp_path / "one", documents=9, document_bytes=100, seed=6)
    assert other.documents != one.documents


def test_no_heldout_text_is_the_users_to_mend(tmp_path: Path) -> None:
    with DocumentWriter(tmp_path, "heldout"):
        pass
    assert heldout_sample(tmp_path, documents=3, document_bytes=100, seed=0).documents == []
    with pytest.raises(UserError, match="no heldout documents"):
        heldout_sample(tmp_path / "nowhere", documents=3, document_bytes=100, seed=0)
