"""Hugging Face folders: saved whole, loaded bit for bit and lean, broken ones said plainly. Families: `test_families`."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from herdbook.errors import UserError
from herdbook.interop.hf import load_folder, read_config, save_folder
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

LEARNED = {"positions": "learned", "norm": "layernorm", "bias": True}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tied": False, "norm_eps": 1e-6},
    "llama2-gqa": {"tied": False, "n_kv_heads": 2, "rope_theta": 50_000.0, "context": 64},
    "gpt2": {**LEARNED, "activation": "gelu_tanh"},
    "opt-350m": {**LEARNED, "activation": "relu", "position_offset": 2, "norm_place": "post", "embed_dim": 20},
    "falcon-40b": {
        "norm": "layernorm",
        "norm_bias": True,
        "activation": "gelu",
        "n_kv_heads": 2,
        "block": "parallel_two_norms",
        "attn_bias": True,
        "ff_bias": True,
    },
}
OWN: dict[str, dict[str, Any]] = {
    "rope with layernorm": {"norm": "layernorm"},
    "learned with key groups": {**LEARNED, "activation": "gelu", "n_kv_heads": 2},
    "learned with offset": {**LEARNED, "activation": "relu", "position_offset": 3},
    "swiglu with learned": {**LEARNED, "tied": False},
    "palm": {"norm": "layernorm", "n_kv_heads": 1, "block": "parallel_one_norm"},
}  # fmt: skip


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


def _many_layers(folder: Path) -> None:
    """A file large enough for the parameters, which are in 10,000 layers that take minutes to build."""
    edit_json(
        folder / "config.json", num_hidden_layers=10_000, hidden_size=2, num_attention_heads=1, num_key_value_heads=1,
        head_dim=2, intermediate_size=1,
    )  # fmt: skip
    save_file({"model.norm.weight": torch.ones(10**6)}, folder / "model.safetensors")


def _cut_shard(folder: Path) -> None:
    save_folder(make_decoder("llama"), folder, tokenizer=None, shard_bytes=20_000)
    path = sorted(folder.glob("model-*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing tensor": (_drop_tensor, "missing tensors: model.layers.1.mlp.up_proj.weight"),
    "unknown tensor": (_add_tensor, "unknown tensors: model.extra"),
    "wrong shape": (_reshape_tensor, r"model.norm.weight \(31 instead of 32\)"),
    "whole numbers": (_integer_tensor, r"model.norm.weight \(of type I32"),
    "cut off": (_cut, "not a whole safetensors file"),
    "cut off in the middle": (_cut_shard, "model-00002-of-.*not a whole safetensors file"),
    "empty": (_empty, "not a whole safetensors file"),
    "hostile header": (_long_header, "not a whole safetensors file"),
    "garbage": (_garbage, "not a whole safetensors file"),
    "pickle": (_pickle, "a pickle can run any program(.|\\n)*--allow-pickle(.|\\n)*allow_pickle=True"),
    "pickle in disguise": (_pickle_in_disguise, "not a whole safetensors file"),
    "index leads out": (_index("../part.safetensors"), "no .safetensors file of this folder"),
    "index leads to the root": (_index("/etc/passwd"), "no .safetensors file of this folder"),
    "index names a pickle": (_index("pytorch_model.bin"), "no .safetensors file of this folder"),
    "missing part": (_index("model-00002.safetensors"), "a part of the weights is missing"),
    "index without a map": (_no_map, "weight_map"),
    "more layers": (_config(num_hidden_layers=3), "missing tensors: model.layers.2.input_layernorm.weight"),
    "a trillion layers": (_config(num_hidden_layers=10**12), "1,000,000,000,000 layers .* only .* bytes"),
    "layers beyond counting": (_config(num_hidden_layers=10**400), "config.json: some number here is too large"),
    "digits beyond printing": (_config(num_hidden_layers=10**4290), "config.json: some number here is too large"),
    "context beyond counting": (_config(max_position_embeddings=10**400), "config.json: some number here is too large"),
    "a trillion wide": (_config(hidden_size=10**12, intermediate_size=10**12), "config.json: some number"),
    "a trillion words": (_config(vocab_size=10**12), "only .* bytes"),
    "many layers of nothing": (_many_layers, "10,000 layers .* only 1 tensors"),
    "another width": (_config(intermediate_size=97), "tensors that do not fit"),
    "unknown kind": (_config(model_type="mamba"), "'mamba' is not one we read"),
    "no kind": (_config(model_type=["llama"]), "not one we read"),
    "text for a number": (_config(hidden_size="wide"), "config.json.*hidden_size"),
    "no number": (_config(num_attention_heads=0), "config.json"),
    "odd heads": (_config(num_attention_heads=5), "not a multiple"),
    "rope that is text": (_config(rope_parameters="default"), "not an object"),
    "another activation": (_config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "biases that are not there": (_config(mlp_bias=True), "missing tensors: .*mlp.gate_proj.bias"),
    "a head that is not there": (_config(tie_word_embeddings=True, vocab_size=97), "tensors that do not fit"),
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


# ---- pickles ----


def pickled(folder: Path, *, split: bool = False, old: bool = False) -> Decoder:
    """A folder with `pytorch_model.bin` instead of safetensors, whole or split, in the form of today or from before 1.6."""
    model = make_decoder("falcon-40b")
    save_folder(model, folder, tokenizer=None)
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = [list(stored)[::2], list(stored)[1::2]] if split else [list(stored)]
    names = [f"pytorch_model-{n + 1:05d}-of-{len(parts):05d}.bin" if split else "pytorch_model.bin" for n in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        torch.save({key: stored[key] for key in part}, folder / name, _use_new_zipfile_serialization=not old)
    if split:
        places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return model


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_pickles_are_read_where_that_is_asked_for(split: bool, old: bool, tmp_path: Path) -> None:
    model = pickled(tmp_path, split=split, old=old)
    with pytest.raises(UserError, match=r"--allow-pickle on the command line, allow_pickle=True in Python"):
        load_folder(tmp_path)
    again = load_folder(tmp_path, allow_pickle=True)
    theirs = dict(again.named_parameters())
    assert all(torch.equal(weight, theirs[name]) for name, weight in model.named_parameters())
    half = load_folder(tmp_path, allow_pickle=True, dtype=torch.bfloat16)
    assert torch.equal(half.embed.weight, model.embed.weight.bfloat16())
    save_folder(make_decoder("falcon-40b", seed=9), tmp_path, tokenizer=None)
    assert not torch.equal(load_folder(tmp_path, allow_pickle=True).embed.weight, model.embed.weight)  # safetensors go before


class Hostile:
    """A pickle of this makes a folder when it is opened."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("old", [False, True])
