"""The same logits from transformers' classes and ours, both ways, and checkpoints as people publish them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from herdbook.errors import UserError
from herdbook.facts.models import Preset, list_models
from herdbook.interop.families import family_of
from herdbook.interop.hf import config_json, load_folder, read_config, save_folder
from herdbook.model.attention import alibi_slopes
from herdbook.model.decoder import Decoder

from .theirs import (
    BOUND,
    CONTEXT,
    MPT,
    OURS,
    RW,
    THEIRS,
    difference,
    edit_json,
    make_ours,
    open_theirs,
    our_config,
    randomise,
    save_quietly,
    tokens,
    write_config,
)

# ---- the same logits both ways ----


@pytest.mark.parametrize("kind", OURS)
def test_what_we_save_transformers_reads(kind: str, tmp_path: Path) -> None:
    architecture, shape = OURS[kind]
    model = make_ours(**shape)
    save_quietly(model, tmp_path)
    theirs = open_theirs(tmp_path)
    assert type(theirs).__name__ == architecture
    assert theirs.num_parameters() == model.cfg.parameters()
    assert difference(model, theirs) <= BOUND
    again = load_folder(tmp_path)
    assert all(torch.equal(weight, dict(again.named_parameters())[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("kind", THEIRS)
def test_what_transformers_saves_we_read(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    name, keys = THEIRS[kind]
    architecture = name if name.endswith("Model") else f"{name}ForCausalLM"
    config = getattr(transformers, f"{name.removesuffix('LMHeadModel')}Config").from_dict(keys)
    theirs = getattr(transformers, architecture)(config).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours = load_folder(tmp_path)
    assert ours.cfg.parameters() == theirs.num_parameters()
    assert difference(ours, theirs) <= BOUND
    # The config as people wrote it says the same as the one transformers made of it.
    written = write_config(tmp_path / "by-hand", {**keys, "model_type": config.model_type})
    assert read_config(written) == ours.cfg.model_copy(update={"dropout": read_config(written).dropout})


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [1, 7, CONTEXT - 1])
def test_mistrals_window_is_ours(window: int, attention: str, tmp_path: Path) -> None:
    """By both of its kernels, ours opened there and what it saves opened here."""
    model = make_ours(n_kv_heads=2, window=window)
    save_quietly(model, tmp_path / "ours")
    theirs = open_theirs(tmp_path / "ours", attn_implementation=attention)
    assert theirs.config.sliding_window == window
    assert difference(model, theirs) < 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_folder(tmp_path / "theirs")
    assert again.cfg == model.cfg
    assert difference(again, theirs) < 1e-5
    theirs.config.sliding_window = None
    assert difference(model, theirs) > 1e-3


# ---- where transformers computes something else ----


def test_storywriter_is_right_here_and_wrong_in_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MptForCausalLM ignores alibi_bias_max; made to use it, by its own code, it gives our logits."""
    shape = {**MPT, "clip_qkv": 0.25}
    story = make_ours(**shape, alibi_max=16)
    with pytest.warns(UserWarning, match="ignores alibi_bias_max"):
        save_folder(story, tmp_path, tokenizer=None)
    theirs = open_theirs(tmp_path)
    assert difference(story, theirs) > 0.01
    usual = make_ours(**shape)
    assert difference(usual, theirs) <= BOUND
    from transformers.models.mpt import modeling_mpt

    slopes = modeling_mpt.build_mpt_alibi_tensor
    monkeypatch.setattr(
        modeling_mpt, "build_mpt_alibi_tensor", lambda heads, length, most, device: slopes(heads, length, 16, device)
    )
    assert difference(story, theirs) <= BOUND


def test_storywriter_against_the_formula() -> None:
    """One layer of attention written out: softmax(q·k/sqrt(E) - 2^(-16·i/H)·distance)·v."""
    model = make_ours(**MPT, alibi_max=16, n_heads=4, n_layers=1)
    attn, x_BTD = model.blocks[0].attn, torch.randn(1, 12, 48, generator=torch.Generator().manual_seed(2))
    q, k, v = (part(x_BTD).view(12, 4, 12).transpose(0, 1) for part in (attn.q, attn.k, attn.v))
    place = torch.arange(12)
    distance = (place[:, None] - place[None, :]).float()
    rows = []
    for head in range(4):
        scores = q[head] @ k[head].T / math.sqrt(12) - 2 ** (-16 * (head + 1) / 4) * distance
        rows.append(scores.masked_fill(distance < 0, -math.inf).softmax(-1) @ v[head])
    expected = attn.o(torch.stack(rows, 1).reshape(1, 12, 48))
    sight = model._sight(12, place[None], None, None)
    assert (attn(x_BTD, None, sight, None) - expected).abs().max() < BOUND


