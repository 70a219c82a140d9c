"""llama2.c's files: the same logits both ways, files written by hand, and broken headers said plainly."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.interop.llama2c import load_llama2c, read_llama2c_config, save_llama2c
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

KINDS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tied": False},
    "gqa": {"n_kv_heads": 2, "tied": False},
    "mqa": {"n_kv_heads": 1},
    "interleaved": {"rope_interleaved": True, "d_ff": 96},
}
SIZES_AT = {0: 0, 1: 8, 2: 8}


def make_decoder(kind: str = "tied", seed: int = 0, **changes: Any) -> Decoder:
    shape = {"vocab_size": 96, "d_model": 32, "n_layers": 2, "n_heads": 4, "context": 24, **KINDS[kind], **changes}
    model = Decoder(ModelConfig.model_validate(shape)).eval()
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():  # norms at random too, so that a swapped pair is seen
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(1))


def saved(tmp_path: Path, kind: str = "tied", version: int = 0, **changes: Any) -> Path:
    save_llama2c(make_decoder(kind, **changes), tmp_path / "model.bin", version=version)
    return tmp_path / "model.bin"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [0, 1])
def test_what_is_saved_loads_with_the_same_logits(kind: str, version: int, tmp_path: Path) -> None:
    model, file = make_decoder(kind), saved(tmp_path, kind, version)
    again = load_llama2c(file)
    assert again.cfg == read_llama2c_config(file) == model.cfg.model_copy(update={"rope_interleaved": False})
    assert not again.training
    with torch.inference_mode():
        assert (again(tokens()) - model(tokens())).abs().max() < 1e-5
    if kind != "interleaved":
        theirs = dict(again.named_parameters())
        assert all(torch.equal(weight, theirs[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_size", [64, 8, 1])
def test_int8_keeps_every_weight_within_half_a_step(kind: str, group_size: int, tmp_path: Path) -> None:
    model = make_decoder(kind, rope_interleaved=False)  # so that the rows come back in the same order
    save_llama2c(model, tmp_path / "model.bin", version=2, group_size=group_size)
    again = dict(load_llama2c(tmp_path / "model.bin").named_parameters())
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert torch.equal(weight, again[name])
        else:  # a scale is at most the largest value over 127
            assert (weight - again[name]).abs().max() <= weight.abs().max() / 254 * 1.001
    with torch.inference_mode():
        assert (load_llama2c(tmp_path / "model.bin")(tokens()) - model(tokens())).abs().max() < 0.1


def test_a_group_of_zeros(tmp_path: Path) -> None:
    model = make_decoder()
    with torch.no_grad():
        model.embed.weight[3] = 0
    save_llama2c(model, tmp_path / "model.bin", version=2)
    assert torch.equal(load_llama2c(tmp_path / "model.bin").embed.weight[3], torch.zeros(32))


def by_hand(model: Decoder, version: int) -> bytes:
    """A file as llama2.c's description has it, from a decoder in interleaved order, value by value."""
    cfg, weights = model.cfg, model.state_dict()
    sizes = [cfg.d_model, cfg.ff_width, cfg.n_layers, cfg.n_heads, cfg.kv_heads, cfg.vocabulary, cfg.context]

    def of_layers(name: str) -> list[str]:
        return [f"blocks.{n}.{name}.weight" for n in range(cfg.n_layers)]

    attention = [name for part in "qkvo" for name in of_layers(f"attn.{part}")]
    feed_forward = [name for part in ("gate", "down", "up") for name in of_layers(f"ff.{part}")]
    end = [] if cfg.tied else ["unembed.weight"]
    if version == 0:
        sizes[5] *= 1 if cfg.tied else -1
        order = ["embed.weight", *of_layers("attn_norm"), *attention, *of_layers("ff_norm"), *feed_forward, "norm.weight"]
        data = b"".join(weights[name].numpy().tobytes() for name in order)
        tables = bytes(2 * cfg.context * cfg.head_width // 2 * 4)
        return struct.pack("7i", *sizes) + data + tables + b"".join(weights[name].numpy().tobytes() for name in end)
    norms = [*of_layers("attn_norm"), *of_layers("ff_norm"), "norm.weight"]
    data = struct.pack("Ii7iB", 0x616B3432, version, *sizes, cfg.tied) + (struct.pack("<i", 16) if version == 2 else b"")
    data = data.ljust(256, b"\0") + b"".join(weights[name].numpy().tobytes() for name in norms)
    for name in ["embed.weight", *attention, *feed_forward, *end]:
        if version == 1:
            data += weights[name].numpy().tobytes()
            continue
        groups = weights[name].numpy().reshape(-1, 16)
        scales = (np.abs(groups).max(1) / 127).astype("<f4")
        data += np.round(groups / scales[:, None]).astype("i1").tobytes() + scales.tobytes()
    return data


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"n_kv_heads": 2}])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_files_written_by_hand(changes: dict[str, Any], version: int, tmp_path: Path) -> None:
    model = make_decoder("interleaved", **changes)
    (tmp_path / "theirs.bin").write_bytes(by_hand(model, version))
    loaded = load_llama2c(tmp_path / "theirs.bin")
    with torch.inference_mode():
        assert (loaded(tokens()) - model(tokens())).abs().max() < (0.1 if version == 2 else 1e-5)
    save_llama2c(model, tmp_path / "ours.bin", version=version, group_size=16)
    ours, theirs = (tmp_path / "ours.bin").read_bytes(), (tmp_path / "theirs.bin").read_bytes()
    assert len(ours) == len(theirs)
    assert version == 0 or ours == theirs