def test_a_hostile_pickle_does_nothing(old: bool, tmp_path: Path) -> None:
    pickled(tmp_path)
    victim = tmp_path / "victim"
    content = {**torch.load(tmp_path / "pytorch_model.bin"), "evil": Hostile(victim)}
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    victim.rmdir()  # so it is hostile
    with pytest.raises(UserError, match=r"pytorch_model\.bin: .* more than tensors \(it asks for \S+\.mkdir\)"):
        load_folder(tmp_path, allow_pickle=True)
    assert not victim.exists()


def _edit_pickle(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        torch.save(change(torch.load(folder / "pytorch_model.bin")), folder / "pytorch_model.bin")

    return write


def _cut_pickle(folder: Path) -> None:
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-200])


def _garbage_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(bytes(range(256)) * 500)


def _index_leads_out(folder: Path) -> None:
    (folder / "pytorch_model.bin").rename(folder.parent / "outside.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.bin"}}))


NORM = "transformer.ln_f.weight"
BROKEN_PICKLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut off": (_cut_pickle, "not a whole file of tensors"),
    "garbage": (_garbage_pickle, "something else than tensors, so it is not read"),
    "a list": (_edit_pickle(lambda stored: list(stored.values())), "no tensors by name"),
    "nested": (_edit_pickle(lambda stored: {"state_dict": stored}), "'state_dict' in this pickle is no tensor"),
    "numbered": (_edit_pickle(lambda stored: dict(enumerate(stored.values()))), "'0' in this pickle is no tensor"),
    "unknown": (_edit_pickle(lambda stored: {**stored, "extra": torch.ones(1)}), "unknown tensors: extra"),
    "missing": (_edit_pickle(lambda stored: {k: v for k, v in stored.items() if k != NORM}), f"missing tensors: {NORM}"),
    "whole numbers": (_edit_pickle(lambda stored: {**stored, NORM: torch.ones(32, dtype=torch.int64)}), "of type torch.int64"),
    "sparse": (_edit_pickle(lambda stored: {**stored, NORM: torch.ones(32).to_sparse()}), "torch.sparse_coo"),
    "stretched": (_edit_pickle(lambda stored: {**stored, NORM: torch.ones(1).expand(10**12)}), "1000000000000 instead of 32"),
    "index leads out": (_index_leads_out, "no .bin file of this folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_PICKLES)
def test_broken_pickles_are_said_plainly(case: str, tmp_path: Path) -> None:
    pickled(tmp_path)
    damage, message = BROKEN_PICKLES[case]
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_folder(tmp_path, allow_pickle=True)


# ---- memory ----

MEASURE = """
import json, sys
from pathlib import Path

import torch

from herdbook.interop.hf import load_folder

def memory(line: str) -> int:
    return int(Path("/proc/self/status").read_text().split(line)[1].split()[0]) * 1024

load_folder(Path(sys.argv[1]))  # once, so that imports and pools are not counted
grown = {}
for case in sys.argv[3:]:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS:")
    model = load_folder(Path(sys.argv[2]), dtype=getattr(torch, case.split()[0]), allow_pickle=True)
    grown[case] = memory("VmHWM:") - before
    del model
print(json.dumps(grown))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_loading_takes_the_model_and_one_shard(kind: str, tmp_path: Path) -> None:
    big, small = tmp_path / "big", saved(tmp_path / "small")
    shape = {"d_model": 1024, "n_layers": 4, "vocab_size": 1024, "n_heads": 8}
    cfg = ModelConfig.model_validate({"n_kv_heads": 8, "tied": False, **shape})
    with torch.device("meta"):
        model = Decoder(cfg)
    save_folder(model.to_empty(device="cpu"), big, tokenizer=None, shard_bytes=40_000_000)
    if kind == "bin":
        for path in big.glob("model-*.safetensors"):
            torch.save(load_file(path), path.with_name(f"pytorch_{path.stem}.bin"))
            path.unlink()
        index = (big / "model.safetensors.index.json").rename(big / "pytorch_model.bin.index.json")
        index.write_text(index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin"))
    size, shard = 4 * cfg.parameters(), max(path.stat().st_size for path in big.glob("*model-*"))
    assert size > 190_000_000
    command = [sys.executable, "-c", MEASURE, str(small), str(big), "float32", "bfloat16"]
    grown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{kind}: model {size:,}, largest shard {shard:,}, peak above the start {grown}")
    assert grown["float32"] < size + shard + 60_000_000
    assert grown["bfloat16"] < size / 2 + shard + 60_000_000
