"""Meta's layout: the same logits as an independent forward on the raw files, and broken folders said plainly."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from herdbook.errors import UserError
from herdbook.interop.hf import load_folder, save_folder
from herdbook.interop.meta import feed_forward_rule, feed_forward_width, load_meta, read_meta_config, save_meta
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

KINDS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"n_kv_heads": 4, "rope_theta": 50_000.0, "norm_eps": 1e-6},
    "interleaved": {"rope_interleaved": True},
    "odd width": {"d_ff": 100},
}
RELEASED = [  # dim, multiple_of, multiplier, feed-forward width of LLaMA 7B to 65B and LLaMA-2 7B to 70B
    (4096, 256, None, 11008), (5120, 256, None, 13824), (6656, 256, None, 17920), (8192, 256, None, 22016),
    (4096, 256, None, 11008), (5120, 256, None, 13824), (8192, 256, None, 22016), (8192, 4096, 1.3, 28672),
]  # fmt: skip


def make_decoder(kind: str = "mha", seed: int = 0, **changes: Any) -> Decoder:
    shape = {"vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 8, "context": 32, "tied": False}
    model = Decoder(ModelConfig.model_validate({**shape, **KINDS[kind], **changes})).eval()
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():  # norms at random too, so that a swapped pair is seen
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def tokens() -> Tensor:
    return torch.randint(96, (2, 32), generator=torch.Generator().manual_seed(1))


def load(folder: Path, **more: Any) -> Decoder:
    return load_meta(folder, allow_pickle=True, **more)


def read_shards(folder: Path) -> list[dict[str, Tensor]]:
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("*.pth"))]


def edit_shard(folder: Path, rank: int = 0, **changes: Tensor | None) -> None:
    """Put tensors into a file, or take them out where None is given; `__` in a name stands for a dot."""
    file = folder / f"consolidated.{rank:02d}.pth"
    new = {**torch.load(file, weights_only=True), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    torch.save({name: tensor for name, tensor in new.items() if tensor is not None}, file)


def edit_params(folder: Path, **changes: Any) -> None:
    file = folder / "params.json"
    params = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in params.items() if value != "absent"}))


# ---- an independent forward, as many GPUs would do it together ----


def reference_logits(folder: Path, tokens_BT: Tensor, embedding_by_width: bool = True) -> Tensor:
    """LLaMA from its papers on the raw tensors, in float64: each rank has its heads and its part of the feed-forward width."""
    params = json.loads((folder / "params.json").read_text())
    ranks = [{name: weight.double() for name, weight in shard.items()} for shard in read_shards(folder)]
    width = params["dim"] // params["n_heads"]
    table = torch.cat([rank["tok_embeddings.weight"] for rank in ranks], dim=1 if embedding_by_width else 0)
    x = table[tokens_BT]
    angles = torch.outer(
        torch.arange(tokens_BT.shape[1]).double(),
        params.get("rope_theta", 10_000.0) ** -(torch.arange(width // 2).double() * 2 / width),
    )
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]  # (T, 1, E/2)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + params["norm_eps"]).sqrt() * weight

    def heads(x: Tensor, weight: Tensor) -> Tensor:
        return (x @ weight.T).unflatten(-1, (-1, width))

    def rotated(x_BTHE: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x_BTHE.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    def attend(x: Tensor, rank: dict[str, Tensor], at: str) -> Tensor:
        q, k = rotated(heads(x, rank[f"{at}wq.weight"])), rotated(heads(x, rank[f"{at}wk.weight"]))
        v = heads(x, rank[f"{at}wv.weight"])
        k, v = (part.repeat_interleave(q.shape[2] // part.shape[2], dim=2) for part in (k, v))
        scores = torch.einsum("bthe,bshe->bhts", q, k) / width**0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        shares = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("bhts,bshe->bthe", shares, v).flatten(-2) @ rank[f"{at}wo.weight"].T

    def feed_forward(x: Tensor, rank: dict[str, Tensor], at: str) -> Tensor:
        gate = x @ rank[f"{at}w1.weight"].T
        return (gate * gate.sigmoid() * (x @ rank[f"{at}w3.weight"].T)) @ rank[f"{at}w2.weight"].T

    for layer in (f"layers.{n}." for n in range(params["n_layers"])):
        normed = norm(x, ranks[0][f"{layer}attention_norm.weight"])
        x = x + sum(attend(normed, rank, f"{layer}attention.") for rank in ranks)
        normed = norm(x, ranks[0][f"{layer}ffn_norm.weight"])
        x = x + sum(feed_forward(normed, rank, f"{layer}feed_forward.") for rank in ranks)
    x = norm(x, ranks[0]["norm.weight"])
    return torch.cat([x @ rank["output.weight"].T for rank in ranks], dim=-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_parallel", [1, 2, 4])
def test_same_logits_as_the_model_and_as_the_reference(kind: str, model_parallel: int, tmp_path: Path) -> None:
    model = make_decoder(kind)
    save_meta(model, tmp_path, model_parallel=model_parallel)
    assert len(list(tmp_path.glob("consolidated.*.pth"))) == model_parallel
    again = load(tmp_path, context=32)
    assert again.cfg == model.cfg.model_copy(update={"rope_interleaved": False})
    assert not again.training
    with torch.inference_mode():
        assert (again(tokens()) - model(tokens())).abs().max() < 1e-5
        assert (again(tokens()) - reference_logits(tmp_path, tokens())).abs().max() < 1e-5
    if kind != "interleaved":
        theirs = dict(again.named_parameters())
        assert all(torch.equal(weight, theirs[name]) for name, weight in model.named_parameters())


def test_embedding_cut_by_vocabulary(tmp_path: Path) -> None:
    """LLaMA 3 cuts the table of embeddings by rows."""
    model = make_decoder("gqa")
    save_meta(model, tmp_path, model_parallel=2)
    for rank, part in enumerate(model.embed.weight.detach().chunk(2)):
        edit_shard(tmp_path, rank, tok_embeddings__weight=part.clone())
    for vocab_size in (96, -1):
        edit_params(tmp_path, vocab_size=vocab_size)
        with torch.inference_mode():
            assert torch.equal(load(tmp_path)(tokens()), model(tokens()))
            assert (reference_logits(tmp_path, tokens(), False) - model(tokens())).abs().max() < 1e-5


def test_safetensors_need_no_permission(tmp_path: Path) -> None:
    model = make_decoder("gqa")
    save_meta(model, tmp_path)
    save_file(read_shards(tmp_path)[0], tmp_path / "consolidated.safetensors")
    with torch.inference_mode():
        assert torch.equal(load_meta(tmp_path)(tokens()), model(tokens()))
    (tmp_path / "consolidated.safetensors").write_bytes((tmp_path / "consolidated.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_meta(tmp_path)


def test_what_was_loaded_opens_in_transformers_layout(tmp_path: Path) -> None:
    model = make_decoder("gqa")
    save_meta(model, tmp_path / "meta", model_parallel=2)
    save_folder(load(tmp_path / "meta", context=32), tmp_path / "hf", tokenizer=None)
    with torch.inference_mode():
        assert torch.equal(load_folder(tmp_path / "hf")(tokens()), model(tokens()))


def test_half_precision_files(tmp_path: Path) -> None:
    model = make_decoder()
    save_meta(model, tmp_path, dtype=torch.float16)
    assert {weight.dtype for weight in read_shards(tmp_path)[0].values()} == {torch.float16}
    assert torch.equal(load(tmp_path).embed.weight, model.embed.weight.half().float())
    assert load(tmp_path, dtype=torch.bfloat16).compute_dtype == torch.bfloat16


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_meta(make_decoder(), tmp_path / name, model_parallel=2)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


# ---- params.json ----


@pytest.mark.parametrize(("dim", "multiple_of", "multiplier", "width"), RELEASED)
def test_feed_forward_widths_of_the_released_models(dim: int, multiple_of: int, multiplier: float | None, width: int) -> None:
    assert feed_forward_width(dim, multiple_of, multiplier) == width
    assert feed_forward_width(dim, *feed_forward_rule(dim, width)) == width


def test_settings_of_the_released_models_are_found_again() -> None:
    assert feed_forward_rule(4096, 11008) == (256, None)
    assert feed_forward_rule(8192, 28672) == (4096, 1.3)


@given(dim=st.integers(2, 20_000), width=st.integers(1, 200_000))
def test_every_width_has_settings(dim: int, width: int) -> None:
    assert feed_forward_width(dim, *feed_forward_rule(dim, width)) == width


@given(dim=st.integers(2, 2**31))
def test_two_thirds_as_metas_code_computes_it(dim: int) -> None:
    assert feed_forward_width(dim, 1) == int(2 * (4 * dim) / 3)


def test_only_what_differs_from_the_first_llama_is_written(tmp_path: Path) -> None:
    """LLaMA's first code refuses settings that it does not know."""
    save_meta(make_decoder(), tmp_path)
    assert json.loads((tmp_path / "params.json").read_text()) == {
        "dim": 64, "multiple_of": 64, "n_heads": 8, "n_layers": 2, "norm_eps": 1e-5, "vocab_size": 96,
    }  # fmt: skip
    save_meta(make_decoder("gqa", d_ff=100), tmp_path)
    params = json.loads((tmp_path / "params.json").read_text())
    assert (params["n_kv_heads"], params["rope_theta"]) == (4, 50_000.0)
    assert feed_forward_width(64, params["multiple_of"], params["ffn_dim_multiplier"]) == 100


