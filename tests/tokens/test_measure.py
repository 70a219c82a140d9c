from __future__ import annotations

from pathlib import Path

import pytest

from herdbook.console import Terminal
from herdbook.documents import DocumentWriter
from herdbook.errors import UserError
from herdbook.tokens.config import TokenizerConfig
from herdbook.tokens.measure import Texts, measure, measure_others, open_others, plain, show
from herdbook.tokens.sample import Sampled
from herdbook.tokens.train_tokenizer import fit

DOCUMENTS = [Sampled("tales", "en", "aaaa aaaa\n"), Sampled("tales", "fr", "é aaaa"), Sampled("code", "en", "x▁y")]


def test_figures_of_a_tokenizer_with_pieces() -> None:
    encoder = plain(fit(TokenizerConfig(kind="llama", vocab_size=266, min_frequency=1), lambda: iter(["aaaa aaaa " * 50])))
    # Pieces are `aa`, `aaaa`, `▁aaaa`, `a` and `▁`; the rest is bytes.
    report = measure(encoder, DOCUMENTS)
    tokens = [len(encoder.encode(row.text, add_special_tokens=False).ids) for row in DOCUMENTS]
    assert tokens == [3, 4, 4]  # ▁aaaa ▁aaaa <0x0A>; ▁ <0xC3> <0xA9> ▁aaaa; ▁ <0x78> ▁ <0x79>
    assert report["by_source"]["tales"] == {"bytes": 17, "tokens": 7, "bytes_per_token": 2.4286, "tokens_per_word": 1.75}
    assert report["by_source"]["code"] == {"bytes": 5, "tokens": 4, "bytes_per_token": 1.25, "tokens_per_word": 4.0}
    assert report["by_language"]["fr"]["tokens"] == 4
    assert report["bytes_per_token"] == 2.0
    assert report["byte_fallback"] == round(2 / 11, 6)  # the bytes of é; a line break or an x is a whole character
    assert report["round_trip"] == round(2 / 3, 6)  # ▁ comes back as a space
    assert report["longest"][0] == {"token": " aaaa", "times": 3}
    seen = 7  # ▁aaaa, ▁, and the bytes 0A, C3, A9, 78, 79
    assert report["vocabulary_used"] == round(seen / report["vocab_size"], 4)
    assert report["unseen"]["tokens"] == report["vocab_size"] - 5 - seen - 126  # of 128 upper bytes, which are no characters


def test_parts_of_characters_in_bytes() -> None:
    encoder = plain(fit(TokenizerConfig(vocab_size=300, min_frequency=2), lambda: iter(["羊羊羊羊 " * 9, "a"])))
    report = measure(encoder, [Sampled("s", "zh", "羊é a")])
    alone = [encoder.decode([index]) for index in encoder.encode("羊é a", add_special_tokens=False).ids]
    assert 2 <= sum("\ufffd" in text for text in alone) < len(alone)
    assert report["byte_fallback"] == round(sum("\ufffd" in text for text in alone) / len(alone), 6)
    assert report["round_trip"] == 1.0


def test_nothing_to_measure_on(capsys: pytest.CaptureFixture[str]) -> None:
    encoder = plain(fit(TokenizerConfig(vocab_size=300), lambda: iter(["a"])))
    report = measure(encoder, [])
    assert (report["bytes_per_token"], report["byte_fallback"], report["round_trip"]) == (None, None, None)
    report["measured_on"]["split"] = "train"
    show({**report, "compare": []}, Terminal())
    assert "no text to measure it on" in capsys.readouterr().err


def test_texts_are_held_out_where_there_are_any(corpus: Path, tmp_path: Path) -> None:
    texts = Texts(corpus)
    assert texts.split == "heldout"
    assert list(texts) == list(texts)
    with DocumentWriter(tmp_path, "documents") as writer:
        writer.write({"id": "1", "text": "a", "url": "", "source": "s", "license": "MIT"})
    assert Texts(tmp_path).split == "train"
    assert [row.language for row in Texts(tmp_path)] == ["unknown"]


def test_others(tokenizer: Path, tmp_path: Path) -> None:
    others = open_others([tokenizer])
    (row,) = measure_others(others, DOCUMENTS)
    assert row["tokenizer"] == str(tokenizer)
    assert row["bytes_per_token"] == measure(others[str(tokenizer)], DOCUMENTS)["bytes_per_token"]
    with pytest.raises(UserError, match="no such file or folder"):
        open_others([tmp_path / "nowhere"])
