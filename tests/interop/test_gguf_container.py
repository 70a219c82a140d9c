"""The GGUF container: files as the `gguf` package reads and writes them, and everything that can be wrong with one."""

from __future__ import annotations

import os
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.interop.gguf import container
from herdbook.interop.gguf.container import (
    MAX_VALUES,
    PLAIN,
    TYPES,
    WRITABLE,
    GGUFFile,
    TensorSource,
    block_size,
    open_gguf,
    stored_type,
    write_gguf,
)

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10_000.0,
    "general.quantized": True,
    "tokenizer.ggml.tokens": ["<s>", "é", "", "😀" * 50],
    "tokenizer.ggml.scores": [0.0, -1.5, 2.25],
    "tokenizer.ggml.token_type": [3, 1, -1],
    "switches": [True, False],
    "none": [],
}
PACKED = [name for name in TYPES if name not in PLAIN]


def source(name: str, values: torch.Tensor, kind: str = "F32") -> TensorSource:
    return TensorSource(name, tuple(values.shape), kind, lambda: values)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def row(name: str = "w", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    """A row of the table of tensors; `shape` in the file's order."""
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def raw_file(path: Path, *, keys: tuple[bytes, ...] = (), rows: tuple[bytes, ...] = (), data: bytes = b"", **head: Any) -> Path:
    """A GGUF file written by hand, so that it can say what no writer would."""
    counts = struct.pack("<QQ", head.get("tensors", len(rows)), head.get("count", len(keys)))
    content = head.get("magic", b"GGUF") + struct.pack("<I", head.get("version", 3)) + counts + b"".join((*keys, *rows))
    path.write_bytes(content + bytes(-len(content) % 32) + data)
    return path


def read_all(path: Path) -> GGUFFile:
    file = open_gguf(path)
    for name, info in file.tensors.items():
        assert tuple(file.tensor(name).shape) == info.shape
    return file


# ---- files in order ----


def test_metadata_and_tensors_come_back(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": noise(7, 5), "a": noise(3, 2, 4, 2), "scalar": torch.tensor(2.5), "b": noise(1)}
    write_gguf(tmp_path / "m.gguf", METADATA, [source(name, values) for name, values in tensors.items()])
    file = open_gguf(tmp_path / "m.gguf")
    assert file.metadata == METADATA
    assert (file.version, list(file.tensors)) == (3, list(tensors))
    for name, values in tensors.items():
        assert torch.equal(file.tensor(name), values)
        assert file.tensors[name].offset % 32 == 0


KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda k: k != "general.alignment"
)
TEXTS, FLOATS = st.text(max_size=30), st.floats(width=32, allow_nan=False)
INTEGERS = st.integers(-(2**63), 2**64 - 1)
LISTS = st.one_of(
    *(st.lists(entry, max_size=9) for entry in (TEXTS, FLOATS, st.booleans(), st.integers(-(2**63), 2**63 - 1)))
)  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.dictionaries(KEYS, st.one_of(TEXTS, FLOATS, st.booleans(), INTEGERS, LISTS), max_size=6))
def test_any_metadata_comes_back(metadata: dict[str, Any], tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata, [])
    assert open_gguf(tmp_path / "m.gguf").metadata == metadata


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_types_need_no_package(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    values = noise(3, 7)
    write_gguf(tmp_path / "m.gguf", {}, [source("w", values, kind)])
    found = open_gguf(tmp_path / "m.gguf").tensor("w")
    assert found.dtype == PLAIN[kind]
    assert torch.equal(found, values.to(PLAIN[kind]))


def test_packed_types_say_which_package_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = raw_file(tmp_path / "m.gguf", rows=(row(kind=8),), data=bytes(34))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'herdbook\[gguf\]'"):
        open_gguf(path).tensor("w")
    with pytest.raises(UserError, match="herdbook"):
        write_gguf(tmp_path / "n.gguf", {}, [source("w", noise(32), "Q4_0")])
    assert not (tmp_path / "n.gguf").exists()


@pytest.mark.parametrize("kind", WRITABLE)
def test_the_package_reads_what_we_write(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf, quants = pytest.importorskip("gguf"), pytest.importorskip("gguf.quants")
    monkeypatch.setattr(container, "CHUNK", 256)
    weights = {"one": noise(40, 96), "two": noise(3, 32, seed=1) * 1e-3}
    write_gguf(tmp_path / "m.gguf", METADATA, [source(name, values, kind) for name, values in weights.items()])
    theirs = gguf.GGUFReader(tmp_path / "m.gguf")
    assert theirs.get_field("general.architecture").contents() == "llama"
    ours = open_gguf(tmp_path / "m.gguf")
    for tensor in theirs.tensors:
        packed = quants.quantize(weights[tensor.name].numpy(), gguf.GGMLQuantizationType[kind])
        assert np.array_equal(np.asarray(tensor.data).view(np.uint8), packed.view(np.uint8))
        unpacked = quants.dequantize(packed, gguf.GGMLQuantizationType[kind])
        assert torch.equal(ours.tensor(tensor.name).float(), torch.from_numpy(unpacked))


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    writer.add_custom_alignment(64)
    writer.add_token_list(["a", "b"])
    writer.add_float64("precise", 0.1)
    writer.add_int16("small", -3)
    weights = noise(5, 4).numpy()
    writer.add_tensor("w", weights)
    writer.add_tensor("v", weights[:1].astype(np.float16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    file = open_gguf(tmp_path / "m.gguf")
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
    assert (file.metadata["precise"], file.metadata["small"]) == (0.1, -3)
    assert np.array_equal(file.tensor("w").numpy(), weights)
    assert file.tensor("v").dtype == torch.float16


@pytest.mark.parametrize("kind", PACKED)
def test_every_packed_type_is_unpacked_as_the_package_does(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf, quants = pytest.importorskip("gguf"), pytest.importorskip("gguf.quants")
    theirs, (code, block, nbytes) = gguf.GGMLQuantizationType[kind], TYPES[kind]
    assert (theirs.value, gguf.GGML_QUANT_SIZES[theirs]) == (code, (block, nbytes))
    monkeypatch.setattr(container, "CHUNK", 1024)
    data = np.random.default_rng(0).integers(0, 256, 12 * nbytes, np.uint8)
    path = raw_file(tmp_path / "m.gguf", rows=(row(shape=(3 * block, 4), kind=code),), data=data.tobytes())
    with np.errstate(all="ignore"):
        wanted = quants.dequantize(data.reshape(4, -1), theirs)
    found = open_gguf(path).tensor("w")
    assert found.shape == (4, 3 * block)
    assert np.array_equal(found.numpy(), wanted, equal_nan=True)


def test_numpy_values_keep_their_type_and_versions_2_and_3_are_read(tmp_path: Path) -> None:
    metadata = {"bytes": np.arange(5, dtype=np.uint8), "wide": np.float64(0.1), "big": np.uint64(7)}
    write_gguf(tmp_path / "m.gguf", metadata, [])
    content = (tmp_path / "m.gguf").read_bytes()
    for name, kind, value in (("bytes", 9, struct.pack("<IQ5B", 0, 5, *range(5))), ("wide", 12, struct.pack("<d", 0.1))):
        assert key(name, kind, value) in content
    assert open_gguf(tmp_path / "m.gguf").metadata == {"bytes": [0, 1, 2, 3, 4], "wide": 0.1, "big": 7}
    assert open_gguf(raw_file(tmp_path / "2.gguf", keys=(key("k", 5, struct.pack("<i", -2)),), version=2)).metadata == {"k": -2}


def test_rows_that_do_not_divide_are_stored_as_f16(tmp_path: Path) -> None:
    assert (block_size("Q8_0"), block_size("Q6_K"), block_size("F16")) == (32, 256, 1)
    assert [stored_type("Q8_0", shape) for shape in ((4, 64), (64, 33), (), (31,))] == ["Q8_0", "F16", "F16", "F16"]
    assert stored_type("F32", (3, 5)) == "F32"
    with pytest.raises(UserError, match="no GGUF tensor type 'Q9_9'"):
        block_size("Q9_9")
    write_gguf(tmp_path / "m.gguf", {}, [source("w", noise(2, 33), "Q4_0")])
    assert open_gguf(tmp_path / "m.gguf").tensors["w"].type == "F16"


# ---- what cannot be written ----


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "IQ2_XS"])
def test_types_that_can_only_be_read(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one of F32"):
        write_gguf(tmp_path / "m.gguf", {}, [source("w", noise(256), kind)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_values_that_do_not_fit_are_said(kind: str, value: float, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    weights = noise(2, 32)
    weights[1, 3] = value
    with pytest.raises(UserError, match=f"'w' has values that {kind} cannot hold"):
        write_gguf(tmp_path / "m.gguf", {}, [source("w", weights, kind)])
    write_gguf(tmp_path / "m.gguf", {}, [source("w", weights, "F32")])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    def fail() -> torch.Tensor:
        raise OSError(28, "No space left on device")

    write_gguf(tmp_path / "m.gguf", {"k": 1}, [])
    with pytest.raises(OSError, match="No space"):
        write_gguf(tmp_path / "m.gguf", {"k": 2}, [source("a", noise(9)), TensorSource("b", (2,), "F32", fail)])
    assert open_gguf(tmp_path / "m.gguf").metadata == {"k": 1}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("value", [None, {}, object(), [1, "a"], [[1], [2]], 2**65, b"x"])
def test_metadata_without_a_type(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GGUF has no type for the value of 'k'"):
        write_gguf(tmp_path / "m.gguf", {"k": value}, [])


def test_tensors_without_a_place(tmp_path: Path) -> None:
    for sources, message in (
        ([source("w", noise(2)), source("w", noise(2))], "same name"),
        ([source("w" * 64, noise(2))], "no place"),
        ([source("w", noise(1, 1, 1, 1, 1))], "no place"),
        ([source("w", noise(0))], "no place"),
        ([TensorSource("w", (3,), "F32", lambda: noise(2))], "announced"),
    ):
        with pytest.raises(ValueError, match=message):
            write_gguf(tmp_path / "m.gguf", {}, sources)


# ---- what cannot be read ----

HUGE = 2**60
ONE = struct.pack("<I", 1)
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "magic": ({"magic": b"GGML"}, "does not begin with GGUF"),
    "version 1": ({"version": 1}, "its version is 1"),
    "version 9": ({"version": 9}, "its version is 9"),
    "big-endian": ({"version": 3 << 24}, "big-endian"),
    "keys without end": ({"count": HUGE}, "claims 1152921504606846976 keys"),
    "tensors without end": ({"tensors": HUGE}, "claims 1152921504606846976 tensors"),
    "one key too many": ({"count": 2, "keys": (key("k", 4, ONE),)}, "key 1 has no name"),
    "long key": ({"keys": (struct.pack("<Q", HUGE),), "count": 1}, "claims|impossible length"),
    "long string": ({"keys": (key("k", 8, struct.pack("<Q", HUGE)),)}, "'k' has an impossible length"),
    "long array": ({"keys": (key("k", 9, struct.pack("<IQ", 5, HUGE)),)}, "values in 'k'"),
    "long array of strings": ({"keys": (key("k", 9, struct.pack("<IQ", 8, 1000)),)}, "1000 values in 'k'"),
    "array cut off": ({"keys": (key("k", 9, struct.pack("<IQ", 12, 10) + bytes(60)),)}, "cut off, or damaged, at 'k'"),
    "array of arrays": ({"keys": (key("k", 9, struct.pack("<IQIQ", 9, 1, 9, 1)),)}, "'k' is an array of arrays"),
    "unknown type": ({"keys": (key("k", 13, bytes(8)),)}, "'k' is of type 13"),
    "unknown type in array": ({"keys": (key("k", 9, struct.pack("<IQ", 99, 1) + bytes(8)),)}, "'k' is of type 99"),
    "bool": ({"keys": (key("k", 7, b"\2"),)}, "'k' should be true or false"),
    "key twice": ({"keys": (key("k", 4, ONE), key("k", 4, ONE))}, "'k' is there twice"),
    "key not utf-8": ({"keys": (struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<I", 4) + ONE,)}, "key 0 is not UTF-8"),
    "value not utf-8": ({"keys": (key("k", 8, struct.pack("<Q", 1) + b"\xff"),)}, "'k' is not UTF-8"),
    "tensor twice": ({"rows": (row(), row(offset=128)), "data": bytes(256)}, "'w' is there twice"),
    "five dimensions": ({"rows": (row(shape=(1,) * 5),), "data": bytes(64)}, "5 dimensions"),
    "no values": ({"rows": (row(shape=(4, 0)),), "data": bytes(64)}, r"shape \(0, 4\)"),
    "too many values": ({"rows": (row(shape=(2**40, 2**40)),), "data": bytes(64)}, "'w' ends at byte"),
    "all dimensions huge": ({"rows": (row(shape=(2**63,) * 4),), "data": bytes(64)}, "'w' ends at byte"),
    "unknown tensor type": ({"rows": (row(kind=4),), "data": bytes(128)}, "'w' is of type 4"),
    "half a block": ({"rows": (row(shape=(48,), kind=8),), "data": bytes(128)}, "which the type Q8_0 cannot have"),
    "outside": ({"rows": (row(),), "data": bytes(127)}, "and the file at"),
    "far outside": ({"rows": (row(offset=2**64 - 32),), "data": bytes(128)}, "ends at byte"),
    "unaligned": ({"rows": (row(offset=4),), "data": bytes(256)}, "offset 4, which is not a multiple of 32"),
    "overlapping": ({"rows": (row("a"), row("b", offset=64)), "data": bytes(256)}, "'a' and 'b' overlap"),
    "alignment 0": ({"keys": (key("general.alignment", 4, bytes(4)),)}, "general.alignment is 0"),
    "alignment 24": ({"keys": (key("general.alignment", 4, struct.pack("<I", 24)),)}, "general.alignment is 24"),
    "alignment 2**31": ({"keys": (key("general.alignment", 4, struct.pack("<I", 2**31)),)}, "general.alignment is 2147483648"),
    "alignment of text": ({"keys": (key("general.alignment", 8, string("32")),)}, "general.alignment is '32'"),
    "alignment of truth": ({"keys": (key("general.alignment", 7, b"\1"),)}, "general.alignment is True"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_one_clear_error(case: str, tmp_path: Path) -> None:
    parts, message = MALFORMED[case]
    path = raw_file(tmp_path / "m.gguf", **parts)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as error:
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)


def test_more_values_than_any_model_has(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "m.gguf", keys=(key("k", 9, struct.pack("<IQ", 0, MAX_VALUES + 1)),))
    os.truncate(path, 2 * MAX_VALUES)  # zeros that take no room on the disk
    with pytest.raises(UserError, match="values in 'k'"):
        open_gguf(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(19)])
def test_too_short_to_be_one(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UserError, match="too short"):
        open_gguf(tmp_path / "m.gguf")


def test_no_file_and_no_tensor(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        open_gguf(tmp_path / "m.gguf")
    with pytest.raises(UserError, match="a folder, not a file"):
        open_gguf(tmp_path)
    with pytest.raises(UserError, match="no tensor 'v'"):
        open_gguf(raw_file(tmp_path / "m.gguf", rows=(row(),), data=bytes(128))).tensor("v")


@pytest.mark.parametrize(
    "change", [lambda p: p.write_bytes(p.read_bytes()[:-100]), lambda p: p.write_bytes(p.read_bytes() + b"x")]
)
def test_a_file_that_changes_in_between(change: Callable[[Path], Any], tmp_path: Path) -> None:
    path = raw_file(tmp_path / "m.gguf", rows=(row(),), data=bytes(128))
    file = open_gguf(path)
    change(path)
    with pytest.raises(UserError, match="changed while it was being read"):
        file.tensor("w")


# ---- damage at random ----


def small_file(path: Path) -> bytes:
    """A file with every kind of value and a few tensors."""
    write_gguf(path, METADATA, [source("a", noise(4, 8)), source("b", noise(6), "F16"), source("c", noise(2, 3), "BF16")])
    return path.read_bytes()


def opens_or_says_why(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        read_all(path)
    except UserError as error:
        assert str(path) in str(error)
        return False
    return True


def test_cut_off_anywhere(tmp_path: Path) -> None:
    content = small_file(tmp_path / "m.gguf")
    end = max(info.offset + info.nbytes for info in open_gguf(tmp_path / "m.gguf").tensors.values())
    for length in range(len(content)):
        assert opens_or_says_why(tmp_path / "cut.gguf", content[:length]) == (length >= end)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_bytes_changed_anywhere(flips: list[tuple[float, int]], tmp_path: Path) -> None:
    content = bytearray(small_file(tmp_path / "m.gguf"))
    for place, value in flips:
        content[int(place * (len(content) - 1))] = value
    opens_or_says_why(tmp_path / "flipped.gguf", bytes(content))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rest=st.binary(max_size=200))
def test_anything_behind_a_good_beginning(rest: bytes, tmp_path: Path) -> None:
    opens_or_says_why(tmp_path / "m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + rest)
