"""The model card: front matter that parses, facts of the pedigree, and nothing invented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from herdbook import pedigree
from herdbook.errors import UserError
from herdbook.files import write_json
from herdbook.report.card import model_card


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_front_matter_names_what_the_hub_reads(run: Path) -> None:
    head = front_matter(model_card(run / "sft", run))
    assert head["language"] == ["en", "fr", "es"]
    assert head["license"] == "other"
    assert head["license_name"] == "cc-by-sa-4.0-and-bsd-3-clause-and-psf-2.0"
    assert head["pipeline_tag"] == "text-generation"
    assert head["base_model"] == "fake/pretrain"
    assert head["datasets"] == ["pydoc", "docstrings", "wikipedia"]
    assert head["metrics"] == ["bits_per_byte", "accuracy"]
    results = {row["dataset"]["name"]: row["metrics"] for row in head["model-index"][0]["results"]}
    assert results["bits_per_byte"] == [{"type": "bits_per_byte", "name": "bits per byte", "value": 1.366}]
    assert [metric["value"] for metric in results["docstring_choice"]] == [0.445, 0.475]


def test_one_licence_is_given_by_its_id(run: Path) -> None:
    manifest = pedigree.read(run / "pretrain")
    manifest["license"] = manifest["licenses"][0]
    write_json(run / "pretrain" / pedigree.MANIFEST, manifest)
    head = front_matter(model_card(run / "pretrain", run))
    assert head["license"] == "psf-2.0"
    assert "base_model" not in head


def test_text_says_what_it_is_and_what_it_is_not_for(run: Path) -> None:
    card = model_card(run / "sft", run)
    assert "4.92 million parameters" in card
    assert "do not rely on anything it says" in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "share under the same licence" in card


def test_a_shape_of_our_own_does_not_promise_transformers(run: Path) -> None:
    write_json(run / "sft" / "config.json", {"model_type": "herdbook"})
    assert "AutoModelForCausalLM" not in model_card(run / "sft", run)


def test_without_a_run_only_the_models_own_facts(run: Path) -> None:
    head = front_matter(model_card(run / "sft", None))
    assert "datasets" not in head and "metrics" not in head and "language" not in head


def test_a_folder_without_pedigree_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pedigree"):
        model_card(tmp_path, None)
