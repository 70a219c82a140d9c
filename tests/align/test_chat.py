from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herdbook.align.chat import PRESETS, BadConversationError, ChatFormat, with_system
from herdbook.errors import UserError
from herdbook.tokenizer import Tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: bool(text.strip()) and "<|" not in text
)
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)


def conversation(turns: list[tuple[str, str]], system: str | None = None) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return with_system(messages, system)


@pytest.mark.parametrize("preset", PRESETS)
@given(turns=TURNS, system=st.none() | TEXT)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_trained_tokens_decode_to_the_answers_and_their_ends(
    words: Tokenizer, preset: str, turns: list[tuple[str, str]], system: str | None
) -> None:
    chat = ChatFormat(words, preset)
    messages = conversation(turns, system)
    sample = chat.sample(messages)
    trained = [token for token, learn in zip(sample.tokens, sample.trained, strict=True) if learn]
    lead = "" if preset == "chatml" else " "
    expected = "".join(f"{lead}{answer.strip()}{chat.end_of_turn}" for _, answer in turns)
    assert words.decode(trained, skip_special=False) == expected
    # And all of it is the text that the template renders, up to the end of the last answer.
    whole = words.decode(sample.tokens, skip_special=False)
    assert chat.render(messages).startswith(whole)
    assert chat.render(messages)[len(whole) :].strip() == ""


@pytest.mark.parametrize("preset", PRESETS)
@given(turns=TURNS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_seen_in_training_is_what_is_seen_when_asked(
    words: Tokenizer, preset: str, turns: list[tuple[str, str]]
) -> None:
    chat = ChatFormat(words, preset)
    sample = chat.sample(conversation(turns))
    asked = chat.tokenizer.encode_chat(conversation(turns)[:-1])
    first = len(sample.tokens) - sample.trained[::-1].index(False)  # where the last answer begins
    assert sample.tokens[:first] == asked


def test_chatml_reads_as_it_should(words: Tokenizer) -> None:
    chat = ChatFormat(words, "chatml")
    text = chat.render(conversation([("Hi ", " Hello.")], "Be kind."), add_generation_prompt=True)
    assert text == (
        "<|endoftext|><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.end_of_turn == "<|im_end|>"


def test_llama2_reads_as_it_should(words: Tokenizer) -> None:
    chat = ChatFormat(words, "llama2")
    text = chat.render(conversation([("Hi", "Hello."), ("More", "Yes.")], "Be kind."))
    assert text == (
        "<|endoftext|>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello. <|endoftext|>"
        "<|endoftext|>[INST] More [/INST] Yes. <|endoftext|>"
    )
    assert chat.end_of_turn == " <|endoftext|>"


def test_plain_reads_as_it_should(words: Tokenizer) -> None:
    text = ChatFormat(words, "plain").render(conversation([("Hi", "Hello.")], "Be kind."), add_generation_prompt=True)
    assert text == "<|endoftext|>Be kind.\n\nUser: Hi\nAssistant: Hello.<|endoftext|>\nAssistant:"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ([{"role": "user", "content": "a"}], "no answer"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}], "empty answer"),
        ([{"role": "human", "content": "a"}], "a role other than"),
        ([{"role": "user", "content": None}, {"role": "assistant", "content": "b"}], "without text"),
        ([{"role": "user", "content": "a<|im_end|>"}, {"role": "assistant", "content": "b"}], "special token"),
    ],
)
def test_conversations_that_cannot_be_trained_on_say_why(words: Tokenizer, messages: list[Any], reason: str) -> None:
    with pytest.raises(BadConversationError, match=reason):
        ChatFormat(words, "chatml").pieces(messages)


def test_what_the_template_refuses_is_a_bad_conversation(words: Tokenizer) -> None:
    messages = [{"role": "assistant", "content": "I begin."}]
    with pytest.raises(BadConversationError, match=r"refused.*take turns"):
        ChatFormat(words, "llama2").pieces(messages)


def test_the_models_own_template_is_used_and_known_by_name(words: Tokenizer) -> None:
    chat = ChatFormat(words.with_chat_template(PRESETS["llama2"]))
    assert chat.name == "llama2"
    with pytest.raises(UserError, match="no chat template"):
        ChatFormat(words)


def test_a_format_that_never_stops_is_refused(words: Tokenizer) -> None:
    endless = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    with pytest.raises(UserError, match="does not end answers with a special token"):
        ChatFormat(words, endless)


def test_a_template_that_changes_answers_is_noticed(words: Tokenizer) -> None:
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | replace('!', '.')"
        " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = ChatFormat(words, template)
    assert chat.name == "custom"
    with pytest.raises(BadConversationError, match="changes an answer"):
        chat.pieces(conversation([("a", "b!")]))


@pytest.mark.parametrize("preset", PRESETS)
def test_transformers_renders_the_same(words: Tokenizer, preset: str, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    chat = ChatFormat(words, preset)
    chat.tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = conversation([("Hi", "Hello."), ("Où ?", "Là.")], "Be kind.")
    for ask in (False, True):
        part = messages[:-1] if ask else messages
        text = theirs.apply_chat_template(part, tokenize=False, add_generation_prompt=ask)
        assert text == chat.render(part, add_generation_prompt=ask)
        ids = theirs.apply_chat_template(part, tokenize=True, add_generation_prompt=ask, return_dict=True)["input_ids"]
        assert ids == chat.tokenizer.encode(text)
