"""Hugging Face folders: the same logits both ways, and broken folders said plainly."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from herdbook.errors import UserError
from herdbook.interop.families import FAMILIES, family_of
from herdbook.interop.hf import config_json, load_folder, read_config, save_folder
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

LEARNED = {"positions": "learned", "norm": "layernorm", "bias": True}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tied": False, "norm_eps": 1e-6},
    "llama-tied": {},
    "llama2-gqa": {"tied": False, "n_kv_heads": 2, "rope_theta": 50_000.0, "context": 64},
    "llama-biases": {"bias": True, "head_dim": 16, "n_kv_heads": 1},
    "gpt2": {**LEARNED, "activation": "gelu_tanh"},
    "gpt2-untied": {**LEARNED, "activation": "relu", "tied": False, "d_ff": 40},
    "gpt2-erf": {**LEARNED, "activation": "gelu", "dropout": 0.1},
}
OWN: dict[str, dict[str, Any]] = {
    "rope with layernorm": {"norm": "layernorm"},
    "learned with key groups": {**LEARNED, "activation": "gelu", "n_kv_heads": 2},
    "learned with offset": {**LEARNED, "activation": "relu", "position_offset": 2},
    "swiglu with learned": {**LEARNED, "tied": False},
}


def make_decoder(kind: str, seed: int = 0, **changes: Any) -> Decoder:
    shape = {"vocab_size": 96, "d_model": 32, "n_layers": 2, "n_heads": 4, "context": 32, **(KINDS | OWN)[kind], **changes}
    model = Decoder(ModelConfig.model_validate(shape)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # all weights at random, biases and norms too, so that a swapped pair is seen
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(96, (2, 32), generator=torch.Generator().manual_seed(1))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_logits_both_ways(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = make_decoder(kind)
    save_folder(model, tmp_path / "ours", tokenizer=None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert sum(weight.numel() for weight in theirs.parameters()) == model.cfg.parameters()
    with torch.inference_mode():
        assert (theirs(tokens()).logits - model(tokens())).abs().max() < 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_folder(tmp_path / "theirs")
    assert again.cfg == model.cfg
    with torch.inference_mode():
        assert (again(tokens()) - model(tokens())).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS | OWN)
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_what_is_saved_loads_bit_for_bit(kind: str, shard_bytes: int, tmp_path: Path) -> None:
    model = make_decoder(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        save_folder(model, tmp_path, tokenizer=None, shard_bytes=shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) == (shard_bytes == 10**9)
    again = load_folder(tmp_path)
    assert again.cfg == model.cfg
    theirs = dict(again.named_parameters())
    assert all(torch.equal(weight, theirs[name]) for name, weight in model.named_parameters())
    assert not again.training


@pytest.mark.parametrize("kind", OWN)
def test_shapes_no_class_expresses_are_saved_as_ours_with_a_warning(kind: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="only herdbook will open"):
        save_folder(make_decoder(kind), tmp_path, tokenizer=None)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "herdbook"


def test_every_parameter_has_one_place_in_each_family() -> None:
    for kind in KINDS:
        family = family_of(make_decoder(kind).cfg)
        assert family is not None
        assert family.model_type == kind.split("-")[0].rstrip("2" if kind.startswith("llama") else "")
    assert len({family.model_type for family in FAMILIES}) == len(FAMILIES)


def test_config_serves_both_versions_of_transformers() -> None:
    written = config_json(make_decoder("llama2-gqa").cfg, dtype=torch.bfloat16)
    assert written["rope_theta"] == 50_000.0
    assert written["rope_parameters"] == {"rope_theta": 50_000.0, "rope_type": "default"}
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"
    assert config_json(make_decoder("gpt2").cfg)["eos_token_id"] is None


def test_bfloat16_folder(tmp_path: Path) -> None:
    model = make_decoder("llama")
    save_folder(model, tmp_path, tokenizer=None, dtype=torch.bfloat16)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    half = load_folder(tmp_path, dtype=torch.bfloat16)
    assert half.compute_dtype == torch.bfloat16
    assert half(tokens()).dtype == torch.float32
    assert torch.equal(load_folder(tmp_path).embed.weight, model.embed.weight.bfloat16().float())


def test_other_files_stay_and_old_shards_go(tmp_path: Path) -> None:
    model = make_decoder("llama")
    (tmp_path / "checkpoint-000100").mkdir()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    save_folder(model, tmp_path, tokenizer=None, shard_bytes=20_000)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    save_folder(make_decoder("llama", seed=1), tmp_path, tokenizer=None)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint-000100", "metrics.jsonl", "model.safetensors", "config.json", "README.md"}
    save_folder(model, tmp_path, tokenizer=None, shard_bytes=20_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(load_folder(tmp_path).embed.weight, model.embed.weight)


def test_card_names_the_licence(tmp_path: Path) -> None:
    save_folder(make_decoder("llama"), tmp_path, tokenizer=None, license_id="Apache-2.0", card="# Mine")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "# Mine" in card
    save_folder(make_decoder("llama"), tmp_path, tokenizer=None, license_id="LicenseRef-llama-1")
    card = (tmp_path / "README.md").read_text()
    assert "license: other\nlicense_name: LicenseRef-llama-1" in card
    assert "no commercial use" in card


def test_names_of_old_checkpoints(tmp_path: Path) -> None:
    """The first GPT-2 files have no prefix, carry the causal mask, and some a copy of the tied head."""
    model = make_decoder("gpt2")
    save_folder(model, tmp_path, tokenizer=None)
    stored = {name.removeprefix("transformer."): weight for name, weight in load_file(tmp_path / "model.safetensors").items()}
    stored |= {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    stored["lm_head.weight"] = stored["wte.weight"].clone()
    save_file(stored, tmp_path / "model.safetensors")
    with torch.inference_mode():
        assert torch.equal(load_folder(tmp_path)(tokens()), model(tokens()))


def saved(tmp_path: Path, kind: str = "llama", **more: Any) -> Path:
    save_folder(make_decoder(kind), tmp_path, tokenizer=None, **more)
    return tmp_path


def _drop_tensor(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, folder / "model.safetensors")


def _add_tensor(folder: Path) -> None:
    save_file({**load_file(folder / "model.safetensors"), "model.extra": torch.ones(1)}, folder / "model.safetensors")


def _reshape_tensor(folder: Path) -> None:
    save_file({**load_file(folder / "model.safetensors"), "model.norm.weight": torch.ones(31)}, folder / "model.safetensors")


def _integer_tensor(folder: Path) -> None:
    whole = torch.ones(32, dtype=torch.int32)
    save_file({**load_file(folder / "model.safetensors"), "model.norm.weight": whole}, folder / "model.safetensors")


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _long_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


def _garbage(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(bytes(range(256)) * (path.stat().st_size // 256))


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print))


def _pickle_in_disguise(folder: Path) -> None:
    torch.save({"weight": torch.ones(300_000)}, folder / "model.safetensors")


def _index(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        edit = {"weight_map": {"model.norm.weight": "part.safetensors", "lm_head.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(edit))

    return write


def _no_map(folder: Path) -> None:
    _index("part.safetensors")(folder)
    (folder / "model.safetensors.index.json").write_text("[]")


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing tensor": (_drop_tensor, "missing tensors: model.layers.1.mlp.up_proj.weight"),
    "unknown tensor": (_add_tensor, "unknown tensors: model.extra"),
    "wrong shape": (_reshape_tensor, r"model.norm.weight \(31 instead of 32\)"),
    "whole numbers": (_integer_tensor, r"model.norm.weight \(of type I32"),
    "cut off": (_cut, "not a whole safetensors file"),
    "empty": (_empty, "only 0 bytes"),
    "hostile header": (_long_header, "not a whole safetensors file"),
    "garbage": (_garbage, "not a whole safetensors file"),
    "pickle": (_pickle, "a pickle can run any program"),
    "pickle in disguise": (_pickle_in_disguise, "not a whole safetensors file"),
    "index leads out": (_index("../part.safetensors"), "no safetensors file of this folder"),
    "index leads to the root": (_index("/etc/passwd"), "no safetensors file of this folder"),
    "index names a pickle": (_index("pytorch_model.bin"), "no safetensors file of this folder"),
    "missing part": (_index("model-00002.safetensors"), "a part of the weights is missing"),
    "index without a map": (_no_map, "weight_map"),
    "more layers": (_config(num_hidden_layers=3), "missing tensors: model.layers.2.input_layernorm.weight"),
    "a billion layers": (_config(num_hidden_layers=10**9), "only .* bytes"),
    "another width": (_config(intermediate_size=97), "tensors that do not fit"),
    "unknown kind": (_config(model_type="mamba"), "'mamba' is not one we read"),
    "no kind": (_config(model_type=["llama"]), "not one we read"),
    "text for a number": (_config(hidden_size="wide"), "config.json.*d_model"),
    "no number": (_config(num_attention_heads=0), "config.json"),
    "odd heads": (_config(num_attention_heads=5), "not a multiple"),
    "scaled rope": (_config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}), "'yarn' are not"),
    "old scaled rope": (_config(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}), "'linear' are not"),
    "rope that is text": (_config(rope_parameters="default"), "not an object"),
    "another activation": (_config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "half the biases": (_config(mlp_bias=True), "attention_bias and mlp_bias differ"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_said_plainly(case: str, tmp_path: Path) -> None:
    damage, message = BROKEN[case]
    damage(saved(tmp_path))
    with pytest.raises(UserError, match=message):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "\xff", '{"model_type": "herdbook"}', '{"model_type": "herdbook", "herdbook": {"a": 1}}']
)
def test_broken_configs(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path)


def test_no_folder_and_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no model config here"):
        load_folder(tmp_path)
    (saved(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(UserError, match="there are no weights here"):
        load_folder(tmp_path)


def test_gpt2_that_computes_otherwise_is_refused(tmp_path: Path) -> None:
    edit_json(saved(tmp_path, "gpt2") / "config.json", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx is True"):
        load_folder(tmp_path)
    edit_json(tmp_path / "config.json", scale_attn_by_inverse_layer_idx=False, activation_function="swish")
    with pytest.raises(UserError, match="activation_function 'swish' is not supported"):
        load_folder(tmp_path)


def test_absent_keys_mean_what_the_class_assumes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert read_config(tmp_path).parameters() == 124_439_808
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "rms_norm_eps": 1e-5}))
    assert read_config(tmp_path).parameters() == 6_738_415_616


def test_a_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_folder(saved(tmp_path)).embed.weight
    broken = make_decoder("llama", seed=5)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("herdbook.interop.hf.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        save_folder(broken, tmp_path, tokenizer=None)
    assert torch.equal(load_folder(tmp_path).embed.weight, before)
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))
