"""The catalogue: counts as counted elsewhere, licences that exist, names that help."""

from __future__ import annotations

import json

import pytest

from herdbook.errors import UserError
from herdbook.facts.models import find_model, list_models
from herdbook.interop.families import family_of

# Counted on transformers' own classes (meta device, versions 4.57 and 5.23); GPT-2 as published on the hub.
PARAMETERS = {
    "gpt2-small": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    "gpt3-small": 125_226_240, "gpt3-medium": 355_871_744, "gpt3-large": 760_300_032, "gpt3-xl": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280, "gpt3-6.7b": 6_658_404_352, "gpt3-13b": 12_853_386_240, "gpt3-175b": 174_604_259_328,
    "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-33b": 32_528_943_616, "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-34b": 33_743_970_304, "llama2-70b": 68_976_648_192,
}  # fmt: skip


def test_parameter_counts() -> None:
    assert {preset.name: preset.config.parameters() for preset in list_models() if not preset.tiny} == PARAMETERS


def test_parameter_counts_equal_those_of_transformers(tmp_path: object) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from herdbook.interop.hf import config_json

    for name in ("gpt2-small", "gpt3-xl", "llama-65b", "llama2-34b", "llama2-70b", "llama2-tiny", "gpt2-tiny"):
        cfg = find_model(name).config
        written = config_json(cfg)
        theirs = transformers.AutoConfig.for_model(**written)
        with torch.device("meta"):
            model = getattr(transformers, written["architectures"][0])(theirs)
        assert model.num_parameters() == cfg.parameters(), name


@pytest.mark.parametrize("preset", list_models(), ids=lambda preset: preset.name)
def test_each_preset_is_sound(preset: object) -> None:
    from herdbook.facts.models import Preset

    assert isinstance(preset, Preset)
    if preset.published is not None:
        assert preset.config.parameters() == pytest.approx(preset.published, rel=0.04)
    if preset.tiny:
        assert 0.9e6 < preset.config.parameters() < 1.2e6
        assert preset.license is None
    assert family_of(preset.config) is not None
    assert (preset.license is None) == (preset.license_id is None)
    assert preset.license is None or not preset.license.id.endswith("unknown")
    assert preset.source
    json.dumps(preset.as_dict())


def test_licences_and_tokens() -> None:
    llama, llama2, gpt3 = find_model("llama-65b"), find_model("llama2-70b"), find_model("gpt3-175b")
    assert llama.license is not None
    assert llama2.license is not None
    assert (llama.license.commercial, llama2.license.commercial, gpt3.license) == (False, True, None)
    assert (llama.tokens, llama2.tokens, gpt3.tokens) == (1_400_000_000_000, 2_000_000_000_000, 300_000_000_000)
    assert find_model("llama-7b").tokens == 1_000_000_000_000
    assert "never published" in gpt3.terms
    assert "never published" in find_model("llama2-34b").terms


def test_wrong_names_get_the_nearest_ones() -> None:
    with pytest.raises(UserError, match=r"did you mean .*llama2-7b"):
        find_model("llama-2-7b")
    with pytest.raises(UserError, match="herdbook models"):
        find_model("zzz")
