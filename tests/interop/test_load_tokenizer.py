"""One door for all forms of a tokenizer: which file of a folder counts, and what lies beside it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers, trainers

from herdbook.errors import UserError
from herdbook.interop.gguf.container import write_gguf
from herdbook.interop.gguf.vocabulary import gguf_metadata_of
from herdbook.interop.tokenizers import MAX_BYTES, load_tokenizer
from herdbook.tokenizer import Tokenizer

TEXT = "the cat sat on the mat, and naïve cafés 123 4567 looked on; it's the cat's mat"
END = "<|endoftext|>"


def trained(*specials: str) -> Trained:
    """A tokenizer as GPT-2's, with special tokens at its first ids."""
    tokenizer = Trained(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


OWN = Tokenizer(trained(END).to_str(), {"eos_token": END})


def gpt2_folder(path: Path, *specials: str, **files: Any) -> Path:
    """GPT-2's two files, and JSON files beside them."""
    model = json.loads(trained(*specials or (END,)).to_str())["model"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (path / "merges.txt").write_text("\n".join(lines))
    return beside(path, **files)


def beside(path: Path, **files: Any) -> Path:
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.fixture(scope="session")
def spm_bytes() -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 5), model_writer=out, vocab_size=320, model_type="bpe", hard_vocab_limit=False,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return bytes(out.getvalue())


@pytest.fixture
def llama_folder(tmp_path: Path, spm_bytes: bytes) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(spm_bytes)
    return tmp_path


# ---- which file counts ----


def test_tokenizer_json_comes_first(llama_folder: Path) -> None:
    gpt2_folder(llama_folder)
    sentencepiece = load_tokenizer(llama_folder)
    assert "▁the" in json.loads(sentencepiece._tokenizer.to_str())["model"]["vocab"]
    OWN.save(llama_folder)
    assert load_tokenizer(llama_folder).encode(TEXT) == OWN.encode(TEXT)
    assert load_tokenizer(llama_folder / "tokenizer.json").eos_id == OWN.eos_id
    assert load_tokenizer(llama_folder / "tokenizer.model").encode(TEXT) == sentencepiece.encode(TEXT)


def test_files_of_other_names(tmp_path: Path, spm_bytes: bytes) -> None:
    beside(tmp_path, tokenizer_config={"eos_token": "of another tokenizer"})
    (tmp_path / "my.json").write_text(trained(END).to_str())
    (tmp_path / "tokenizer.model.v3").write_bytes(spm_bytes)
    write_gguf(tmp_path / "m.gguf", gguf_metadata_of(OWN, 320), [])
    assert load_tokenizer(str(tmp_path / "my.json")).encode(TEXT) == OWN.encode(TEXT)
    assert load_tokenizer(tmp_path / "m.gguf").encode(TEXT) == OWN.encode(TEXT)
    assert load_tokenizer(tmp_path / "tokenizer.model.v3").special_token("eos_token") == "</s>"


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer here\n.*tokenizer\.json, tokenizer\.model, or vocab\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        load_tokenizer(tmp_path / "nothing")
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="no tokenizer that we know"):
        load_tokenizer(tmp_path / "weights.bin")
    (tmp_path / "my.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        load_tokenizer(tmp_path / "my.json")


@pytest.mark.parametrize("name", ["tokenizer.json", "my.json", "vocab.json"])
def test_absurd_sizes_are_not_read(name: str, tmp_path: Path) -> None:
    gpt2_folder(tmp_path)
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, MAX_BYTES + 1)
    with pytest.raises(UserError, match="more than 256 MiB"):
        load_tokenizer(tmp_path / name if name == "my.json" else tmp_path)


# ---- GPT-2's two files ----


def test_gpt2_says_nothing_of_its_special_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(gpt2_folder(tmp_path))
    assert tokenizer.encode(TEXT) == OWN.encode(TEXT)
    assert tokenizer.encode(END) == [0] == [tokenizer.eos_id]
    assert 0 not in tokenizer.encode_document(END)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.encode_prompt("the") == tokenizer.encode("the")


def test_opt_begins_every_text(tmp_path: Path) -> None:
    config = {"add_bos_token": True, "bos_token": {"content": "</s>"}, "eos_token": {"content": "</s>"}}
    folder = gpt2_folder(
        tmp_path, "<s>", "<pad>", "</s>", tokenizer_config=config, special_tokens_map={"pad_token": "<pad>", "eos_token": "x"},
        generation_config={"eos_token_id": [2, 7]},
    )  # fmt: skip
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.special_ids) == (2, 2, 1, {1, 2})
    assert tokenizer.encode_prompt("the") == [2, *tokenizer.encode("the")]
    assert tokenizer.stop_ids == {2, 7}


