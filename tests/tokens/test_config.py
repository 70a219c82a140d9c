from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from herdbook.tokens.config import SMALLEST_VOCABULARY, TokenizerConfig, TokensConfig


def test_defaults_and_human_numbers() -> None:
    assert TokenizerConfig().vocab_size == 4096
    assert TokenizerConfig(vocab_size="32Ki", sample_bytes="1GB").vocab_size == 32768
    assert TokensConfig(sources={"wiki": 2, "code": 1}).sources == {"wiki": 2.0, "code": 1.0}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"vocab_size": SMALLEST_VOCABULARY - 1}, "greater than or equal to 260"),
        ({"sources": {}}, "names no source"),
        ({"sources": {"wiki": 0}}, "greater than 0"),
        ({"sources": {"wiki": float("inf")}}, "finite"),
        ({"license": "MIT"}, "no path is given"),
        ({"kind": "wordpiece"}, "bpe"),
        ({"character_coverage": 0.99}, "character_coverage belongs to the kinds llama and unigram"),
        ({"prefix_space": False}, "prefix_space belongs to the kinds llama and unigram"),
        ({"kind": "unigram", "character_coverage": "101%"}, "less than or equal to 1"),
        ({"kind": "llama", "vocab_size": 261}, "vocab_size has to be 262 at least"),
    ],
)
def test_mistakes_in_the_tokenizer_section(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TokenizerConfig.model_validate(values)


def test_weights_too_large_to_add_up() -> None:
    with pytest.raises(ValidationError, match="too large"):
        TokensConfig(sources={"a": 1e308, "b": 1e308})


def test_the_config_imports_nothing_heavy() -> None:
    heavy = "('torch', 'tokenizers', 'pyarrow', 'numpy')"
    code = f"import sys, herdbook.tokens.config; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