def test_the_rotary_tables_are_those_of_the_first_run_c(tmp_path: Path) -> None:
    file = saved(tmp_path)
    tables = np.frombuffer(file.read_bytes()[-2 * 24 * 4 * 4 :], "<f4").reshape(2, 24, 4)  # 24 positions, heads of 8
    angles = np.arange(24)[:, None] / 10_000 ** (np.arange(4) * 2 / 8)
    assert np.allclose(tables, [np.cos(angles), np.sin(angles)], atol=1e-6)


def test_what_the_file_does_not_say_can_be_said(tmp_path: Path) -> None:
    file = saved(tmp_path)
    assert (load_llama2c(file).cfg.rope_theta, load_llama2c(file).cfg.norm_eps) == (10_000.0, 1e-5)
    cfg = load_llama2c(file, rope_theta=1e6, norm_eps=1e-6).cfg
    assert (cfg.rope_theta, cfg.norm_eps) == (1e6, 1e-6)


def test_bfloat16(tmp_path: Path) -> None:
    half = load_llama2c(saved(tmp_path), dtype=torch.bfloat16)
    assert half.compute_dtype == half.embed.weight.dtype == torch.bfloat16
    assert half(tokens()).dtype == torch.float32


# ---- headers that are broken ----

SIZES = ("dim", "hidden", "layers", "heads", "kv_heads", "vocabulary", "context")


def set_size(file: Path, name: str, value: int, version: int = 0) -> None:
    data = bytearray(file.read_bytes())
    struct.pack_into("<i", data, SIZES_AT[version] + 4 * SIZES.index(name), value)
    file.write_bytes(data)


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1, 7])
def test_wrong_sizes(name: str, value: int, version: int, tmp_path: Path) -> None:
    file = saved(tmp_path, version=version)
    set_size(file, name, value, version)
    if version and name == "context" and value > 0:  # without rotary tables the context has no bytes in the file
        assert load_llama2c(file).cfg.context == value
        return
    with pytest.raises(UserError, match=r"no llama2.c model|the header describes|groups of"):
        load_llama2c(file)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    version=st.sampled_from([0, 1, 2]),
    sizes=st.lists(st.integers(-3, 100) | st.integers(-(2**31), 2**31 - 1), min_size=7, max_size=7),
    group=st.integers(-2, 64),
)
def test_no_header_makes_it_fail_otherwise(version: int, sizes: list[int], group: int, tmp_path: Path) -> None:
    file = saved(tmp_path, version=version)
    for name, value in zip(SIZES, sizes, strict=True):
        set_size(file, name, value, version)
    if version == 2:
        data = bytearray(file.read_bytes())
        struct.pack_into("<i", data, 37, group)
        file.write_bytes(data)
    with pytest.raises(UserError):
        load_llama2c(file)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(version=st.sampled_from([0, 1, 2]), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_refused(version: int, share: float, tmp_path: Path) -> None:
    file = saved(tmp_path, version=version)
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(UserError, match=r"the header describes|too few|with a header of"):
        load_llama2c(file)


def test_a_byte_too_many_and_another_version(tmp_path: Path) -> None:
    file = saved(tmp_path)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(UserError, match="the header describes a file of"):
        load_llama2c(file)
    file.write_bytes(struct.pack("<Ii", 0x616B3432, 3).ljust(300, b"\0"))
    with pytest.raises(UserError, match="of version 3"):
        load_llama2c(file)
    with pytest.raises(UserError, match="no such file"):
        load_llama2c(tmp_path / "nowhere.bin")
    with pytest.raises(UserError, match="folder, not a file"):
        load_llama2c(tmp_path)


# ---- writing ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"norm_eps": 1e-6}, "norm_eps 1e-06"), ({"rope_theta": 5e4}, "rope_theta 50000.0"), ({"bias": True}, "attn_bias True"),
     ({"norm": "layernorm"}, "norm layernorm"), ({"head_dim": 16}, "head_dim 16"), ({"positions": "alibi"}, "positions alibi"),
     ({"window": 9}, "window 9")],
)  # fmt: skip
def test_other_shapes_are_refused_with_the_fields_in_the_way(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"llama2.c holds only models shaped like LLaMA; in the way: .*{message}"):
        save_llama2c(make_decoder(**changes), tmp_path / "model.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("version", "group_size"), [(3, 64), (-1, 64), (2, 0)])
def test_unknown_versions(version: int, group_size: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no version"):
        save_llama2c(make_decoder(), tmp_path / "model.bin", version=version, group_size=group_size)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path)
    before = file.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("herdbook.interop.llama2c._write", fail)
    with pytest.raises(OSError, match="No space"):
        save_llama2c(make_decoder(seed=1), file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]
