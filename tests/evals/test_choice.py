"""Multiple choice: drawn deterministically, without repeats or leaks, and scored as by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from herdbook.console import Terminal
from herdbook.documents import DocumentWriter, read_documents
from herdbook.evals.choice import (
    CHOICES,
    Pair,
    Quiz,
    _distractors,
    build_quiz,
    docstring_pair,
    fold,
    gives_away,
    multiple_choice,
    prose_pair,
    sentences,
    summary,
)
from herdbook.evals.scoring import Subject, accuracy
from herdbook.infer.engine import Engine, EngineConfig
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import Tokenizer


@pytest.fixture
def quiz(corpus: Path) -> Quiz:
    return build_quiz("docstring_choice", corpus, "docstrings", limit=40, seed=0)


def test_drawn_the_same_each_time_and_otherwise_by_another_seed(corpus: Path, quiz: Quiz) -> None:
    assert build_quiz("docstring_choice", corpus, "docstrings", limit=40, seed=0) == quiz
    assert build_quiz("docstring_choice", corpus, "docstrings", limit=40, seed=1).questions != quiz.questions
    assert len(quiz.questions) == 40


def test_a_smaller_limit_draws_a_part_of_the_same_questions(corpus: Path, quiz: Quiz) -> None:
    fewer = build_quiz("docstring_choice", corpus, "docstrings", limit=10, seed=0)
    assert [question.pair for question in fewer.questions] == [question.pair for question in quiz.questions[:10]]


def test_choices_differ_and_are_all_held_out(corpus: Path, quiz: Quiz) -> None:
    trained = {fold(pair.answer) for row in read_documents(corpus) if (pair := docstring_pair(row))}
    heldout = {pair.answer for row in read_documents(corpus, "heldout") if (pair := docstring_pair(row))}
    for question in quiz.questions:
        assert len({fold(choice) for choice in question.choices}) == CHOICES
        assert question.choices[question.gold] == question.pair.answer
        assert set(question.choices) <= heldout
        assert not {fold(choice) for choice in question.choices} & trained
    places = [question.gold for question in quiz.questions]
    assert set(places) == set(range(CHOICES)), "the right answer should stand at every place"


def test_answers_seen_in_training_and_repeats_are_left_out(tmp_path: Path) -> None:
    def row(name: str, sentence: str) -> dict[str, Any]:
        return {"id": f"docstrings/{name}", "text": f"{name}(x)\n\n{sentence}", "source": "docstrings", "license": "MIT"}

    words = ["oak", "elm", "ash", "fir", "yew", "bay"]
    with DocumentWriter(tmp_path, "heldout") as heldout:
        for index, word in enumerate(words):
            heldout.write(row(f"p.f{index}", f"Plant the {word} {'deep ' * index}into some garden."))
        heldout.write(row("p.again", "Plant the OAK into some garden!"))
    with DocumentWriter(tmp_path, "documents") as train:
        train.write(row("p.seen", "Plant the elm deep into some garden."))
    quiz = build_quiz("docstring_choice", tmp_path, "docstrings", limit=None, seed=0)
    assert quiz.left_out["the same answer as another"] == 1
    assert quiz.left_out["the answer is in the training text"] == 1
    assert "elm" not in str([question.choices for question in quiz.questions])


def test_distractors_repeat_the_name_where_the_answer_does(tmp_path: Path) -> None:
    def row(name: str, sentence: str) -> dict[str, Any]:
        return {"id": f"docstrings/{name}", "text": f"{name}(x)\n\n{sentence}", "source": "docstrings", "license": "MIT"}

    things = (
        "a socket to its peer",
        "every page of that book",
        "one row at any time",
        "bytes off some tape",
        "names in reverse order",
    )
    with DocumentWriter(tmp_path, "heldout") as heldout:
        for index, thing in enumerate(things):
            heldout.write(row(f"p.read_{index}", f"Read {thing}."))
            heldout.write(row(f"p.g{index}", f"Make and send {thing[::-1]}."))
    with DocumentWriter(tmp_path, "documents"):
        pass
    quiz = build_quiz("docstring_choice", tmp_path, "docstrings", limit=None, seed=0)
    named = [question for question in quiz.questions if question.named]
    assert len(named) == len(things)
    assert all(choice.startswith("Read") for question in named for choice in question.choices)


def test_a_source_that_is_not_there_yields_no_questions(corpus: Path) -> None:
    assert build_quiz("docstring_choice", corpus, "nowhere", limit=5, seed=0).questions == []


def test_prose_continues_with_the_second_sentence(corpus: Path) -> None:
    quiz = build_quiz("continuation_choice", corpus, "wikipedia", limit=10, seed=0)
    assert quiz.questions
    for question in quiz.questions:
        assert question.pair.prompt.endswith("is an old one. ")
        assert question.choices[question.gold].startswith("Here ")


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("os.read_file", "Read a file into memory.", True),
        ("numpy.fft.rfft", "Compute the discrete Fourier transform.", False),
        ("torch.normalize", "Normalization of each row.", True),
        ("collections.Counter.most_common", "List the elements by how often they occur.", False),
        ("http.HTTPServer", "A server that listens.", True),
        ("m.abs", "Absolute value.", True),
        ("m.f", "Find it.", False),
    ],
)
def test_names_that_give_the_answer_away(name: str, answer: str, expected: bool) -> None:
    assert gives_away(name, answer) is expected


def test_sentences_are_cut_at_ends_only() -> None:
    assert [*sentences("Give, e.g. 3.5 of it. Then\n stop! (See J. Doe.) End")] == [
        "Give, e.g. 3.5 of it.", "Then stop!", "(See J. Doe.)", "End"
    ]  # fmt: skip
    assert [*sentences("")] == []


@pytest.mark.parametrize(
    "text",
    ["module os.path\n\nCommon operations on the names of paths.", "topic FLOATING\n\nNumbers with a point and some digits.",
     "p.f(x)\n\nShort.", "p.f(x)\n\n>>> f(1) and some words more here", "p.f(x)", ""],
)  # fmt: skip
def test_documents_without_a_plain_sentence_make_no_pair(text: str) -> None:
    assert docstring_pair({"id": "x", "text": text, "language": "en"}) is None
    assert prose_pair({"id": "x", "text": "One sentence only, it says.", "language": "en"}) is None


def test_scores_are_those_of_single_forward_passes(
    model: Decoder, engine: Engine, tokenizer: Tokenizer, quiz: Quiz, terminal: Terminal
) -> None:
    quiz.questions = quiz.questions[:8]
    subject = Subject("m", engine, tokenizer, model.cfg.context, chat=False)
    rows = multiple_choice(subject, quiz, terminal, str)
    for question, row in zip(quiz.questions, rows, strict=True):
        by_hand = []
        for choice in question.choices:
            head = [0, *tokenizer.encode(question.pair.prompt.rstrip())]
            tokens = [0, *tokenizer.encode(question.pair.prompt + choice)]
            assert tokens[: len(head)] == head
            drop = max(0, len(tokens) - model.cfg.context)
            with torch.inference_mode():
                logprobs_TV = model(torch.tensor([tokens[drop:-1]]))[0].log_softmax(-1)
            places = range(len(head) - drop, len(tokens) - drop)
            by_hand.append(sum(float(logprobs_TV[place - 1, tokens[place + drop]]) for place in places))
        assert row["resps"] == pytest.approx(by_hand, abs=2e-3)
        assert row["acc"] == (by_hand.index(max(by_hand)) == row["target"])
    figures = summary(rows)
    assert figures["acc"] == sum(row["acc"] for row in rows) / 8
    assert figures["acc_norm_stderr"] > 0


def test_independent_of_batch_size_and_order(model: Decoder, tokenizer: Tokenizer, quiz: Quiz, terminal: Terminal) -> None:
    found = []
    for rows, turn in ((1, 1), (64, -1)):
        turned = Quiz(quiz.task, quiz.source, quiz.questions[::turn])
        subject = Subject("m", Engine(model, tokenizer, EngineConfig(rows=rows)), tokenizer, 48, chat=False)
        found.append({row["doc_id"]: row for row in multiple_choice(subject, turned, terminal, str)})
    for doc_id, row in found[0].items():
        assert found[1][doc_id]["resps"] == pytest.approx(row["resps"], abs=1e-3)
        assert found[1][doc_id]["acc_norm"] == row["acc_norm"]


def test_accuracy_error_is_that_of_a_mean() -> None:
    assert accuracy([True, False, True, True]) == {"value": 0.75, "stderr": pytest.approx(0.25)}
    assert accuracy([True]) == {"value": 1.0}


def test_the_right_answer_is_neither_the_longest_nor_the_shortest_by_habit() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [first + second + "sh" for first in letters for second in "aeiou"]
    texts = [" ".join(words[(n * 7 + k) % len(words)] for k in range(4 + n % 23)) + n * "g" for n in range(200)]
    pool = [Pair(f"d/{n}", "pkg", f"pkg.f{n}", "", "", text) for n, text in enumerate(texts)]
    ranks = []
    for pair in pool:
        others = _distractors(pair, False, pool, 0)
        assert len(others) == CHOICES - 1
        ranks.append(sum(len(other) > len(pair.answer) for other in others))
    shares = [ranks.count(rank) / len(ranks) for rank in range(CHOICES)]
    assert all(0.1 < share < 0.45 for share in shares)
