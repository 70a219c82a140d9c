"""The catalogue: counts as counted elsewhere, licences that exist, names that help."""

from __future__ import annotations

import json

import pytest

from herdbook.errors import UserError
from herdbook.facts.models import TRAINING, Preset, find_model, find_published, list_families, list_models

# Counted on transformers' own classes (meta device, versions 4.57 and 5.23); GPT-2 as published on the hub; PaLM from its
# shape, where the paper prints 8.63B, 62.50B and 540.35B.
PARAMETERS = {
    "gpt2-small": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    "gpt3-small": 125_226_240, "gpt3-medium": 355_871_744, "gpt3-large": 760_300_032, "gpt3-xl": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280, "gpt3-6.7b": 6_658_404_352, "gpt3-13b": 12_853_386_240, "gpt3-175b": 174_604_259_328,
    "opt-125m": 125_239_296, "opt-350m": 331_196_416, "opt-1.3b": 1_315_758_080, "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984, "opt-13b": 12_853_473_280, "opt-30b": 29_974_540_288, "opt-66b": 65_719_701_504,
    "opt-175b": 174_604_468_224,
    "bloom-560m": 559_214_592, "bloom-1b1": 1_065_314_304, "bloom-1b7": 1_722_408_960, "bloom-3b": 3_002_557_440,
    "bloom-7b1": 7_069_016_064, "bloom-176b": 176_247_271_424,
    "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-33b": 32_528_943_616, "llama-65b": 65_285_660_672,
    "mpt-7b": 6_649_286_656, "mpt-7b-storywriter": 6_649_286_656, "mpt-30b": 29_957_200_896,
    "falcon-rw-1b": 1_311_625_216, "falcon-rw-7b": 7_516_020_736, "falcon-7b": 6_921_720_704, "falcon-40b": 41_303_293_952,
    "falcon-180b": 178_557_088_768,
    "llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-34b": 33_743_970_304, "llama2-70b": 68_976_648_192,
    "pythia-70m": 70_426_624, "pythia-160m": 162_322_944, "pythia-410m": 405_334_016, "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808, "pythia-2.8b": 2_775_208_960, "pythia-6.9b": 6_857_302_016, "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
    "gpt-j-6b": 6_050_882_784,
    "palm-8b": 8_632_012_800, "palm-62b": 62_495_662_080, "palm-540b": 540_356_474_880,
}  # fmt: skip
TINY = [
    "gpt2-tiny",
    "gpt3-tiny",
    "gptj-tiny",
    "neox-tiny",
    "palm-tiny",
    "opt-tiny",
    "opt-post-tiny",
    "bloom-tiny",
    "llama-tiny",
    "mpt-tiny",
    "storywriter-tiny",
    "falcon-tiny",
    "falcon-gqa-tiny",
    "falcon-rw-tiny",
    "llama2-tiny",
]
# What the shape gives differs from the rounded or marketed size by more than this only where the notes say why.
ROUNDED = 0.04


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


def test_every_family_has_tiny_siblings() -> None:
    tiny = [preset for preset in list_models() if preset.tiny]
    assert [preset.name for preset in tiny] == TINY
    assert {preset.family for preset in tiny} == set(list_families())
    alibi = [preset.config.n_heads for preset in tiny if preset.config.positions == "alibi"]
    assert any(heads & (heads - 1) for heads in alibi), "the slopes of head counts that are no power of two want a test"


@pytest.mark.parametrize("preset", list_models(), ids=lambda preset: preset.name)
def test_each_preset_is_sound(preset: Preset) -> None:
    config = preset.config
    if preset.tiny:
        assert 0.7e6 < config.parameters() < 1.5e6
        assert config.vocabulary == 4096
        assert 3 <= config.n_layers <= 5
        assert (preset.license, preset.tokens, preset.hub, preset.from_memory) == (None, None, None, ())
    else:
        assert preset.published is not None
        far = preset.name == "opt-350m"  # its embedding is 512 wide: 331M
        assert config.parameters() == pytest.approx(preset.published, rel=0.06 if far else ROUNDED)
        assert preset.terms
    assert config.resolved() == config
    assert (preset.license is None) == (preset.license_id is None)
    assert preset.license is None or not preset.license.id.endswith("unknown")
    assert preset.source
    assert set(preset.training) <= set(TRAINING)
    known = {"shape", "released", "hub", "tokens", "published", "terms", *preset.training, *type(config).model_fields}
    assert set(preset.from_memory) <= known, "from_memory names a figure that is not there"
    json.dumps(preset.as_dict())


