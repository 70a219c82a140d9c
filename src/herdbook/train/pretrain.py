"""Pre-training: next-token prediction over the mixture of sources, and the station `pretrain/` around it.

Every position of every sequence is trained on. Which sequences make up a step is a pure function of (seed, step) in
`tokens/loader.py`. With `document_mask` a token sees only its own document; without it, as in LLaMA, a sequence may hold the
end of one document and the start of the next, parted by the end-of-text token, and attention takes its fastest path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import Tokenizer
from herdbook.tokens.loader import Mixture, read_index
from herdbook.train.batching import cut, micro_batch_size
from herdbook.train.config import TrainConfig
from herdbook.train.loop import open_run, train
from herdbook.train.losses import HeadLoss
from herdbook.train.machine import decide
from herdbook.train.result import write_model, write_plan
from herdbook.train.task import MicroBatch, Setting
from herdbook.train.validation import load_validation


@dataclass
class Pretraining:
    """Next-token prediction over a mixture; a task of the loop.

    Attributes:
        sequences: in a step.
        micro_batch: sequences computed at once.
    """

    mixture: Mixture
    steps: int
    sequences: int
    context: int
    micro_batch: int
    document_mask: bool
    name: str = "pre-training"
    head_loss: HeadLoss = field(default_factory=HeadLoss)

    @property
    def tokens_per_step(self) -> int:
        """Tokens computed on, and trained on, in a step."""
        return self.sequences * self.context

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The sequences of a step, (micro_batch, T+1) each, with their documents where those are masked."""
        batch = self.mixture.batch(step, self.sequences)
        tensors = {"tokens": torch.from_numpy(batch.tokens_BT)}
        if self.document_mask:
            tensors["documents"] = torch.from_numpy(batch.documents_BT)
        return cut(tensors, self.micro_batch)

    def loss(self, model: Decoder, batch: MicroBatch) -> tuple[Tensor, int]:
        """Summed cross-entropy of each token given those before it, and the number of tokens."""
        tokens_BT, targets_BT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        documents = batch.get("documents")
        x_BTD = model.hidden(tokens_BT, documents_BT=None if documents is None else documents[:, :-1])
        return self.head_loss(model, x_BTD, targets_BT), targets_BT.numel()

    def parts(self, model: Decoder) -> list[nn.Module]:
        """The blocks, and the head with its loss."""
        return [*model.blocks, self.head_loss]

    def epochs(self) -> dict[str, float]:
        """How often the whole run goes through each source."""
        return self.mixture.epochs(self.steps * self.sequences)

    def describe(self) -> dict[str, Any]:
        """Steps, sequences, and how often each source is gone over."""
        return {
            "steps": self.steps,
            "sequences_per_step": self.sequences,
            "context": self.context,
            "document_mask": self.document_mask,
            "epochs": self.epochs(),
        }


def pretrain(
    cfg: TrainConfig, model: ModelConfig, tokens: Path, tokenizer: Path, out: Path, terminal: Terminal,
    *, corpus: Path | None = None,
) -> None:  # fmt: skip
    """Pre-train a model on `tokens` and leave it in `out` as a Hugging Face folder; goes on from a checkpoint found there.

    Args:
        model: its shape; a vocabulary left open follows the tokenizer.
        tokens: folder of the station `tokens`; `tokenizer`: the one it was made with.
        corpus: its held-out documents are looked at while training.

    Raises:
        UserError: inputs that do not fit each other, checkpoints of another run, a loss that is no longer finite.
        Interrupted: SIGINT or SIGTERM; all is saved.
    """
    config = {"train": cfg.identity(), "model": model.model_dump(mode="json")}
    inputs = [(tokens, "tokens"), (tokenizer, "tokenizer"), *([(corpus, "corpus")] if corpus is not None else [])]
    if pedigree.is_current(out, config, inputs):
        terminal.say(f"{out}: trained already, with these settings on these tokens")
        return
    words = Tokenizer.load(tokenizer)
    index = read_index(tokens)
    shape = model.resolved(words.vocab_size)
    sequences, context = _step_shape(cfg, shape)
    identity = {
        "train": cfg.identity(),
        "model": shape.model_dump(mode="json"),
        "inputs": {role: pedigree.fingerprint(path, role, out).sha256 for path, role in inputs[:2]},
    }
    with open_run(out, identity, terminal) as checkpoint, pedigree.record(out, "pretrain", config) as rec:
        for path, role in inputs:
            rec.add_input(path, role)
        rec.inherit_licenses(tokens)
        mixture = Mixture(tokens, context=context, seed=cfg.seed, tokenizer=tokenizer)
        per_token = shape.flops_per_token(context)
        before = checkpoint.facts["machine"] if checkpoint is not None else None
        machine = decide(cfg, flops=per_token * cfg.steps * cfg.tokens_per_step, before=before)
        wanted = cfg.micro_batch if checkpoint is None else checkpoint.micro_batch(cfg.micro_batch)
        size = micro_batch_size(wanted, sequences=sequences, context=context, model=shape, device=machine.device,
                                dtype=machine.dtype)  # fmt: skip
        task = Pretraining(mixture, cfg.steps, sequences, context, size, cfg.document_mask)
        plan = write_plan(task, shape, machine, out, context=context, micro_batch=size, epochs=task.epochs())
        plan.show(terminal)
        separator = int(index["separator_id"])
        validate = load_validation(corpus, words, separator_id=separator, context=context, sequences=cfg.eval_sequences)
        setting = Setting(identity, per_token, machine.peak_flops(), _bytes_per_token(index), validate, size)
        network = Decoder(shape)
        network.init_weights(torch.Generator().manual_seed(cfg.seed))
        outcome = train(network, task, cfg, setting, machine, out, terminal, checkpoint=checkpoint)
        line = write_model(network, outcome, setting, machine, task, out, rec, tokenizer=words)
        terminal.say(line)


def _step_shape(cfg: TrainConfig, shape: ModelConfig) -> tuple[int, int]:
    """Sequences a step and tokens a sequence. Raises UserError when they do not fit each other or the model."""
    context = cfg.context or shape.context
    if context > shape.context:
        raise UserError(f"train.context ({context}) is longer than the model's context ({shape.context})",
                        todo="raise model.context, or lower train.context")  # fmt: skip
    if cfg.tokens_per_step % context:
        raise UserError(f"train.tokens_per_step ({cfg.tokens_per_step}) is not a multiple of the context ({context})",
                        todo=f"take {max(1, round(cfg.tokens_per_step / context)) * context}")  # fmt: skip
    return cfg.tokens_per_step // context, context


def _bytes_per_token(index: dict[str, Any]) -> float | None:
    """Text bytes a token stands for, over all sources as they are weighted by their size."""
    tokens = sum(source["tokens"] for source in index["sources"].values())
    size = sum(source["bytes"] for source in index["sources"].values())
    return size / tokens if tokens and size else None