def test_falcon_with_alibi_needs_sdpa_in_transformers(tmp_path: Path) -> None:
    model = make_ours(**RW)
    with pytest.warns(UserWarning, match="attn_implementation"):
        save_folder(model, tmp_path, tokenizer=None)
    assert difference(model, open_theirs(tmp_path, attn_implementation="sdpa")) <= BOUND
    assert difference(model, open_theirs(tmp_path, attn_implementation="eager")) > 0.01


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mpt", "falcon-7b", "neox"])
def test_no_warning_where_transformers_is_right(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        save_folder(make_ours(**OURS[kind][1]), tmp_path, tokenizer=None)


def test_falcons_slopes_round_as_transformers_does() -> None:
    """In bfloat16 a last bit of float32 could tip a slope over; for no number of heads it does."""
    modeling = pytest.importorskip("transformers.models.falcon.modeling_falcon")
    for heads in range(1, 257):
        theirs = modeling.build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]
        assert torch.equal(alibi_slopes(heads).bfloat16().float(), theirs), heads


# ---- checkpoints as people publish them ----


def published(kind: str, folder: Path, rename: Callable[[str], str], **extra: torch.Tensor) -> Decoder:
    """A folder of ours with its tensors renamed and some added."""
    model = make_ours(**OURS[kind][1])
    save_quietly(model, folder)
    stored = {rename(name): weight for name, weight in load_file(folder / "model.safetensors").items()}
    save_file({**stored, **extra}, folder / "model.safetensors")
    return model


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [("bloom", "transformer."), ("gpt2", "transformer."), ("opt", "model."), ("opt-350m", "model.decoder."),
     ("mpt", "transformer."), ("falcon-7b", "transformer."), ("gpt-j", "transformer."), ("neox", "gpt_neox.")],
)  # fmt: skip
def test_names_without_their_prefix(kind: str, prefix: str, tmp_path: Path) -> None:
    model = published(kind, tmp_path, lambda name: name.removeprefix(prefix))
    assert not any(name.startswith(prefix) for name in load_file(tmp_path / "model.safetensors"))
    with torch.inference_mode():
        assert torch.equal(load_folder(tmp_path)(tokens()), model(tokens()))


def test_buffers_of_old_versions_are_passed_over(tmp_path: Path) -> None:
    for kind, names in {
        "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
        "gpt2": ["h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
        "gpt-j": ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"],
        "neox": [
            "gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias",
            "gpt_neox.layers.1.attention.rotary_emb.inv_freq",
        ],
        "falcon-7b": ["transformer.h.0.self_attention.maybe_rotary.inv_freq"],
    }.items():  # fmt: skip
        model = published(kind, tmp_path / kind, str, **{name: torch.ones(1, 1, 4, 4) for name in names})
        with torch.inference_mode():
            assert torch.equal(load_folder(tmp_path / kind)(tokens()), model(tokens()))


@pytest.mark.parametrize("kind", ["falcon-7b", "bloom", "mpt", "opt-350m", "gpt2", "llama-tied", "neox-sequential"])
def test_the_copy_of_a_tied_head_must_be_one(kind: str, tmp_path: Path) -> None:
    family = family_of(our_config(**OURS[kind][1]))
    assert family is not None
    model = make_ours(**OURS[kind][1])
    copy = model.embed.weight.detach().clone()
    published(kind, tmp_path, str, **{family.head: copy})
    assert torch.equal(load_folder(tmp_path).embed.weight, model.embed.weight)
    assert load_folder(tmp_path, dtype=torch.bfloat16).unembed is None
    copy[-1, -1] += 1
    published(kind, tmp_path, str, **{family.head: copy})
    with pytest.raises(UserError, match=r"differs from the embedding(.|\n)*\"tie_word_embeddings\": false"):
        load_folder(tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=False)
    untied = load_folder(tmp_path)
    assert untied.unembed is not None
    assert torch.equal(untied.unembed.weight, copy)
    published(kind, tmp_path, str, **{family.head: copy[:-1].contiguous()})
    with pytest.raises(UserError, match="tensors that do not fit"):
        load_folder(tmp_path)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    model = make_ours(**OURS["gpt2"][1])
    published("gpt2", tmp_path, str, **{"wte.weight": model.embed.weight.detach().clone()})
    with pytest.raises(UserError, match=r"wte.weight \(given twice\)"):
        load_folder(tmp_path)


# ---- the catalogue ----

CLASSES = {
    "gpt2": "GPT2LMHeadModel", "gpt3": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "bloom": "BloomForCausalLM",
    "llama": "LlamaForCausalLM", "llama2": "LlamaForCausalLM", "mpt": "MptForCausalLM", "falcon": "FalconForCausalLM",
    "neox": "GPTNeoXForCausalLM", "gptj": "GPTJForCausalLM", "palm": None,
}  # fmt: skip


@pytest.mark.parametrize("preset", list_models(), ids=lambda preset: preset.name)
def test_presets_have_as_many_parameters_in_transformers(preset: Preset) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        ours = Decoder(preset.config)
    assert sum(weight.numel() for weight in ours.parameters()) == preset.config.parameters()
    family = family_of(preset.config)
    assert (family and family.architecture) == CLASSES[preset.family]
    if family is not None:
        config = transformers.AutoConfig.for_model(**config_json(preset.config))
        with torch.device("meta"):
            theirs = transformers.AutoModelForCausalLM.from_config(config)
        assert theirs.num_parameters() == preset.config.parameters()
