"""Supervised fine-tuning on conversations, and the station `sft/` around it.

Samples are packed into rows, each seeing only itself, and the loss is on answers and their ends only (`align/chat.py`). The
head, a third of a small model's work, is applied to the trained positions alone. LLaMA-2-Chat was tuned in this way (Touvron
et al. 2023, §3.1), as was Alpaca before it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from herdbook import pedigree
from herdbook.align.chat import ChatFormat
from herdbook.align.config import SftConfig
from herdbook.align.data import (
    Conversation,
    Skipped,
    Tokenized,
    data_files,
    read_conversations,
    require_commercial_sources,
    tokenize,
)  # fmt: skip
from herdbook.align.packing import collate, pack
from herdbook.align.pairs import corpus_pairs
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.files import write_text
from herdbook.interop.doors import load_decoder, read_shape, require_tokenizer
from herdbook.interop.licenses import license_of
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import Tokenizer
from herdbook.train.batching import cut, micro_batch_size
from herdbook.train.loop import open_run, train
from herdbook.train.losses import IGNORED, HeadLoss
from herdbook.train.machine import decide
from herdbook.train.result import write_model, write_plan
from herdbook.train.task import Loss, MicroBatch, Setting, Task
from herdbook.units import human_count, human_seconds

PAIRS = "pairs.jsonl"


@dataclass
class FineTuning(Task):
    """Next-token prediction on answers; a task of the loop.

    Attributes:
        rows: of sample numbers, over all epochs in order.
        rows_per_step, width: a step's rows, and the tokens of each (one more than are computed on).
    """

    samples: Sequence[Tokenized]
    rows: list[list[int]]
    steps: int
    rows_per_step: int
    width: int
    micro_batch: int
    pad_id: int
    name: str = "fine-tuning"
    head_loss: HeadLoss = field(default_factory=HeadLoss)
    left_out: list[tuple[int, int]] = field(default_factory=list)

    @property
    def tokens_per_step(self) -> int:
        """Tokens computed on in a step: questions, answers and padding."""
        return self.rows_per_step * (self.width - 1)

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The rows of a step; the last step is filled up with empty rows, so that all have one shape."""
        rows = self.rows[step * self.rows_per_step : (step + 1) * self.rows_per_step]
        filled = [*rows, *([[]] * (self.rows_per_step - len(rows)))]
        tensors = collate([[self.samples[number].sample for number in row] for row in filled], self.width, pad_id=self.pad_id)
        return cut(tensors, self.micro_batch)

    def loss(self, model: Decoder, batch: MicroBatch) -> Loss:
        """Summed cross-entropy of the answers' tokens."""
        x_BTD = model.hidden(batch["tokens"], documents_BT=batch["documents"])
        trained_BT = batch["targets"] != IGNORED
        targets_N = batch["targets"][trained_BT]
        rows_N, z = self.head_loss(model, x_BTD[trained_BT], targets_N)
        total = rows_N.sum()
        return Loss(total + z, targets_N.numel(), {"loss": total.detach()})

    def parts(self, model: Decoder) -> list[nn.Module]:
        """The blocks; the head sees another number of positions at each step, which would be compiled again and again."""
        return list(model.blocks)

    def describe(self) -> dict[str, Any]:
        """Samples, rows, and how much of what is computed on is text and is trained on."""
        used = self.rows[: self.steps * self.rows_per_step]
        numbers = [number for row in used for number in row]
        places = self.steps * self.rows_per_step * self.width
        return {
            "steps": self.steps,
            "rows_per_step": self.rows_per_step,
            "context": self.width - 1,
            "samples": len(self.samples),
            "samples_seen": len(numbers),
            "text_share": sum(len(self.samples[number].sample.tokens) for number in numbers) / places,
            "trained_tokens": sum(sum(self.samples[number].sample.trained) for number in numbers),
        }


@dataclass(frozen=True)
class AnswerLoss:
    """Looks at samples kept aside: loss on their answers, and bits per byte of the answers' text."""

    task: FineTuning
    text_bytes: int

    @torch.no_grad()
    def __call__(self, model: Decoder) -> dict[str, float]:
        """{"val_loss": nats a trained token, "val_bits_per_byte": …}."""
        device = next(model.parameters()).device
        loss, count = 0.0, 0
        for step in range(self.task.steps):
            for batch in self.task.micro_batches(step):
                part = self.task.loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
                loss, count = loss + part.sums["loss"].item(), count + int(part.tokens)
        return {"val_loss": loss / count, "val_bits_per_byte": loss / math.log(2) / self.text_bytes}