def test_vocabulary_from_the_embedding(tmp_path: Path) -> None:
    save_meta(make_decoder(), tmp_path, model_parallel=4)
    for absent in (-1, None, "absent"):
        edit_params(tmp_path, vocab_size=absent)
        assert load(tmp_path).cfg.vocabulary == 96


def test_context_by_what_tells_the_releases_apart(tmp_path: Path) -> None:
    save_meta(make_decoder(), tmp_path)
    edit_shard(tmp_path, rope__freqs=torch.ones(4))
    assert load(tmp_path).cfg.context == 4096
    edit_shard(tmp_path, layers__0__attention__inner_attention__rope__freqs=torch.ones(4))
    assert load(tmp_path).cfg.context == read_meta_config(tmp_path, allow_pickle=True).context == 2048
    edit_params(tmp_path, rope_theta=1e6)
    assert load(tmp_path).cfg.context == 16_384
    edit_params(tmp_path, max_seq_len=77)
    assert load(tmp_path).cfg.context == 77
    assert load(tmp_path, context=5).cfg.context == 5


def test_config_alone_needs_the_weights_only_for_what_is_open(tmp_path: Path) -> None:
    save_meta(make_decoder("gqa"), tmp_path)
    assert read_meta_config(tmp_path, context=32) == make_decoder("gqa").cfg
    with pytest.raises(UserError, match="permission"):
        read_meta_config(tmp_path)
    edit_params(tmp_path, vocab_size=-1)
    with pytest.raises(UserError, match="permission"):
        read_meta_config(tmp_path, context=32)
    assert read_meta_config(tmp_path, context=32, allow_pickle=True) == make_decoder("gqa").cfg


