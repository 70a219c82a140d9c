from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from herdbook.config import Config, ConfigError, apply_overrides, build, parse_yaml, read_yaml
from herdbook.errors import UserError
from herdbook.recipe import load_recipe
from herdbook.units import Count


class Source(Config):
    name: str
    path: str = ""


class Train(Config):
    tokens: Count = 1000
    lr: float = Field(1e-3, gt=0)
    schedule: Literal["cosine", "linear"] = "cosine"


class Tiny(Config):
    train: Train = Train()
    sources: list[Source] = Field(default_factory=list)


def problems(text: str, *words: str) -> list[str]:
    draft = parse_yaml(text, "r.yaml")
    apply_overrides(draft, words)
    with pytest.raises(ConfigError) as caught:
        build(Tiny, draft)
    return [str(problem) for problem in caught.value.problems]


def test_all_mistakes_at_once_with_key_line_and_meant_name() -> None:
    found = problems("train:\n  tokns: 3\n  lr: -1\n  schedule: cosin\nsources:\n  - nam: a\nlr: 2\n")
    assert "r.yaml:2: train.tokns: there is no such key; did you mean train.tokens?" in found
    assert any(line.startswith("r.yaml:3: train.lr:") and "greater than 0" in line for line in found)
    assert any(line.startswith("r.yaml:4: train.schedule:") and "did you mean cosine?" in line for line in found)
    assert "r.yaml:6: sources.0.nam: there is no such key; did you mean sources.0.name?" in found
    assert "r.yaml:6: sources.0.name: this key is needed" in found
    assert "r.yaml:7: lr: there is no such key; did you mean train.lr?" in found
    assert len(found) == 6


def test_overrides_win_and_mistakes_in_them_point_at_the_command_line() -> None:
    draft = parse_yaml("train: {tokens: 5}\nsources: [{name: a}]\n", "r.yaml")
    apply_overrides(draft, ["train.tokens=2M", "train.lr=3e-4", "sources.0.path=x.warc"])
    config = build(Tiny, draft)
    assert (config.train.tokens, config.train.lr, config.sources[0].path) == (2_000_000, 3e-4, "x.warc")
    assert problems("train:\n  tokens: 5\n", "train.tokens=many") == ["command line: train.tokens: 'many' is not a number"]


@pytest.mark.parametrize("word", ["train.tokens", "=3"])
def test_a_word_that_is_no_override(word: str) -> None:
    with pytest.raises(UserError, match="is not an override"):
        apply_overrides(parse_yaml("", "r.yaml"), [word])


def test_an_index_outside_the_list() -> None:
    with pytest.raises(UserError, match="the list has 1 items"):
        apply_overrides(parse_yaml("sources: [{name: a}]", "r.yaml"), ["sources.3.name=b"])


def test_a_key_given_twice_names_both_lines() -> None:
    assert problems("train:\n  lr: 1\n  lr: 2\n") == ["r.yaml:3: train.lr: given twice, first at r.yaml:2"]


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "train: [1, 2\n", "a: !!python/object:os.system x\n"])
def test_what_is_no_recipe(text: str) -> None:
    with pytest.raises(UserError, match=r"r\.yaml"):
        parse_yaml(text, "r.yaml")


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such recipe"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="not UTF-8"):
        read_yaml(tmp_path / "binary.yaml")


def test_an_empty_recipe_is_all_defaults() -> None:
    assert build(Tiny, parse_yaml("", "r.yaml")) == Tiny()


def test_a_model_of_the_catalogue_stands_for_its_shape(tmp_path: Path) -> None:
    falcon = load_recipe(write(tmp_path, "model: falcon-tiny\n")).model
    assert (falcon.n_kv_heads, falcon.block, falcon.vocab_size) == (1, "parallel_one_norm", None)
    changed = load_recipe(write(tmp_path, "model:\n  preset: opt-tiny\n  context: 100\n"), ["model.n_layers=2"]).model
    assert (changed.position_offset, changed.context, changed.n_layers, changed.activation) == (2, 100, 2, "relu")
    assert load_recipe("quickstart", ["model=bloom-tiny"]).model.positions == "alibi"
    # Named on the command line it goes before the recipe's own shape, and further words change it, in any order.
    for words in (["model=bloom-tiny", "model.context=100"], ["model.context=100", "model.preset=bloom-tiny"]):
        for recipe in ("model: opt-tiny\n", "model:\n  d_model: 64\n  n_layers: 1\n"):
            model = load_recipe(write(tmp_path, recipe), words).model
            assert (model.positions, model.context, model.n_layers) == ("alibi", 100, 5)
    assert load_recipe(write(tmp_path, "model: opt-tiny\n"), {"model.context": 100}).model.activation == "relu"
    assert load_recipe(write(tmp_path, ""), {"model": "falcon-tiny", "model.n_layers": 1}).model.kv_heads == 1
    with pytest.raises(ConfigError, match=r"recipe\.yaml:2: model\.preset: .*'opt-tinny'.* did you mean opt-tiny"):
        load_recipe(write(tmp_path, "model:\n  preset: opt-tinny\n"))


def write(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"
