from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.facts.mixtures import find_mixture
from herdbook.tokens.config import TokensConfig
from herdbook.tokens.mixture import MixtureConfig, SourceRow, left_out, parse_amount, parse_milestone, resolve, show_rows

GB = 10**9


@pytest.mark.parametrize(
    ("written", "means"),
    [
        (3, 3.0), ("0.5", 0.5), ("1e3", 1000.0), ("10%", "10%"), ("2.50 %", "2.5%"), ("2ep", "2ep"), (" 1.5 epochs ", "1.5ep"),
        ({"epochs": 2}, "2ep"), ({"share": "10%"}, "10%"), ({"share": 0.1}, "10%"), ({"weight": 3}, 3.0), ("c4", "c4"),
    ],
)  # fmt: skip
def test_amounts(written: Any, means: float | str) -> None:
    assert parse_amount(written) == means
    assert parse_amount(means) == means, "what is written into an index is read back as it is"


WRONG: list[Any] = [0, -1, True, None, "", "-2ep", "101%", float("nan"), float("inf"), {}, {"epochs": 1, "share": 1},
                    {"passes": 2}, [3], "2ep3", "+3"]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_amount(wrong: Any) -> None:
    with pytest.raises(ValueError):
        parse_amount(wrong)


def test_milestones() -> None:
    assert [parse_milestone(value) for value in ("80%", 0.8, "0.8", "1.6B", 2000)] == [0.8, 0.8, 0.8, 1.6e9, 2000.0]
    for wrong in ("0%", "100%", 0, -3, "soon", "1.5"):
        with pytest.raises(ValueError):
            parse_milestone(wrong)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sources": {}}, "names no source"),
        ({"sources": {"web": "c4"}}, "without a preset there is no source of that name"),
        ({"sources": {"web": "wiki"}, "preset": "llama"}, r"llama has no source 'wiki'; did you mean wikipedia\?"),
        ({"preset": "lama"}, r"did you mean llama\?"),
        ({"sources": {"a": 1e308, "b": 1e308}}, "too large to add up"),
        ({"curriculum": [{"after": "50%", "sources": {}}]}, "names no source"),
        ({"curriculum": [{"after": "50%", "sources": {"a": 1}}, {"after": "40%", "sources": {"a": 1}}]}, "not in order"),
        ({"curriculum": [{"after": "0.5ep", "sources": {"a": 1}}]}, "curriculum"),
        ({"packing": "worst_fit"}, "best_fit"),
    ],
)
def test_mistakes_in_the_section(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TokensConfig.model_validate(values)


def test_a_mixture_survives_json() -> None:
    cfg = TokensConfig.model_validate(
        {"sources": {"web": 3, "code": "10%", "wiki": "2ep"}, "curriculum": [{"after": "1.6B", "sources": {"wiki": 1}}]}
    )
    assert MixtureConfig.model_validate(json.loads(json.dumps(cfg.mixture()))) == MixtureConfig.model_validate(cfg.mixture())
    assert cfg.names == ["code", "web", "wiki"]
    assert cfg.encoding() == {"dtype": "auto", "shard_tokens": 100_000_000, "sources": ["code", "web", "wiki"]}
    other = cfg.model_copy(update={"sources": {"web": 1.0, "code": 2.0, "wiki": 3.0}})
    assert other.encoding() == cfg.encoding()


def test_shares_and_epochs_imply_each_other() -> None:
    cfg = MixtureConfig.model_validate({"sources": {"web": 3, "books": 1, "code": "10%", "wiki": "2ep"}})
    available = {"web": 100 * GB, "books": GB, "code": 5 * GB, "wiki": GB}
    [stage] = resolve(cfg, available, 10 * GB)
    assert stage.shares == pytest.approx({"web": 0.525, "books": 0.175, "code": 0.1, "wiki": 0.2})
    assert list(stage.shares) == list(available)
    with pytest.raises(UserError, match="with the length of the run"):
        resolve(cfg, available, None)


AMOUNTS = st.dictionaries(
    st.sampled_from("abcdef"),
    st.one_of(
        st.floats(0.01, 100), st.floats(0.5, 20).map(lambda x: f"{x:.3f}%"), st.floats(0.01, 1).map(lambda x: f"{x:.4f}ep")
    ),
    min_size=1,
)


@given(AMOUNTS, st.integers(10**6, 10**9), st.data())
def test_shares_add_up_and_mean_what_was_written(amounts: dict[str, float | str], length: int, data: st.DataObject) -> None:
    available = {name: data.draw(st.integers(1, length // 10)) for name in "abcdef"}
    cfg = MixtureConfig.model_validate({"sources": {**amounts, "a": 1.0}})
    try:
        [stage] = resolve(cfg, available, length)
    except UserError as error:
        assert "leave nothing for" in str(error)
        return
    assert sum(stage.shares.values()) == pytest.approx(1)
    assert cfg.sources is not None
    plain = {name: amount for name, amount in cfg.sources.items() if isinstance(amount, float)}
    for name, amount in cfg.sources.items():
        if str(amount).endswith("ep"):
            assert stage.shares[name] * length / available[name] == pytest.approx(float(str(amount)[:-2]))
        elif str(amount).endswith("%"):
            assert stage.shares[name] == pytest.approx(float(str(amount)[:-1]) / 100)
        else:
            assert stage.shares[name] / stage.shares["a"] == pytest.approx(plain[name] / plain["a"])


def test_shares_that_do_not_go_together() -> None:
    available = {"a": GB, "b": GB}

    def resolved(sources: dict[str, Any], length: int | None = 4 * GB) -> dict[str, float]:
        return resolve(MixtureConfig.model_validate({"sources": sources}), available, length)[0].shares

    for sources, says in (
        ({"a": "3ep", "b": "2ep"}, "more than the training: a 75.0%, b 50.0%"),
        ({"a": "4ep", "b": 1}, "leave nothing for b"),
        ({"a": "1ep", "b": "1ep"}, "only 50.0% of the training"),
        ({"a": "60%", "b": "60%"}, "more than the training"),
        ({"a": "60%"}, "only 60.0% of the training"),
        ({"c": 1}, "no tokens of a source 'c'"),
    ):
        with pytest.raises(UserError, match=says):
            resolved(sources)
    with pytest.raises(UserError) as raised:
        resolved({"a": "1ep", "b": "1ep"})
    assert "train on 2B tokens" in raised.value.render()
    assert resolved({"a": "2ep", "b": "1.999ep"}) == pytest.approx({"a": 2 / 3.999, "b": 1.999 / 3.999}), (
        "round numbers are enough"
    )
    assert resolved({"a": "3ep", "b": "1ep"}, None) == {"a": 0.75, "b": 0.25}, "epochs alone say what sources are to each other"


def test_a_published_mixture_by_equal_names() -> None:
    available = {"c4": GB, "wikipedia": GB, "private": GB}
    cfg = MixtureConfig(preset="llama")
    assert resolve(cfg, available, None)[0].shares == pytest.approx({"c4": 0.15 / 0.195, "wikipedia": 0.045 / 0.195})
    assert "commoncrawl (67.0%)" in left_out(cfg, available) and len(left_out(cfg, available)) == 5
    with pytest.raises(UserError) as raised:
        resolve(cfg, {"pages": GB}, None)
    assert "tokens.sources={pages: commoncrawl}" in raised.value.render()


def test_a_published_mixture_on_other_names() -> None:
    available = {"crawl-1": 3 * GB, "crawl-2": GB, "code": GB, "wiki": GB}
    sources = {"crawl-1": "commoncrawl", "crawl-2": "commoncrawl", "wiki": "wikipedia", "code": "20%"}
    cfg = MixtureConfig.model_validate({"preset": "llama", "sources": sources})
    shares = resolve(cfg, available, None)[0].shares
    assert shares["code"] == pytest.approx(0.2)
    assert shares["crawl-1"] == pytest.approx(3 * shares["crawl-2"]), "what stands for one source divides it by its tokens"
    assert (shares["crawl-1"] + shares["crawl-2"]) / shares["wiki"] == pytest.approx(0.67 / 0.045)


@pytest.mark.parametrize("name", ["gpt3", "bloom", "llama", "mpt-7b", "mpt-30b", "falcon-rw", "falcon-7b", "falcon-40b"])
def test_every_whole_preset_comes_out_as_published(name: str) -> None:
    published = find_mixture(name).weights
    shares = resolve(MixtureConfig(preset=name), dict.fromkeys(published, GB), None)[0].shares
    assert shares == pytest.approx(published, abs=0.01)


def test_a_curriculum() -> None:
    cfg = MixtureConfig.model_validate(
        {"sources": {"web": 9, "code": 1}, "curriculum": [{"after": "80%", "sources": {"web": 1, "wiki": "2ep"}}]}
    )
    available = {"web": GB, "code": GB, "wiki": GB // 10}
    first, second = resolve(cfg, available, 2 * GB)
    assert (first.start, first.shares) == (0, pytest.approx({"web": 0.9, "code": 0.1}))
    assert (second.start, second.shares) == (int(1.6e9), pytest.approx({"web": 0.5, "wiki": 0.5})), "2 epochs of the last fifth"
    with pytest.raises(UserError, match=r"tokens\.curriculum\.0\.sources: there are no tokens of a source 'wiki'"):
        resolve(cfg, {"web": GB, "code": GB}, 2 * GB)
    absolute = MixtureConfig.model_validate({"sources": {"web": 1}, "curriculum": [{"after": "1B", "sources": {"code": 1}}]})
    assert len(resolve(absolute, available, None)) == 2
    assert len(resolve(absolute, available, GB // 2)) == 1, "a milestone behind the end"


def test_the_table_warns_of_too_many_repeats() -> None:
    stream = io.StringIO()
    terminal = Terminal(console=Console(file=stream, width=120, highlight=False))
    rows = [SourceRow("web", (0.9, 0.5), 100 * GB, 9 * GB, 0.09), SourceRow("wiki", (0.1, 0.5), GB // 5, GB, 5.0)]
    show_rows(rows, terminal)
    text = stream.getvalue()
    assert "90.0% → 50.0%" in text and "wiki is gone through 5 times" in text and "web is gone" not in text
