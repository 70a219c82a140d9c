"""What we write, llama.cpp loads, and gives our logits; skipped until `benchmarks/build_llama_cpp.py` has built it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from herdbook.interop.gguf.model import load_gguf, save_gguf
from herdbook.tokenizer import Tokenizer
from herdbook.tokens.config import TokenizerConfig
from herdbook.tokens.train_tokenizer import fit

from .shapes import GGUF_SHAPES, ids, make_decoder

BUILT = Path(__file__).parents[2] / ".bench" / "llama.cpp"
pytestmark = pytest.mark.skipif(not (BUILT / "build" / "bin" / "libllama.so").is_file(), reason="llama.cpp is not built")
ORACLE = Path(__file__).with_name("llama_cpp_oracle.py")
# llama.cpp computes GELU from a table of float16, and by the tanh formula where the families have the exact one.
TOLERANCE = {
    "llama": 2e-4,
    "llama-tied": 2e-4,
    "llama-interleaved": 2e-4,
    "llama-linear": 2e-4,
    "llama-ntk": 2e-4,
    "qwen3": 2e-4,
}


def ask(path: Path, what: str, stdin: bytes = b"") -> np.ndarray:
    out = path.with_suffix(".npy")
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(BUILT / "build" / "bin"), "PYTHONPATH": str(BUILT / "python")}
    words = [sys.executable, str(ORACLE), str(path), str(out), what]
    done = subprocess.run(words, input=stdin, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return np.load(out)


@pytest.mark.parametrize("name", GGUF_SHAPES)
def test_logits_agree(name: str, tmp_path: Path) -> None:
    model, tokens = make_decoder(GGUF_SHAPES[name]), ids(1, 30)
    save_gguf(model, tmp_path / "m.gguf", kind="F32")
    theirs = torch.from_numpy(ask(tmp_path / "m.gguf", " ".join(map(str, tokens[0].tolist()))))
    with torch.no_grad():
        ours = model(tokens)[0]
    error = float((theirs - ours).abs().max() / ours.abs().max())
    assert error < TOLERANCE.get(name, 5e-3), error
    assert (theirs.argmax(-1) == ours.argmax(-1)).float().mean() > 0.96


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q4_0"])
def test_quantised_files_run(kind: str, tmp_path: Path) -> None:
    save_gguf(make_decoder(GGUF_SHAPES["llama"]), tmp_path / "m.gguf", kind=kind)
    tokens = ids(1, 30)
    theirs = torch.from_numpy(ask(tmp_path / "m.gguf", " ".join(map(str, tokens[0].tolist()))))
    with torch.no_grad():
        ours = load_gguf(tmp_path / "m.gguf")(tokens)[0]
    # It rounds activations to 8 bits beside packed weights.
    assert float((theirs - ours).norm() / ours.norm()) < 0.05


def test_texts_get_the_same_ids(tmp_path: Path) -> None:
    """Our own tokenizer's cuts are what llama.cpp calls smollm."""
    text = "It's the year 2024: naïve café, 3.14 or 100,000?  two  spaces\n\n\tand a tab; 日本語 and 🦙🦙. "
    text += "<|im_start|>user\nhi<|im_end|>"
    names = dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")
    words = Tokenizer(fit(TokenizerConfig(vocab_size=400), lambda: iter([text] * 20)).to_str(), names)
    save_gguf(make_decoder(GGUF_SHAPES["llama"], vocab_size=448), tmp_path / "m.gguf", kind="F16", tokenizer=words)
    assert ask(tmp_path / "m.gguf", "-", text.encode()).tolist() == words.encode(text)