def test_later_releases_write_derived_sizes_down(tmp_path: Path) -> None:
    model = make_decoder(d_ff=100)
    save_meta(model, tmp_path)
    edit_params(tmp_path, hidden_dim=100, head_dim=8, multiple_of="absent", ffn_dim_multiplier="absent", max_batch_size=4)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path)(tokens()), model(tokens()))


def test_mistrals_window(tmp_path: Path) -> None:
    """Its release is in this layout, with a setting that Meta's code does not have."""
    save_meta(make_decoder(), tmp_path)
    edit_params(tmp_path, sliding_window=20)
    assert read_meta_config(tmp_path).context == 32_768  # without a look at the weights
    model = load(tmp_path)
    assert (model.cfg.context, model.cfg.window) == (32_768, 20)
    with torch.inference_mode():
        assert torch.equal(model(tokens()), make_decoder(window=20)(tokens()))
    assert load(tmp_path, context=20).cfg.window is None
    with pytest.raises(UserError, match="in the way: window 20"):
        save_meta(model, tmp_path)


PARAMS: dict[str, tuple[dict[str, Any], str]] = {
    "another width": ({"multiple_of": 512}, r"w1.weight \(192×64 instead of 512×64\)"),
    "no dim": ({"dim": "absent"}, "missing settings: dim"),
    "text": ({"dim": "wide"}, "dim is 'wide'"),
    "no window": ({"sliding_window": 0}, "sliding_window is '0'"),
    "truth": ({"n_layers": True}, "n_layers is 'True'"),
    "fraction": ({"n_layers": 2.0}, "positive whole"),
    "zero": ({"n_heads": 0}, "n_heads is '0'"),
    "list": ({"dim": [64]}, "dim is"),
    "not a number": ({"norm_eps": float("nan")}, "norm_eps is 'nan'"),
    "endless": ({"ffn_dim_multiplier": float("inf")}, "ffn_dim_multiplier is 'inf'"),
    "beyond counting": ({"dim": 10**30}, "below 2"),
    "negative vocabulary": ({"vocab_size": -2}, "vocab_size is '-2'"),
    "odd heads": ({"n_heads": 5}, "not a multiple"),
    "odd key heads": ({"n_kv_heads": 3}, "not a multiple"),
    "unknown": ({"rope_parameters": 4096}, "unknown settings.*rope_parameters"),
    "scaled rope": ({"use_scaled_rope": True}, "LLaMA 3.1"),
    "huge dim": ({"dim": 2**31 - 2, "n_heads": 1}, "parameters in all, and the weights are only"),
    "huge layers": ({"n_layers": 2**31 - 1}, "parameters in all, and the weights are only"),
    "huge width": ({"multiple_of": 2**31 - 1}, "parameters in all, and the weights are only"),
    "huge vocabulary": ({"vocab_size": 2**31 - 1}, "parameters in all, and the weights are only"),
    "many small layers": ({"dim": 2, "n_heads": 1, "multiple_of": 1, "n_layers": 1000}, "1,000 layers"),
    "more layers": ({"n_layers": 3}, "missing tensors: layers.2.attention_norm.weight"),
    "fewer layers": ({"n_layers": 1}, "unknown tensors: layers.1"),
    "other vocabulary": ({"vocab_size": 90}, r"tok_embeddings.weight \(96×64 instead of 90×64\)"),
}


