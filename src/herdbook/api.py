"""The Python face: load a model, ask it things, save it.

    import herdbook as hb
    lm = hb.load("runs/quickstart/sft")
    lm.generate("Once upon a time", max_tokens=64, temperature=0.8, seed=1)
    lm.chat([{"role": "user", "content": "What does os.path.join do?"}])

Loading executes nothing from the folder: weights are safetensors, tokenizers are data, chat templates run in a sandbox.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from pydantic import ValidationError
from torch import Tensor

from herdbook import pedigree
from herdbook.errors import UserError
from herdbook.facts.licenses import License
from herdbook.facts.models import find_model, list_models
from herdbook.infer.config import Sampling
from herdbook.infer.engine import Engine
from herdbook.interop.doors import LAYOUTS, TYPES, Layout, find_tokenizer, load_decoder, save_decoder
from herdbook.interop.licenses import license_of
from herdbook.interop.tokenizers import load_tokenizer
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.plan.peak import training_dtype
from herdbook.tokenizer import Message, Tokenizer
from herdbook.units import human_bytes

__all__ = ["LanguageModel", "load"]

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_KINDS = {dtype: kind for kind, dtype in TYPES.items()}
DTypeName = Literal["float32", "bfloat16", "float16"]
SMALL = 20_000_000  # bytes; a model in smaller files computes in float32 under `auto`: there is nothing to win


class Settings(TypedDict, total=False):
    """How to draw text: the fields of `herdbook.infer.config.Sampling`, where they are described."""

    max_tokens: int
    temperature: float
    top_k: int
    typical_p: float
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    seed: int
    stop: str | Sequence[str]
    stop_ids: Sequence[int]
    ignore_end: bool
    beams: int
    length_penalty: float
    best_of: int
    json_schema: dict[str, Any]
    regex: str
    grammar: str
    truncate_prompt: bool


class LanguageModel:
    """A decoder with its tokenizer and licence.

    Attributes:
        model: the decoder, a `torch.nn.Module`.
        tokenizer: None where the folder, or the preset, has none; then only ids go in and out.
        license: what the model may be used for; None for random weights, which nobody licensed.
        source: the folder or preset it came from.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer | None, *, license: License | None = None, source: str = ""
    ) -> None:
        self.model, self.tokenizer, self.license, self.source = model, tokenizer, license, source

    def __repr__(self) -> str:
        terms = "random weights" if self.license is None else self.license.id
        return f"LanguageModel({self.source!r}, {self.parameters:,} parameters, {terms})"

    @property
    def config(self) -> ModelConfig:
        """The resolved shape."""
        return self.model.cfg

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return self.config.parameters()

    @cached_property
    def engine(self) -> Engine:
        """The engine below: batches with settings of their own, ids, finish reasons, log-likelihoods."""
        return Engine(self.model, self.tokenizer)

    def logits(self, tokens: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, T, V) in float32 of token ids (B, T), by a full forward pass without gradients.

        Raises UserError when the ids are not a rectangle, lie outside the vocabulary, or are more than the context.
        """
        try:
            tokens_BT = torch.as_tensor(tokens, dtype=torch.long, device=next(self.model.parameters()).device)
        except (ValueError, TypeError) as error:
            raise UserError(f"ids must be a rectangle of whole numbers ({error})") from error
        if tokens_BT.dim() != 2 or tokens_BT.numel() == 0:
            raise UserError(f"ids must have the shape (batch, time), not {tuple(tokens_BT.shape)}")
        if tokens_BT.shape[1] > self.config.context:
            raise UserError(f"{tokens_BT.shape[1]:,} tokens, and the model reads at most {self.config.context:,}")
        if int(tokens_BT.min()) < 0 or int(tokens_BT.max()) >= self.config.vocabulary:
            raise UserError(f"ids must lie between 0 and {self.config.vocabulary - 1:,}")
        with torch.inference_mode():
            logits_BTV: Tensor = self.model.eval()(tokens_BT)
        return logits_BTV

    @overload
    def generate(self, prompt: str, **settings: Unpack[Settings]) -> str: ...
    @overload
    def generate(self, prompt: list[str], **settings: Unpack[Settings]) -> list[str]: ...
    def generate(self, prompt: str | list[str], **settings: Unpack[Settings]) -> str | list[str]:
        """What the model writes after the prompt, without it; for several prompts, in one batch, a list.

        Args:
            prompt: a text, or several.
            **settings: `max_tokens`, `temperature` (0: always the likeliest token), `seed`, `stop` and all others of
                `Settings`. The same seed gives the same text.

        Raises UserError for settings out of range, and for a prompt longer than the context.
        """
        sampling = _sampling(settings)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        texts = [completion.text for completion in self.engine.generate(prompts, sampling)]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str, **settings: Unpack[Settings]) -> Iterator[str]:
        """Like `generate`, piece by piece as it is written."""
        return self.engine.stream(prompt, _sampling(settings))

    def chat(self, messages: Sequence[Message], **settings: Unpack[Settings]) -> str:
        """The reply to a conversation, by the chat template of the model's folder.

        Args:
            messages: `{"role": "system" | "user" | "assistant", "content": text}`, the last one from the user.
            **settings: as for `generate`; a reply has at most 256 tokens unless `max_tokens` says otherwise.

        Raises UserError when the model has no chat template, or the template refuses the messages.
        """
        return self.engine.generate([self._chat_ids(messages)], self._chat_sampling(settings))[0].text

    def stream_chat(self, messages: Sequence[Message], **settings: Unpack[Settings]) -> Iterator[str]:
        """Like `chat`, piece by piece as it is written."""
        return self.engine.stream(self._chat_ids(messages), self._chat_sampling(settings))

    def _chat_ids(self, messages: Sequence[Message]) -> list[int]:
        if self.tokenizer is None:
            raise UserError("this model has no tokenizer, so it cannot chat", todo="load a folder that has one")
        return self.tokenizer.encode_chat(messages)

    @staticmethod
    def _chat_sampling(settings: Settings) -> Sampling:
        return _sampling({"max_tokens": 256, **settings})

    def save(
        self, out: Path | str, format: Layout | None = None, *, dtype: DTypeName | None = None, quant: str | None = None
    ) -> Path:
        """Write the model where `hb.load` and other tools open it; its path.

        Args:
            out: a folder (other files in it stay), or a file's name.
            format: `hf`, a folder that `AutoModelForCausalLM.from_pretrained` opens; `gguf`, a file for llama.cpp; `meta`,
                LLaMA's original layout; `llama2c`, a file for llama2.c. None: by the name, which may end in .gguf or .bin.
            dtype: type to store the weights in; None: the one they have.
            quant: of a GGUF file: `Q8_0`, `Q5_1`, `Q5_0`, `Q4_1`, `Q4_0`, instead of `dtype`.

        Raises UserError for another format, one that has no form for this model, or a place that cannot be written to.
        """
        if format is not None and format not in LAYOUTS:
            raise UserError(f"the format {format!r} is not known", todo=f"formats: {', '.join(LAYOUTS)}")
        if Path(self.source).exists() and Path(out).resolve() == Path(self.source).resolve():
            raise UserError("this is the model it was loaded from", where=out, todo="save to another place")
        license_id = None if self.license is None else self.license.id
        kind = quant or (None if dtype is None else _KINDS[_type(dtype)])
        name = Path(self.source).stem or None
        origin = {"source": Path(self.source).name, "license": license_id, "code": pedigree.code_version()}
        (Path(out) / pedigree.MANIFEST).unlink(missing_ok=True)  # of the model that was here before
        save_decoder(
            self.model, Path(out), format, kind=kind, tokenizer=self.tokenizer, license_id=license_id, name=name, origin=origin
        )
        return Path(out)


def load(
    path: Path | str, *, tokenizer: Path | str | None = None, dtype: DTypeName | Literal["auto"] = "float32",
    device: str = "cpu", seed: int = 0, allow_pickle: bool = False, packed: bool = False,
) -> LanguageModel:  # fmt: skip
    """A model from disk, whatever its layout, or from a preset's name with random weights.

    Args:
        path: a Hugging Face folder, a GGUF file, Meta's folder, a llama2.c file, or a name of the catalogue (`herdbook
            models`); a folder of that name goes before.
        tokenizer: a folder or file to take the tokenizer from; None: what lies with the model, if anything.
        dtype: type of the weights and of the computation; auto: what runs fastest, bfloat16 where the device multiplies it
            faster and the model is not tiny, else float32.
        device: `cpu`, `cuda`, …
        seed: of a preset's random weights.
        allow_pickle: read .bin and .pth weights too. They are pickles, of which only tensors are accepted.
        packed: keep matrices that are stored in 8 or 4 bits as they are, to run and to save; they cannot be trained then.

    Raises UserError when there is neither a model nor a preset of that name, when it is broken or of a kind we do not read,
    and when a preset does not fit this machine's memory. Nothing in the files is executed.
    """
    folder = Path(path)
    words = None if tokenizer is None else load_tokenizer(Path(tokenizer))
    if folder.exists():
        if words is None:
            words = find_tokenizer(folder)
        kind = _type(_fastest(folder, device) if dtype == "auto" else dtype)
        model = load_decoder(folder, dtype=kind, device=_device(device), allow_pickle=allow_pickle, packed=packed)
        return LanguageModel(model, words, license=license_of(folder), source=str(path))
    if str(path) not in {preset.name for preset in list_models()}:
        names = ", ".join(preset.name for preset in list_models() if preset.tiny)
        todo = f"name a model folder or a .gguf file, or a preset (`herdbook models`), such as {names}"
        raise UserError("there is no such model folder, and no preset of that name", where=path, todo=todo)
    cfg = find_model(str(path)).config
    _require_memory(cfg, str(path))
    if words is not None and words.vocab_size > cfg.vocabulary:
        cfg = cfg.model_copy(update={"vocab_size": None}).resolved(words.vocab_size)
    model = Decoder(cfg)
    model.init_weights(torch.Generator().manual_seed(seed))
    model.compute_dtype = _type(training_dtype(_device(device).type) if dtype == "auto" else dtype)
    return LanguageModel(model.to(_device(device), model.compute_dtype).eval(), words, source=str(path))


def _sampling(settings: Settings) -> Sampling:
    try:
        return Sampling.model_validate(settings)
    except ValidationError as error:
        known = ", ".join(Sampling.model_fields)
        mistakes = [f"{'.'.join(map(str, row['loc']))}: {row['msg']} (it is {row['input']!r})" for row in error.errors()]
        raise UserError("; ".join(mistakes), where="sampling", todo=f"settings: {known}") from error


def _fastest(path: Path, device: str) -> str:
    """What a model on disk is best run in."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return training_dtype(_device(device).type) if sum(file.stat().st_size for file in files) > SMALL else "float32"


def _type(name: str) -> torch.dtype:
    if name not in _TYPES:
        raise UserError(f"the type {name!r} is not known", todo=f"types: {', '.join(_TYPES)}")
    return _TYPES[name]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{name!r} is no device", todo="use cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is to be seen here", todo='use device="cpu", or see `herdbook doctor`')
    return device


def _require_memory(cfg: ModelConfig, name: str) -> None:
    """Random weights are made in float32 and then converted, so that is what must fit."""
    needed, have = cfg.parameters() * 4, pedigree.machine()["memory_bytes"]
    if have is not None and needed > have:
        sizes = (
            f"{human_bytes(needed)} of memory for its {cfg.parameters():,} parameters, and this machine has {human_bytes(have)}"
        )
        raise UserError(f"{name} needs {sizes}", todo="use a smaller preset")