def test_tokens_that_were_added_later(tmp_path: Path) -> None:
    size = OWN.vocab_size
    decoder = {str(size + 1): {"content": "<|im_end|>", "special": True}, "0": {"content": END, "special": True}}
    folder = gpt2_folder(
        tmp_path, added_tokens={"<|im_start|>": size}, tokenizer_config={"eos_token": END, "added_tokens_decoder": decoder}
    )
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("<|im_start|>the<|im_end|>") == [size, *OWN.encode("the"), size + 1]
    assert tokenizer.special_ids == {0, size + 1}
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "x"


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "vocabulary is a list": ({"vocab": []}, r"vocab\.json: this should be a JSON object"),
    "vocabulary is empty": ({"vocab": {}}, "maps tokens to ids"),
    "ids are texts": ({"vocab": {"a": "0"}}, "maps tokens to ids"),
    "ids are negative": ({"vocab": {"a": -1}}, "maps tokens to ids"),
    "an id twice": ({"vocab": {"a": 0, "b": 0}}, "two tokens have the same id"),
    "merges of unknown tokens": ({"vocab": {"a": 0}}, r"merges\.txt:2: a merge is of two tokens"),
    "an added token where there is another": ({"added_tokens": {"<x>": 3}}, "'<x>' should have the id 3"),
    "an added token too far": ({"added_tokens": {"<x>": 999}}, "'<x>' should have the id 999"),
    "an added token without an id": ({"added_tokens": {"<x>": None}}, "an added token has the id None"),
    "an added token without a text": ({"tokenizer_config": {"added_tokens_decoder": {"9": {}}}}, "has no text for '9'"),
    "an added token of no number": ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "y"}}}}, "has the id 'x'"),
    "settings are a list": ({"tokenizer_config": []}, r"tokenizer_config\.json: this should be a JSON object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders(case: str, tmp_path: Path) -> None:
    files, message = BROKEN[case]
    with pytest.raises(UserError, match=message):
        load_tokenizer(gpt2_folder(tmp_path, **files))


def test_a_bpe_of_words_is_not_taken_for_one_of_bytes(tmp_path: Path) -> None:
    (gpt2_folder(tmp_path) / "merges.txt").write_text("#version: 0.2\nt h\nh e</w>\n")
    with pytest.raises(UserError, match="BPE of words"):
        load_tokenizer(beside(tmp_path, vocab={"t": 0, "h": 1, "th": 2, "e</w>": 3, "he</w>": 4}))
    (tmp_path / "merges.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        load_tokenizer(tmp_path)


# ---- SentencePiece ----


def test_a_llama_folder(llama_folder: Path) -> None:
    plain = load_tokenizer(llama_folder)
    size = plain.vocab_size
    assert plain.encode_prompt("the")[0] == plain.bos_id
    config = {"add_bos_token": False, "bos_token": {"content": "<s>"}, "pad_token": "<pad>", "chat_template": "{{ 1 }}"}
    beside(llama_folder, tokenizer_config=config, added_tokens={"<pad>": size}, generation_config={"eos_token_id": 5})
    tokenizer = load_tokenizer(llama_folder)
    assert (tokenizer.pad_id, tokenizer.vocab_size, tokenizer.chat_template) == (size, size + 1, "{{ 1 }}")
    assert size in tokenizer.special_ids
    assert tokenizer.stop_ids == {plain.eos_id, 5}
    assert tokenizer.encode_prompt(TEXT) == plain.encode(TEXT)
    assert tokenizer.encode("the<pad>") == [*plain.encode("the"), size]


def test_a_saved_one_opens_as_a_folder(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer, out = load_tokenizer(llama_folder), tmp_path_factory.mktemp("saved")
    tokenizer.save(out)
    again = load_tokenizer(out)
    assert again.encode_prompt(f" {TEXT} 😀") == tokenizer.encode_prompt(f" {TEXT} 😀")
    assert again.decode(again.encode(f" {TEXT} 😀")) == f" {TEXT} 😀"


def test_transformers_opens_what_was_saved(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer, out = load_tokenizer(llama_folder), tmp_path_factory.mktemp("saved")
    tokenizer.save(out)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.encode(TEXT) == tokenizer.encode_prompt(TEXT)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
