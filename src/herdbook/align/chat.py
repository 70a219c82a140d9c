"""Chat formats: how messages become text, and which of that text a model learns to write.

A format is a Jinja template, stored with the model's tokenizer, where transformers, llama.cpp and our own chat and server
read it: the same one trains, evaluates and serves. Which tokens are trained follows from rendering, never from searching in
tokens: the conversation up to an answer is rendered with the words that ask for one, once more with the answer, and the
difference is the answer. Both parts are tokenized by themselves, so that what the model sees in training is, token by token,
what it sees when it is asked, and no token is half question and half answer.

Trained is the answer and what ends the turn: the first special token the template puts after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from herdbook.errors import UserError
from herdbook.tokenizer import Message, Tokenizer

# ChatML (OpenAI 2023): turns between <|im_start|> and <|im_end|>, which are tokens of their own.
CHATML = """{{ bos_token }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# LLaMA-2-Chat (Touvron et al. 2023): the system message is written into the first user message, each pair ends with eos.
LLAMA2 = """{%- set system = '' %}
{%- set turns = messages %}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant have to take turns, the user first') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token }}{{ '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + ' ' }}{{ eos_token }}
    {%- endif %}
{%- endfor %}
"""
# For tokenizers that have no tokens for turns: plain words, and the end-of-text token after an answer.
PLAIN = """{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] | trim + '\\n\\n' }}
    {%- elif message['role'] == 'user' %}
        {{- 'User: ' + message['content'] | trim + '\\n' }}
    {%- else %}
        {{- 'Assistant: ' + message['content'] | trim }}{{ eos_token }}{{ '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""
PRESETS = {"chatml": CHATML, "llama2": LLAMA2, "plain": PLAIN}
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered conversation.

    Attributes:
        trained: whether the model learns to write it.
    """

    text: str
    trained: bool


@dataclass(frozen=True)
class Sample:
    """A conversation as tokens.

    Attributes:
        tokens: ids, from the beginning of the text to the end of the last answer.
        trained: for each token, whether the model learns to write it.
    """

    tokens: list[int]
    trained: list[bool]


class BadConversationError(ValueError):
    """A conversation that cannot be trained on; the message is the reason, the same words for the same kind of fault."""


class ChatFormat:
    """One chat format over one tokenizer.

    Args:
        template: a preset's name, or a Jinja template; None takes the tokenizer's own.

    Attributes:
        name: the preset it is, or "custom".
        tokenizer: the tokenizer, with this template.

    Raises UserError when there is no template, or it ends answers with no special token, so that a model could not learn to
    stop.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        source = PRESETS.get(template or "", template) or tokenizer.chat_template
        if source is None:
            raise UserError("this tokenizer has no chat template", todo=f"choose one with sft.chat: {', '.join(PRESETS)}")
        self.name = next((name for name, preset in PRESETS.items() if preset == source), "custom")
        self.template = source
        self.tokenizer = tokenizer.with_chat_template(source)
        self._lead, self._end = self._probe()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation. Raises UserError when the template refuses it."""
        return self.tokenizer.render_chat(messages, add_generation_prompt=add_generation_prompt)

    @property
    def end_of_turn(self) -> str:
        """What ends an answer, `<|im_end|>` in ChatML; trained like the answer."""
        return self._end

    @cached_property
    def _special_texts(self) -> tuple[str, ...]:
        ids = sorted(self.tokenizer.special_ids)
        return tuple(text for index in ids if (text := self.tokenizer.decode([index], skip_special=False)))

    def _probe(self) -> tuple[str, str]:
        """What stands between the words that ask for an answer and the answer, and what ends it."""
        question = [{"role": "user", "content": "question"}]
        answer = "herdbook"
        before = self.render(question, add_generation_prompt=True)
        after = self.render([*question, {"role": "assistant", "content": answer}])
        lead, found, tail = after.removeprefix(before).partition(answer)
        ends = [tail.index(text) + len(text) for text in self._special_texts if text in tail]
        if not after.startswith(before) or not found or not ends:
            raise UserError(
                f"the chat format {self.name!r} does not end answers with a special token of this tokenizer",
                todo="choose sft.chat=plain, or a tokenizer that has the tokens",
            )
        return lead, tail[: min(ends)]

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """The rendered conversation up to the end of its last answer, cut where answers begin and end.

        Raises BadConversationError when there is no answer in it, a message is malformed, or the template changes an answer.
        """
        self._check(messages)
        pieces: list[Piece] = []
        done = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], ask=True)
            after = self._render(messages[: number + 1], ask=False)
            answer = self._lead + message["content"].strip() + self._end
            if not before.startswith(done) or not after.startswith(before + answer):
                raise BadConversationError("the chat template changes an answer or what comes before it")
            pieces += [Piece(before[len(done) :], False), Piece(answer, True)]
            done = before + answer
        return pieces

    def sample(self, messages: Sequence[Message]) -> Sample:
        """The tokens of a conversation and which of them are trained. Raises as `pieces`."""
        tokens: list[int] = []
        trained: list[bool] = []
        for piece in self.pieces(messages):
            ids = self.tokenizer.encode(piece.text)
            tokens += ids
            trained += [piece.trained] * len(ids)
        return Sample(tokens, trained)

    def _render(self, messages: Sequence[Message], *, ask: bool) -> str:
        try:
            return self.render(messages, add_generation_prompt=ask)
        except UserError as error:
            raise BadConversationError(f"refused: {error.what}") from error

    def _check(self, messages: Sequence[Message]) -> None:
        if not messages:
            raise BadConversationError("no messages")
        for message in messages:
            role, content = message.get("role"), message.get("content")
            if role not in ROLES:
                raise BadConversationError(f"a role other than {', '.join(ROLES)}")
            if not isinstance(content, str):
                raise BadConversationError("a message without text")
            if any(text in content for text in self._special_texts):
                raise BadConversationError("a message that contains a special token")
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        if not answers:
            raise BadConversationError("no answer to learn")
        if not all(answer.strip() for answer in answers):
            raise BadConversationError("an empty answer")


def with_system(messages: Sequence[Message], system: str | None) -> list[dict[str, Any]]:
    """The conversation, with a system message in front unless it has one or `system` is None."""
    plain = [dict(message) for message in messages]
    if system is None or (plain and plain[0].get("role") == "system"):
        return plain
    return [{"role": "system", "content": system}, *plain]
