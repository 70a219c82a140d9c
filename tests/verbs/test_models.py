"""`herdbook models`: the list and its filters, one model in full, several side by side; presets and folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from herdbook import pedigree
from herdbook.cli import app
from herdbook.errors import UserError
from herdbook.facts.models import list_models


def models(*words: str) -> str:
    """What the verb prints, for people and for programs."""
    done = CliRunner().invoke(app, ["models", *words], catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return done.output


def facts(*words: str) -> Any:
    return json.loads(models(*words, "--json"))


@pytest.fixture
def descendant(tmp_path: Path) -> Path:
    """A model folder that calls itself Apache-2.0 and was made from LLaMA."""
    from herdbook.api import load

    folder = tmp_path / "mine"
    load("llama-tiny").save(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: decapoda-research/llama-7b-hf\n---\n")
    return folder


def test_the_list_is_grouped_and_fits_a_terminal() -> None:
    lines = models().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert names == [preset.name for preset in list_models()]
    assert lines.index(next(line for line in lines if line.startswith("OPT"))) < lines.index(
        next(line for line in lines if line.strip().startswith("opt-125m"))
    )


def test_filters() -> None:
    assert {row["family"] for row in facts("--family", "bloom")} == {"bloom"}
    commercial = facts("ls", "--commercial")
    assert {row["license"]["commercial"] for row in commercial} == {True}
    assert not [row for row in commercial if row["tiny"] or row["family"] in ("opt", "llama", "gpt3", "palm")]
    fitting = {row["name"] for row in facts("--commercial", "--fits", "24GB")}
    assert {"llama2-7b", "falcon-7b", "mpt-7b", "pythia-6.9b"} <= fitting
    assert not fitting & {"mpt-7b-storywriter", "llama2-13b", "pythia-12b", "llama-7b"}
    small = {row["name"] for row in facts("--commercial", "--fits", "24GB", "--precision", "int4")}
    assert {"llama2-13b", "pythia-12b", "gpt-neox-20b"} <= small
    assert all(row["serving"]["total"] <= 24e9 for row in facts("--fits", "24GB"))
    assert "nothing" in models("--fits", "1MB")
    assert facts("--fits", "1MB") == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--family", "lama"], "did you mean llama"),
        (["--fits", "much"], "24GB"),
        (["--precision", "int3"], "int8"),
        (["--commercial", "show", "opt-125m"], "behind the verb"),
        (["show", "falcon7b"], "did you mean falcon-7b"),
        (["show", "absent/folder"], "no such model folder"),
        (["compare", "llama-7b"], "needs two"),
        (["compare", "llama-7b", "lama-13b"], "did you mean llama-13b"),
    ],
)
def test_wrong_input(words: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        models(*words)
    assert says in str(caught.value)


def test_show_a_preset() -> None:
    text = models("show", "llama2-7b")
    for words in ("6,738,415,616", "11,008", "RoPE", "2T tokens", "184,320", "may I use it commercially?", "yes", "700 million",
                  "to serve in int4", "126 GB", "arXiv:2307.09288", "(from memory)"):  # fmt: skip
        assert words in text, words
    shown = facts("show", "falcon-7b")
    assert (shown["commercial"], shown["may_i_use_it_commercially"]) == (True, "yes")
    assert shown["results"]["llama2-overview"]["rows"]["falcon-7b"]["MMLU"] == 26.2
    assert shown["serving"]["bf16"]["cache"] == 16_777_216
    assert facts("show", "EleutherAI/pythia-70m")["name"] == "pythia-70m"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("opt-125m", "no"),
        ("bloom-560m", "yes, within its conditions"),
        ("gpt3-175b", "there are no weights to use"),
        ("llama2-34b", "there are no weights to use"),
        ("mpt-tiny", "yes: random weights, yours"),
        ("mpt-7b", "yes"),
    ],
)
def test_may_i_use_it_commercially(name: str, answer: str) -> None:
    assert facts("show", name)["may_i_use_it_commercially"] == answer
    assert answer in models("show", name)


@pytest.mark.parametrize("preset", list_models(), ids=lambda preset: preset.name)
def test_every_model_can_be_shown(preset: Any) -> None:
    text = models("show", preset.name)
    assert f"{preset.config.parameters():,}" in text
    assert "None" not in text


def test_a_window_is_named(tmp_path: Path) -> None:
    from herdbook.interop.hf import save_folder
    from herdbook.model.config import ModelConfig
    from herdbook.model.decoder import Decoder

    shape = {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 1, "context": 5000}
    for window in (None, 1234):
        save_folder(Decoder(ModelConfig.model_validate({**shape, "window": window})), tmp_path / "m", tokenizer=None)
        text = " ".join(models("show", str(tmp_path / "m")).split())
        assert "share 2 key/value heads (GQA)" in text
        assert ("through a window of 1,234 tokens" in text) == (window is not None)
        assert facts("show", str(tmp_path / "m"))["config"]["window"] == window


def test_a_folder_is_bound_by_what_it_was_made_from(descendant: Path) -> None:
    shown = facts("show", str(descendant))
    assert "Apache-2.0" in shown["stated_license"]["id"]
    assert shown["commercial"] is False
    assert "LicenseRef-llama-1" in shown["license"]["id"]
    assert [row["preset"] for row in shown["ancestors"]] == ["llama-7b"]
    text = " ".join(models("show", str(descendant)).split())
    assert "for research only" in text
    assert "decapoda-research/llama-7b-hf" in text


def test_a_folder_names_the_stations_it_went_through(descendant: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "sft"
    from herdbook.api import load

    with pedigree.record(tuned, "sft", {}) as record:
        load("llama-tiny").save(tuned)
        record.add_input(descendant, "model")
        record.add_license("MIT")
        record.counts["tokens"] = 12_000
    shown = facts("show", str(tuned))
    assert shown["tokens"] == 12_000
    assert shown["commercial"] is False
    assert {row["preset"] for row in shown["ancestors"]} == {None, "llama-7b"}
    assert "made from" in models("show", str(tuned))


def test_compare() -> None:
    text = models("compare", "llama2-7b", "falcon-7b")
    assert "≠" in text
    assert "45.3" in text
    assert "26.2" in text
    compared = facts("compare", "llama2-7b", "falcon-7b", "llama-65b")
    rows = {row["what"]: row for row in compared["rows"]}
    assert rows["positions"]["differs"] is False
    assert rows["attention"]["differs"] is True
    assert set(rows["parameters"]["values"]) == {"llama2-7b", "falcon-7b", "llama-65b"}
    assert compared["results"]["llama2-overview"]["rows"]["llama-65b"]["MMLU"] == 63.4
    assert "No published table" in models("compare", "opt-125m", "bloom-560m")


def test_compare_a_folder_with_a_preset(descendant: Path) -> None:
    rows = {row["what"]: row for row in facts("compare", str(descendant), "llama-tiny")["rows"]}
    assert rows["parameters"]["differs"] is False
    assert rows["may I use it commercially?"]["values"][str(descendant)] == "no"