@pytest.mark.parametrize("case", PARAMS)
def test_broken_settings_are_said_plainly(case: str, tmp_path: Path) -> None:
    changes, message = PARAMS[case]
    save_meta(make_decoder(), tmp_path)
    edit_params(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "\xff", "{}"])
def test_broken_params_json(content: str, tmp_path: Path) -> None:
    save_meta(make_decoder(), tmp_path)
    (tmp_path / "params.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"params\.json"):
        load(tmp_path)


_JSON: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-2, 2**33) | st.floats() | st.text(max_size=3) | st.just([])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(["dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "vocab_size",
                                                "ffn_dim_multiplier", "norm_eps", "rope_theta"]), _JSON))  # fmt: skip
def test_no_settings_make_it_fail_otherwise(changes: dict[str, Any], tmp_path: Path) -> None:
    save_meta(make_decoder(), tmp_path)
    edit_params(tmp_path, **changes)
    try:
        model = load(tmp_path)
    except UserError:
        return
    assert model.cfg.parameters() == make_decoder().cfg.parameters()


# ---- the files ----


class Bomb:
    """What a hostile pickle would run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_pickles_need_permission_and_run_nothing_even_then(tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "was-run"
    save_meta(make_decoder(), folder)
    with pytest.raises(UserError, match=r"--allow-pickle on the command line, allow_pickle=True in Python"):
        load_meta(folder)
    torch.save({**read_shards(folder)[0], "norm.weight": Bomb(mark)}, folder / "consolidated.00.pth")
    with pytest.raises(UserError, match=r"holds more than tensors \(it asks for (posix|nt).mkdir\)"):
        load(folder)
    (folder / "consolidated.00.pth").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(UserError, match=NO_TENSORS):
        load(folder)
    assert not mark.exists()


def _replace(value: Any) -> Callable[[Path], None]:
    return lambda folder: torch.save(value, folder / "consolidated.00.pth")


def _bytes(data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "consolidated.00.pth").write_bytes(data)

    return write


def _tensor(rank: int = 0, **changes: Tensor | None) -> Callable[[Path], None]:
    return lambda folder: edit_shard(folder, rank, **changes)


def _zip(files: dict[str, bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with zipfile.ZipFile(folder / "consolidated.00.pth", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)

    return write


NO_TENSORS = "not a whole file of tensors|something else than tensors"
FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing tensor": (_tensor(norm__weight=None), "missing tensors: norm.weight of file 0"),
    "missing in the second": (_tensor(1, norm__weight=None), "missing tensors: norm.weight of file 1"),
    "no embedding": (_tensor(tok_embeddings__weight=None), "missing tensors: tok_embeddings.weight of file 0"),
    "unknown tensor": (_tensor(1, extra=torch.ones(1)), "unknown tensors: extra"),
    "wrong shape": (_tensor(norm__weight=torch.ones(63)), r"norm.weight of file 0 \(63 instead of 64\)"),
    "a number": (_tensor(tok_embeddings__weight=torch.tensor(1.0)), r"tok_embeddings.weight of file 0 \(one number instead"),
    "uncut": (_tensor(output__weight=torch.ones(96, 64)), r"output.weight of file 0 \(96×64 instead of 48×64\)"),
    "whole numbers": (_tensor(norm__weight=torch.ones(64, dtype=torch.int32)), r"\(of type int32; floating point is needed\)"),
    "sparse": (_tensor(norm__weight=torch.ones(64).to_sparse()), "tensors that do not fit: norm.weight"),
    "norms that differ": (_tensor(1, norm__weight=torch.ones(64)), "should be the same in all files, and are not: norm.weight"),
    "a list": (_replace([torch.ones(1)]), "no tensors by name"),
    "no tensors": (_replace({"dim": 64}), "in this pickle is no tensor"),
    "numbers for names": (_replace({3: torch.ones(1)}), "in this pickle is no tensor"),
    "empty": (_bytes(b""), NO_TENSORS),
    "garbage": (_bytes(bytes(range(256)) * 40), NO_TENSORS),
    "first file missing": (lambda folder: (folder / "consolidated.00.pth").unlink(), r"consolidated.00.pth: a part .* missing"),
    "a zip of something else": (_zip({"a": b"b"}), NO_TENSORS),
    "a zip without a pickle": (_zip({"archive/version": b"3"}), NO_TENSORS),
    "a zip with half a pickle": (
        _zip({"archive/data.pkl": b"\x80\x02}q\x00("}),
        NO_TENSORS,
    ),
    "an empty pickle": (_zip({"archive/data.pkl": b""}), NO_TENSORS),
}


@pytest.mark.parametrize("case", FILES)
def test_broken_files_are_said_plainly(case: str, tmp_path: Path) -> None:
    damage, message = FILES[case]
    save_meta(make_decoder(), tmp_path, model_parallel=2)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_refused(share: float, tmp_path: Path) -> None:
    save_meta(make_decoder(n_layers=1), tmp_path)
    file = tmp_path / "consolidated.00.pth"
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(UserError, match=NO_TENSORS):
        load(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), in_pickle=st.booleans())
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_changed_byte_is_refused_or_changes_a_weight(place: float, byte: int, in_pickle: bool, tmp_path: Path) -> None:
    save_meta(make_decoder(n_layers=1), tmp_path)
    file = tmp_path / "consolidated.00.pth"
    data = bytearray(file.read_bytes())
    data[int(place * (3000 if in_pickle else len(data)))] = byte  # the pickle comes first
    file.write_bytes(data)
    with contextlib.suppress(UserError):
        assert load(tmp_path).cfg.parameters() == make_decoder(n_layers=1).cfg.parameters()


def test_no_folder_no_weights_and_heads_that_cannot_be_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no params\.json here"):
        load(tmp_path)
    save_meta(make_decoder(), tmp_path)
    (tmp_path / "consolidated.00.pth").rename(tmp_path / "kept")
    with pytest.raises(UserError, match="no weights here"):
        load(tmp_path)
    for rank in range(3):
        (tmp_path / f"consolidated.{rank:02d}.pth").write_bytes((tmp_path / "kept").read_bytes())
    with pytest.raises(UserError, match=r"n_heads \(8\) cannot be cut over 3 files"):
        load(tmp_path)


# ---- writing ----

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "tied": ({"tied": True}, "tied True"),
    "biases": ({"bias": True}, "attn_bias True, ff_bias True"),
    "one bias": ({"attn_bias": True}, "attn_bias True"),
    "learned": ({"positions": "learned"}, "positions learned"),
    "alibi": ({"positions": "alibi"}, "positions alibi"),
    "layernorm": ({"norm": "layernorm"}, "norm layernorm"),
    "post": ({"norm_place": "post"}, "norm_place post"),
    "parallel": ({"block": "parallel_one_norm"}, "block parallel_one_norm"),
    "gelu": ({"activation": "gelu"}, "activation gelu"),
    "part of the head": ({"rope_fraction": 0.5}, "rope_fraction 0.5"),
    "scaled": ({"rope_scaling": "linear", "rope_factor": 2.0}, "rope_scaling linear"),
    "wide heads": ({"head_dim": 16}, "head_dim 16"),
    "narrow embedding": ({"embed_dim": 32}, "embed_dim 32"),
    "norm of q": ({"qk_norm": True}, "qk_norm True"),
    "clipped": ({"clip_qkv": 6.0}, "clip_qkv 6.0"),
    "embedding norm": ({"embed_norm": True}, "embed_norm True"),
    "head bias": ({"head_bias": True}, "head_bias True"),
    "window": ({"window": 20}, "window 20"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_shapes_are_refused_with_the_fields_in_the_way(case: str, tmp_path: Path) -> None:
    changes, message = OTHERS[case]
    with pytest.raises(UserError, match=f"in the way: {message}$|in the way: {message}\n"):
        save_meta(make_decoder(**changes), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("parts", "changes", "message"),
    [(0, {}, "over 0 files"), (3, {}, r"n_heads \(8\)"), (4, {"n_kv_heads": 2}, r"n_kv_heads \(2\)"),
     (8, {"d_ff": 100}, "feed-forward width"), (2, {"vocab_size": 97}, "vocabulary")],
)  # fmt: skip
def test_cuts_that_do_not_come_out_even(parts: int, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        save_meta(make_decoder(**changes), tmp_path, model_parallel=parts)
    assert not list(tmp_path.iterdir())


def test_other_files_stay_and_old_weights_go(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("kept")
    save_meta(make_decoder(seed=1), tmp_path, model_parallel=4)
    save_file(read_shards(tmp_path)[0], tmp_path / "consolidated.safetensors")
    model = make_decoder(seed=2)
    save_meta(model, tmp_path, model_parallel=2)
    names = {"tokenizer.model", "params.json", "consolidated.00.pth", "consolidated.01.pth"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert torch.equal(load(tmp_path).embed.weight, model.embed.weight)


def test_a_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_meta(make_decoder(seed=1), tmp_path)
    before = load(tmp_path).embed.weight

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("herdbook.interop.meta.torch.save", fail)
    with pytest.raises(OSError, match="No space"):
        save_meta(make_decoder(seed=2), tmp_path)
    monkeypatch.undo()
    assert torch.equal(load(tmp_path).embed.weight, before)
    assert not list(tmp_path.glob(".*.partial"))
