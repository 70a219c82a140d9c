"""One door for every layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from herdbook.errors import UserError
from herdbook.interop.doors import LAYOUTS, layout_for, layout_of, load_decoder, save_decoder, type_of

from .shapes import LLAMA, ids, make_decoder

NAMES = {"hf": "folder", "gguf": "m.gguf", "meta": "meta", "llama2c": "m.bin"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_logits_back(layout: str, tmp_path: Path) -> None:
    model, tokens, out = make_decoder(LLAMA), ids(2, 20), tmp_path / NAMES[layout]
    save_decoder(model, out, layout)  # type: ignore[arg-type]
    assert layout_of(out) == layout
    torch.testing.assert_close(load_decoder(out, allow_pickle=True)(tokens), model(tokens), atol=1e-5, rtol=0)


def test_the_name_says_the_layout() -> None:
    assert [layout_for(Path(name)) for name in ("a.gguf", "a.bin", "a", "a.v2")] == ["gguf", "llama2c", "hf", "hf"]


@pytest.mark.parametrize(
    ("layout", "kind", "dtype"),
    [
        ("hf", "BF16", torch.bfloat16),
        ("hf", "F32", torch.float32),
        ("gguf", "F16", torch.float16),
        ("gguf", "Q8_0", torch.float32),
    ],
)
def test_weights_are_read_in_the_type_they_have(layout: str, kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_decoder(make_decoder(LLAMA), tmp_path / NAMES[layout], layout, kind=kind)  # type: ignore[arg-type]
    assert type_of(tmp_path / NAMES[layout]) == dtype


def test_meta_files_are_pickles_and_need_a_word(tmp_path: Path) -> None:
    save_decoder(make_decoder(LLAMA), tmp_path / "meta", "meta")
    with pytest.raises(UserError, match="allow-pickle"):
        load_decoder(tmp_path / "meta")


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UserError, match="no model that we read"):
        load_decoder(tmp_path / "x.txt")
    with pytest.raises(UserError, match="no such model"):
        load_decoder(tmp_path / "absent")
    (tmp_path / "part.bin").write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(UserError, match="name its folder"):
        load_decoder(tmp_path / "part.bin", allow_pickle=True)
    with pytest.raises(UserError, match="Q8_0 is a type of GGUF files only"):
        save_decoder(make_decoder(LLAMA), tmp_path / "out", kind="Q8_0")
    for name, kind in (("out.bin", "F16"), ("out.gguf", "Q9"), ("out", "Q9")):
        with pytest.raises(UserError, match=f"{kind} is no type of this layout"):
            save_decoder(make_decoder(LLAMA), tmp_path / name, kind=kind)
    assert not (tmp_path / "out").exists()