def sft(cfg: SftConfig, model: Path, out: Path, terminal: Terminal, *, corpus: Path | None = None) -> None:
    """Fine-tune the model in `model` on conversations; leave it in `out` with its chat template.

    Args:
        corpus: where pairs are made from, unless `cfg.pairs.enabled` is false.

    Raises:
        UserError: nothing to train on, data that cannot be read, a chat format the tokenizer cannot write, checkpoints of
            another run. Interrupted: SIGINT or SIGTERM; all is saved.
    """
    if cfg.commercial:
        require_commercial_sources(model, cfg.data, corpus if cfg.pairs.enabled else None)
    config = cfg.identity()
    inputs = [(model, "pretrain"), *([(corpus, "corpus")] if corpus is not None else [])]
    files = [(file, "conversations") for data in cfg.data for file in data_files(data.path)]
    if pedigree.is_current(out, config, [*inputs, *files]):
        terminal.say(f"{out}: fine-tuned already, with these settings on these inputs")
        return
    shape, context = _context(cfg, read_shape(model))
    chat = choose_format(require_tokenizer(model), cfg.chat)
    identity = {
        "sft": cfg.identity(),
        "chat_template": chat.template,
        "inputs": {str(path): pedigree.fingerprint(path, role, out).sha256 for path, role in [*inputs, *files]},
    }
    with open_run(out, identity, terminal) as checkpoint, pedigree.record(out, "sft", config) as rec:
        samples, skipped = gather(cfg, chat, corpus, context=context, terminal=terminal)
        training, aside = _split(samples, cfg)
        rows_per_step = cfg.tokens_per_step // context
        per_token = shape.flops_per_token(context)
        task = _task(cfg, training, chat, context=context, rows_per_step=rows_per_step)
        before = checkpoint.facts["machine"] if checkpoint is not None else None
        machine = decide(cfg, flops=per_token * task.steps * task.tokens_per_step, before=before)
        wanted = cfg.micro_batch if checkpoint is None else checkpoint.micro_batch(cfg.micro_batch)
        task.micro_batch = micro_batch_size(
            wanted,
            sequences=rows_per_step,
            context=context,
            model=shape,
            device=machine.device,
            dtype=machine.dtype,
            eager=not machine.compiled,
        )
        plan = write_plan(task, shape, machine, out, context=context, micro_batch=task.micro_batch,
                          epochs={"conversations": task.describe()["samples_seen"] / len(training)})  # fmt: skip
        _announce(task, chat, plan.estimated_s, terminal)
        for path, role in inputs:
            rec.add_input(path, role)
        _note_data(cfg, training, skipped, out, rec)
        _note_licenses(cfg, model, training, rec)
        setting = Setting(identity, per_token, machine.peak_flops(), validate=_validation(aside, task))
        network = load_decoder(model)
        outcome = train(network, task, cfg, setting, machine, out, terminal, checkpoint=checkpoint)
        terminal.say(write_model(network, outcome, setting, machine, task, out, rec, tokenizer=chat.tokenizer))
        rec.notes["chat_format"] = chat.name
        rec.counts["trained_tokens"] = task.describe()["trained_tokens"]


def choose_format(tokenizer: Tokenizer, wanted: str | None) -> ChatFormat:
    """The wanted format, else the model's own, else ChatML where the tokenizer has its tokens, else plain."""
    if wanted is not None or tokenizer.chat_template is not None:
        return ChatFormat(tokenizer, wanted)
    return ChatFormat(tokenizer, "chatml" if tokenizer.token_id("<|im_end|>") in tokenizer.special_ids else "plain")


def gather(
    cfg: SftConfig, chat: ChatFormat, corpus: Path | None, *, context: int, terminal: Terminal
) -> tuple[list[Tokenized], Skipped]:
    """All samples that can be trained on, and what was left out, of which a person is warned.

    Raises UserError when nothing is left.
    """
    skipped = Skipped()
    conversations: list[Conversation] = []
    for data in cfg.data:
        conversations += list(read_conversations(data.path, skipped, license_id=data.license)) * data.weight
    if corpus is not None and cfg.pairs.enabled:
        conversations += corpus_pairs(corpus, cfg.pairs)
    samples = tokenize(conversations, chat, skipped, system=cfg.system, longest=context + 1)
    if not samples:
        why = "; ".join(skipped.lines()) or "no data is named, and the corpus gives no pairs"
        todo = "name a .jsonl of conversations with sft.data=FILE; docs/alignment.md shows the forms"
        raise UserError(f"there is nothing to fine-tune on: {why}", where="sft.data", todo=todo)
    skipped.warn(terminal)
    return samples, skipped


def _context(cfg: SftConfig, shape: ModelConfig) -> tuple[ModelConfig, int]:
    """The model's shape and the tokens of a row. Raises UserError when they do not fit each other."""
    context = cfg.context or min(shape.context, cfg.tokens_per_step)
    if context > shape.context:
        raise UserError(f"sft.context ({context}) is longer than the model's context ({shape.context})",
                        todo="lower sft.context")  # fmt: skip
    if cfg.tokens_per_step % context:
        raise UserError(f"sft.tokens_per_step ({cfg.tokens_per_step}) is not a multiple of the context ({context})",
                        todo=f"take {max(1, round(cfg.tokens_per_step / context)) * context}")  # fmt: skip
    return shape, context


