"""Tokenizers of model folders: round trips, streaming, special tokens, chat templates in their sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from herdbook.errors import UserError
from herdbook.tokenizer import FOR_TRANSFORMERS_4, TextStream, Tokenizer

SPECIALS = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
NAMES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trained(*, byte_level: bool = True) -> Trained:
    tokenizer = Trained(models.BPE(unk_token=None))
    if byte_level:
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:  # as SentencePiece does: a mark for the space, dropped at the start of a text
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat and naïve café 😀 looked on"] * 3, trainer)
    return tokenizer


TRAINED = trained()
BYTES = Tokenizer(TRAINED.to_str(), NAMES)
PIECES = Tokenizer(trained(byte_level=False).to_str(), NAMES)


def folder_with(path: Path, config: dict[str, Any] | None = None, **files: str) -> Path:
    TRAINED.save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


@settings(deadline=None)
@given(st.text().filter(lambda text: "<|" not in text))
def test_text_survives_the_round_trip(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text


@settings(deadline=None)
@given(st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=40))
def test_streamed_pieces_join_to_the_whole(ids: list[int]) -> None:
    stream = TextStream(BYTES)
    pieces = [stream.push(index) for index in ids]
    assert "".join(pieces) + stream.flush() == BYTES.decode(ids)
    assert not any(piece.endswith("\ufffd") for piece in pieces)


@settings(deadline=None)
@given(st.text("thecasomn ", max_size=30))
def test_spaces_between_pieces_survive_streaming(text: str) -> None:
    ids, stream = PIECES.encode(text), TextStream(PIECES)
    assert "".join(stream.push(index) for index in ids) + stream.flush() == PIECES.decode(ids)


def test_a_character_of_several_tokens_comes_as_one_piece() -> None:
    stream, ids = TextStream(BYTES), BYTES.encode("€")
    assert len(ids) == 3
    assert [stream.push(index) for index in ids] == ["", "", "€"]


def test_special_tokens(tmp_path: Path) -> None:
    names = {**NAMES, "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"}}  # both forms are in use
    tokenizer = Tokenizer.load(folder_with(tmp_path, {**names, "add_bos_token": True}))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 0, 1)
    assert tokenizer.special_ids == {0, 1, 2, 3}
    assert tokenizer.encode("<|im_end|>the") == [3, *tokenizer.encode("the")]
    assert tokenizer.encode_prompt("the") == [0, *tokenizer.encode("the")]
    assert tokenizer.encode_prompt("<|endoftext|>the") == tokenizer.encode_prompt("the")
    assert BYTES.encode_prompt("the") == BYTES.encode("the")
    assert tokenizer.decode([0, *tokenizer.encode("the"), 3]) == "the"
    assert tokenizer.decode([3], skip_special=False) == "<|im_end|>"
    assert tokenizer.decode([10**6]) == ""


def test_the_tokenizers_own_start_token_is_not_doubled() -> None:
    own = trained()
    own.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer = Tokenizer(own.to_str(), {**NAMES, "add_bos_token": True})
    assert tokenizer.encode_prompt("the") == [0, *tokenizer.encode("the")]


def test_ends_of_a_text(tmp_path: Path) -> None:
    ends = json.dumps({"eos_token_id": [0, 2]})
    tokenizer = Tokenizer.load(folder_with(tmp_path, {**NAMES, "chat_template": CHAT}, generation_config__json=ends))
    assert tokenizer.stop_ids == {0, 2}
    assert tokenizer.turn_end_id == 3
    assert tokenizer.end_ids == {0, 2, 3}
    assert BYTES.turn_end_id is None
    assert BYTES.end_ids == {0}


def test_saved_tokenizer_loads_alike(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("old")
    BYTES.with_chat_template(CHAT).save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.chat_template == CHAT
    assert again.encode("the cat") == BYTES.encode("the cat")
    assert again.config == {**FOR_TRANSFORMERS_4, **NAMES, "chat_template": CHAT}


def test_transformers_opens_the_folder_and_renders_alike(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    BYTES.with_chat_template(CHAT).save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    messages = [
        {"role": "user", "content": "the  cat"},
        {"role": "assistant", "content": "sat"},
        {"role": "user", "content": "?"},
    ]
    for flag in (True, False):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=flag)
        assert ours.render_chat(messages, add_generation_prompt=flag) == text
    assert theirs.encode("the cat 😀", add_special_tokens=False) == ours.encode("the cat 😀")


TEMPLATES = [
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n    [{{ m.content | trim }}]\n  {% endif %}\n{% endfor %}",
    "{{ bos_token }}{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x + m.role[0] %}{% endfor %}{{ ns.x }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ eos_token }}",
    "{{ '-' * 3 }}{{ 2 ** 3 }}{{ messages | length % 2 }}{{ tools is defined }}{{ unk_token is defined }}",
    "{%- for m in messages -%}{{ m.content.split('\\n')[-1].strip().upper() }}{%- endfor -%}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_render_as_in_transformers(template: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    BYTES.with_chat_template(template).save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": " a <b> 'é'\n"}, {"role": "assistant", "content": "x\ny"}]
    assert Tokenizer.load(tmp_path).render_chat(messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


HOSTILE = {
    "loops in loops": "{% for a in range(9999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a text that doubles": "{% set n = namespace(x='xx') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "reaches into python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "changes the messages": "{{ messages.append(1) }}",
    "long text": "{{ 'a' * 10 ** 9 }}",
    "long text, the other way round": "{{ 10 ** 9 * 'a' }}",
    "large number": "{{ 9 ** 99999 }}",
    "large number in steps": "{{ ((9 ** 64) ** 64) ** 64 }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "wide format": "{{ '%1000000000d' % 1 }}",
    "long loop": "{% for i in range(10 ** 9) %}a{% endfor %}",
    "endless output": "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'a' * 999 }}{% endfor %}{% endfor %}",
    "syntax": "{% for %}",
    "refuses": "{{ raise_exception('only one system message') }}",
    "no such thing": "{{ messages[7].content }}",
    "divides by zero": "{{ 1 / 0 }}",
    "huge": "a" * 300_000,
    "deep": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_and_broken_templates_are_user_errors(case: str) -> None:
    with pytest.raises(UserError, match="chat template"):
        BYTES.with_chat_template(HOSTILE[case]).render_chat([{"role": "user", "content": "x"}])


def test_no_template_says_what_to_do() -> None:
    with pytest.raises(UserError, match="herdbook sft"):
        BYTES.render_chat([{"role": "user", "content": "x"}])


def test_where_templates_are_found(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    assert Tokenizer.load(folder_with(tmp_path, {"chat_template": named})).chat_template == "d"
    assert Tokenizer.load(folder_with(tmp_path, {"chat_template": "c"}, chat_template__jinja="j")).chat_template == "j"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', "\xff"])
def test_broken_tokenizers(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_missing_and_broken_companions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer here"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="JSON object"):
        Tokenizer.load(folder_with(tmp_path, generation_config__json="[]"))
    with pytest.raises(UserError, match="not valid JSON"):
        Tokenizer.load(folder_with(tmp_path, generation_config__json="{"))


@given(st.text(max_size=30))
def test_documents_cannot_write_special_tokens(text: str) -> None:
    special = next(iter(BYTES.special_ids))
    written = BYTES.decode([special], skip_special=False)
    assert special in BYTES.encode(text + written)
    assert not set(BYTES.encode_document(text + written)) & BYTES.special_ids