@pytest.mark.parametrize(
    ("family", "commercial", "conditions"),
    [("gpt2", True, False), ("gptj", True, False), ("neox", True, False), ("opt", False, True), ("bloom", True, True),
     ("llama", False, True), ("mpt", True, False), ("llama2", True, True), ("gpt3", None, False), ("palm", None, False)],
)  # fmt: skip
def test_licences_of_families(family: str, commercial: bool | None, conditions: bool) -> None:
    published = [
        preset for preset in list_models() if preset.family == family and not preset.tiny and preset.name != "llama2-34b"
    ]
    assert {preset.license.commercial if preset.license else None for preset in published} == {commercial}
    assert {bool(preset.license and preset.license.conditions) for preset in published} == {conditions}
    assert all(preset.terms.startswith({True: "Yes", False: "No", None: "The weights"}[commercial]) for preset in published)


def test_a_size_may_have_a_licence_of_its_own() -> None:
    assert find_model("falcon-40b").license_id == "Apache-2.0"
    assert find_model("falcon-180b").license_id == "LicenseRef-TII-Falcon-180B"
    assert "hosted" in find_model("falcon-180b").terms


def test_shapes_that_are_easily_got_wrong() -> None:
    story, rw, gptj = find_model("mpt-7b-storywriter").config, find_model("falcon-rw-1b").config, find_model("gpt-j-6b").config
    assert (story.alibi_max, story.clip_qkv, story.context, story.vocab_size) == (16, 6, 65536, 50432)
    assert (rw.alibi_falcon, rw.bias, rw.norm_bias, rw.block) == (True, True, True, "sequential")
    assert (gptj.attn_bias, gptj.ff_bias, gptj.head_bias, gptj.rotary_width, gptj.rope_interleaved) == (
        False,
        True,
        True,
        64,
        True,
    )
    assert (find_model("mpt-30b").config.n_heads, find_model("mpt-30b").config.head_width) == (64, 112)
    assert (find_model("falcon-7b").config.n_heads, find_model("falcon-7b").config.kv_heads) == (71, 1)
    assert find_model("gpt-neox-20b").config.activation == "gelu_tanh"
    assert find_model("pythia-12b").config.activation == "gelu"
    assert [find_model(name).config.norm_eps for name in ("llama-7b", "llama-65b")] == [1e-6, 1e-5]


def test_what_is_from_memory_is_marked() -> None:
    assert "peak_lr" in find_model("gpt3-175b").from_memory
    assert {"norm_eps", "precision"} == set(find_model("llama-7b").from_memory)
    assert "norm_eps" not in find_model("llama-65b").from_memory
    assert find_model("pythia-70m").from_memory == ()
    assert "shape" in find_model("falcon-rw-7b").from_memory


@pytest.mark.parametrize(
    ("repository", "name"),
    [
        ("meta-llama/Llama-2-7b-hf", "llama2-7b"),
        ("meta-llama/Llama-2-13b-chat-hf", "llama2-13b"),
        ("decapoda-research/llama-7b-hf", "llama-7b"),
        ("huggyllama/llama-30b", "llama-33b"),
        ("tiiuae/falcon-40b-instruct", "falcon-40b"),
        ("someone/llama-2-70B-GGUF/", "llama2-70b"),
        ("mistralai/Mistral-7B-v0.1", None),
    ],
)
def test_repositories_and_what_they_were_made_from(repository: str, name: str | None) -> None:
    found = find_published(repository)
    assert (found.name if found else None) == name


def test_a_model_goes_by_its_repository_too() -> None:
    assert find_model("EleutherAI/pythia-70m").name == "pythia-70m"


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