def _split(samples: list[Tokenized], cfg: SftConfig) -> tuple[list[Tokenized], list[Tokenized]]:
    """Samples to train on and samples to look at; all from one document or line are on the same side."""
    aside = [
        sample for sample in samples
        if xxhash.xxh3_64_intdigest(sample.conversation.origin.encode(), seed=cfg.seed) / 2**64 < cfg.heldout
    ]  # fmt: skip
    if len(aside) == len(samples):
        return samples, []
    origins = {sample.conversation.origin for sample in aside}
    return [sample for sample in samples if sample.conversation.origin not in origins], aside[: cfg.eval_sequences * 4]


def _task(cfg: SftConfig, samples: list[Tokenized], chat: ChatFormat, *, context: int, rows_per_step: int) -> FineTuning:
    """The rows of all epochs, the last one perhaps in part, and how many steps they take."""
    lengths = [len(sample.sample.tokens) for sample in samples]
    rows: list[list[int]] = []
    for epoch in range(math.ceil(cfg.epochs)):
        packed = pack(lengths, context + 1, seed=xxhash.xxh3_64_intdigest(f"{cfg.seed} {epoch}".encode()))
        rows += packed[: math.ceil(len(packed) * min(1.0, cfg.epochs - epoch))]
    steps = math.ceil(len(rows) / rows_per_step)
    if cfg.tokens is not None:
        steps = min(steps, max(1, cfg.tokens // (rows_per_step * context)))
    head_loss = HeadLoss(cfg.z_loss, cfg.loss_chunk)
    return FineTuning(
        samples, rows, steps, rows_per_step, context + 1, rows_per_step, _pad_id(chat.tokenizer), head_loss=head_loss
    )


def _pad_id(tokenizer: Tokenizer) -> int:
    """An id to fill rows with; which one does not matter, since it is neither seen nor trained on."""
    return next((index for index in (tokenizer.pad_id, tokenizer.eos_id) if index is not None), 0)


def _validation(aside: list[Tokenized], task: FineTuning) -> AnswerLoss | None:
    if not aside:
        return None
    rows = pack([len(sample.sample.tokens) for sample in aside], task.width, seed=0)
    steps = math.ceil(len(rows) / task.rows_per_step)
    look = FineTuning(aside, rows, steps, task.rows_per_step, task.width, task.micro_batch, task.pad_id)
    answers = (
        message["content"].strip()
        for sample in aside for message in sample.conversation.messages if message["role"] == "assistant"
    )  # fmt: skip
    return AnswerLoss(look, sum(len(answer.encode()) for answer in answers))


def _announce(task: FineTuning, chat: ChatFormat, seconds: float | None, terminal: Terminal) -> None:
    facts = task.describe()
    terminal.say(
        f"{facts['samples']:,} samples in the {chat.name} format, {human_count(facts['trained_tokens'])} trained tokens "
        f"in {task.steps:,} steps, about {human_seconds(seconds or 0)}; {1 - facts['text_share']:.0%} of the rows is padding"
    )


def _note_data(cfg: SftConfig, samples: list[Tokenized], skipped: Skipped, out: Path, rec: pedigree.Record) -> None:
    """Inputs and counts in the pedigree, and the pairs with their documents beside the model."""
    for data in cfg.data:
        for file in data_files(data.path):
            rec.add_input(file, "conversations", license_id=data.license)
    pairs = [sample.conversation for sample in samples if sample.conversation.kind is not None]
    if pairs:
        lines = (
            json.dumps({"messages": pair.messages, "document": pair.origin, "kind": pair.kind}, ensure_ascii=False) + "\n"
            for pair in pairs
        )
        write_text(out / PAIRS, "".join(lines))
    kinds = Counter(sample.conversation.kind or "conversation" for sample in samples)
    rec.counts.update(samples=len(samples), samples_by_kind=dict(sorted(kinds.items())), skipped=skipped.counts)
    rec.notes["skipped_lines"] = skipped.where


def _note_licenses(cfg: SftConfig, model: Path, samples: list[Tokenized], rec: pedigree.Record) -> None:
    """The model's licences, those of the files, and those of the documents that pairs were made from."""
    if pedigree.exists(model):
        rec.inherit_licenses(model)
    rec.add_license(license_of(model).id)
    for data in cfg.data:
        rec.add_license(data.license)
    for license_id in sorted({sample.conversation.license or "" for sample in samples if sample.conversation.kind}):
        rec.add_license(license_id or None)
