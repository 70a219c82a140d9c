from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from herdbook.config import ConfigError, Draft, build, parse_yaml
from herdbook.corpus.config import CorpusConfig, MinHashConfig, Source


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


def test_unknown_licence_is_a_mistake_with_advice() -> None:
    with pytest.raises(ValidationError, match="MIT"):
        Source(name="a", path="x", license="MTI")
    assert Source(name="a", path="x", license="cc by sa").license == "CC-BY-SA-4.0"


def test_config_is_light() -> None:
    code = (
        "import sys, herdbook.corpus.config; print([m for m in ('numpy', 'pyarrow', 'fastwarc', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
