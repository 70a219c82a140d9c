from __future__ import annotations

import subprocess
import sys
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from herdbook.config import Config, ConfigError, Draft, build, config_types, parse_yaml
from herdbook.corpus.config import CorpusConfig, MinHashConfig, Source
from herdbook.corpus.config_models import TrainerConfig


def test_defaults_are_the_published_ones() -> None:
    cfg = CorpusConfig(sources=[Source(name="a", path="x")])
    assert (cfg.quality.min_words, cfg.quality.max_words, cfg.min_score) == (50, 100_000, 0.65)
    assert (cfg.dedup.minhash.num_perm, cfg.dedup.minhash.ngram) == (112, 5)
    assert MinHashConfig(bands=450, rows=20).midpoint == pytest.approx(0.737, abs=1e-3)
    assert CorpusConfig.model_validate(cfg.model_dump(mode="json")) == cfg


def test_sources_are_checked() -> None:
    with pytest.raises(ValidationError, match="either `path` or `builtin`"):
        Source(name="a")
    with pytest.raises(ValidationError, match="either `path` or `builtin`"):
        Source(name="a", path="x", builtin="pydoc")
    with pytest.raises(ValidationError, match="two sources have the name"):
        CorpusConfig(sources=[Source(name="a", path="x"), Source(name="a", path="y")])
    with pytest.raises(ValidationError):
        Source(name="../up", path="x")


def test_text_as_it_is_written_is_not_filtered_unless_asked() -> None:
    assert Source(name="a", builtin="pydoc").filtered
    assert not Source(name="a", builtin="prose").filtered
    assert Source(name="a", builtin="prose", filters=True).filtered


def test_mistakes_in_a_recipe_name_key_and_line() -> None:
    draft: Draft = parse_yaml("sources:\n- name: a\n  pth: x\nheldout: 2%\nquality: {min_wrds: 3}\n", "r.yaml")
    with pytest.raises(ConfigError) as caught:
        build(CorpusConfig, draft)
    text = str(caught.value)
    assert "r.yaml:3" in text and "did you mean sources.0.path" in text
    assert "did you mean quality.min_words" in text


def numbers_of(model: type[Config]) -> Iterator[tuple[type[Config], str]]:
    """Every field of a config, or of a section of it, that can hold a number and not a truth value."""
    for name, field in model.model_fields.items():
        if sections := config_types(field.annotation):
            for section in sections:
                yield from numbers_of(section)
        elif field.annotation in (int, float) or {int, float} & {*_plain(field.annotation)}:
            yield model, name


def _plain(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in typing.get_args(annotation):
        yield from _plain(argument)


NUMBERS = sorted({(model, name) for top in (CorpusConfig, TrainerConfig) for model, name in numbers_of(top)}, key=str)


@pytest.mark.parametrize(("model", "name"), NUMBERS, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_every_number_has_a_range(model: type[Config], name: str) -> None:
    field = model.model_fields[name]
    whole = TypeAdapter(typing.Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
    wrong: list[Any] = [-1, float("nan"), float("inf")]
    if "dict" in str(field.annotation):
        wrong = [{3: value} for value in (*wrong, 1.5)] + [{1: 0.5}, {-2: 0.5}]
    elif "share" in str(field.description):
        wrong.append(1.5)
    for value in wrong:
        with pytest.raises(ValidationError):
            whole.validate_python(value)


def test_a_number_out_of_range_is_named_with_key_value_and_line() -> None:
    text = (
        "sources:\n- name: a\n  path: x\nremoved_sample: -1\nseed: -2\nquality:\n  min_words: -3\n  max_bullet_lines: 1.5\n"
        "repetition:\n  top_ngrams: {2: 1.25}\ndedup:\n  contamination: {window: -4}\nperplexity: {head: .inf}\n"
    )
    with pytest.raises(ConfigError) as caught:
        build(CorpusConfig, parse_yaml(text, "r.yaml"))
    found = {(problem.where, problem.key, problem.message.rsplit("(it is ")[-1]) for problem in caught.value.problems}
    assert found == {
        ("r.yaml:4", "removed_sample", "-1)"),
        ("r.yaml:5", "seed", "-2)"),
        ("r.yaml:7", "quality.min_words", "-3)"),
        ("r.yaml:8", "quality.max_bullet_lines", "1.5)"),
        ("r.yaml:10", "repetition.top_ngrams.2", "1.25)"),
        ("r.yaml:12", "dedup.contamination.window", "-4)"),
        ("r.yaml:13", "perplexity.head", "inf)"),
    }


def test_limits_that_nothing_passes_are_refused() -> None:
    for section in ({"min_words": 10, "max_words": 5}, {"min_mean_word_length": 12}):
        with pytest.raises(ValidationError, match="no document would pass"):
            CorpusConfig.model_validate({"sources": [{"name": "a", "path": "x"}], "quality": section})


def test_unknown_licence_is_a_mistake_with_advice() -> None:
    with pytest.raises(ValidationError, match="MIT"):
        Source(name="a", path="x", license="MTI")
    assert Source(name="a", path="x", license="cc by sa").license == "CC-BY-SA-4.0"


def test_config_is_light() -> None:
    code = (
        "import sys, herdbook.corpus.config; print([m for m in ('numpy', 'pyarrow', 'fastwarc', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
