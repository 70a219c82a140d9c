"""Pre-training: next-token prediction over the mixture of sources, and the station `pretrain/` around it.

Every position of every sequence is trained on. Which sequences make up a step is a pure function of (seed, step) in
`tokens/loader.py`. With `document_mask` a token sees only its own document; without it, as in LLaMA, a sequence may hold the
end of one document and the start of the next, parted by the end-of-text token, and attention takes its fastest path.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
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
from herdbook.train.checkpoint import Checkpoint
from herdbook.train.config import TrainConfig
from herdbook.train.loop import open_run, train
from herdbook.train.losses import IGNORED, HeadLoss
from herdbook.train.machine import Machine, choose_device, decide
from herdbook.train.parallel.config import Layout
from herdbook.train.parallel.shard import Spread, collect_decoder, empty_decoder, held, materialize, parallelize
from herdbook.train.parallel.world import World, joined
from herdbook.train.result import write_model, write_plan
from herdbook.train.schedule import BatchPlan, plan_batches
from herdbook.train.task import Loss, MicroBatch, Setting, Task
from herdbook.train.validation import load_validation


@dataclass
class Pretraining(Task):
    """Next-token prediction over a mixture; a task of the loop."""

    mixture: Mixture
    batches: BatchPlan
    micro_batch: int
    document_mask: bool
    name: str = "pre-training"
    head_loss: HeadLoss = field(default_factory=HeadLoss)
    left_out: list[tuple[int, int]] = field(default_factory=list)

    @property
    def steps(self) -> int:  # type: ignore[override]  # follows from the plan
        """Updates of the weights in the whole run."""
        return self.batches.steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens computed on, and trained on, in a step of full size."""
        return self.batches.sequences * self.batches.context

    def tokens_after(self, steps: int) -> int:
        """Tokens of the first `steps` steps."""
        return self.batches.tokens_after(steps)

    def sequences(self, step: int) -> range:
        """The numbers of a step's sequences, beyond those left out."""
        planned = self.batches.of(step)
        shift = sum(count for at, count in self.left_out if at <= step)
        return range(planned.start + shift, planned.stop + shift)

    def own_sequences(self, step: int) -> range:
        """Those that this process takes: as many as each other, next to each other."""
        every, (number, parts) = self.sequences(step), self.share
        size = len(every) // parts
        return every[number * size : (number + 1) * size]

    def leave_out(self, first: int, last: int) -> int:
        """Never train on the data of steps `first` … `last`: step `first` takes what follows. Gives the sequences left out."""
        begin, end = self.sequences(first).start, self.sequences(last).stop
        self.left_out = [*((at, count) for at, count in self.left_out if at <= first), (first, end - begin)]
        return end - begin

    def documents(self, step: int) -> list[dict[str, Any]]:
        """Source, id and address of each document in a step's sequences."""
        origins = [self.mixture.origin(sequence) for sequence in self.sequences(step)]
        return [
            {"sequence": origin.number, "source": origin.source, "id": document.id, "url": document.url}
            for origin in origins for document in origin.documents
        ]  # fmt: skip

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This process' sequences of a step: tokens, targets, sources, and the tokens' documents where those are masked."""
        batch = self.mixture.sequences(self.own_sequences(step))
        tensors = {
            "tokens": torch.from_numpy(batch.tokens_BT[:, :-1]),
            "targets": torch.from_numpy(batch.targets_BT),
            "sources": torch.from_numpy(batch.sources_B.astype(np.int64)),
        }
        if self.document_mask:
            tensors["documents"] = torch.from_numpy(batch.documents_BT[:, :-1])
        return cut(tensors, self.micro_batch)

    def loss(self, model: Decoder, batch: MicroBatch) -> Loss:
        """Summed cross-entropy of each token given those before it, also by source."""
        targets_BT, sources_B = batch["targets"], batch["sources"]
        x_BTD = model.hidden(batch["tokens"], documents_BT=batch.get("documents"))
        rows_B, z = (held(part) for part in self.head_loss(model, x_BTD, targets_BT))
        total, trained_B = rows_B.sum(), (targets_BT != IGNORED).sum(1)
        by_source_S = torch.zeros(2, len(self.mixture.sources), device=rows_B.device, dtype=torch.float64)
        by_source_S[0].index_add_(0, sources_B, rows_B.detach().double())
        by_source_S[1].index_add_(0, sources_B, trained_B.double())
        return Loss(total + z, trained_B.sum(), {"loss": total.detach(), "sources": by_source_S})

    def report(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        """The loss of each source that the step had tokens of."""
        rows = zip(self.mixture.sources, *sums["sources"].tolist(), strict=True)
        return {"source_loss": {name: loss / tokens for name, loss, tokens in rows if tokens}}

    def parts(self, model: Decoder) -> list[nn.Module]:
        """The blocks, the norm behind them, and the head with its loss."""
        return [*model.blocks, *([] if model.norm is None else [model.norm]), self.head_loss]

    def epochs(self) -> dict[str, float]:
        """How often the whole run goes through each source."""
        return self.mixture.epochs(self.batches.before(self.steps))

    def describe(self) -> dict[str, Any]:
        """Steps, sequences, and how often each source is gone over."""
        return {
            "steps": self.steps,
            "sequences_per_step": self.batches.sequences,
            "context": self.batches.context,
            "document_mask": self.document_mask,
            "epochs": self.epochs(),
        }


def pretrain(
    cfg: TrainConfig, model: ModelConfig, tokens: Path, tokenizer: Path, out: Path, terminal: Terminal,
    *, corpus: Path | None = None,
) -> None:  # fmt: skip
    """Pre-train a model on `tokens` and leave it in `out` as a Hugging Face folder; goes on from a checkpoint found there.

    Under torchrun every process calls this, and they share the work as `cfg.parallel` says.

    Args:
        model: its shape; a vocabulary left open follows the tokenizer.
        tokens: folder of the station `tokens`; `tokenizer`: the one it was made with.
        corpus: its held-out documents are looked at while training.

    Raises:
        UserError: inputs that do not fit each other, checkpoints of another run, a loss that is no longer finite.
        Interrupted: SIGINT or SIGTERM; all is saved.
    """
    with joined(choose_device(cfg.device)) as world:
        terminal = world.quiet(terminal)
        config = {"train": cfg.identity(), "model": model.model_dump(mode="json")}
        inputs = [(tokens, "tokens"), (tokenizer, "tokenizer"), *([(corpus, "corpus")] if corpus is not None else [])]
        if world.from_main(lambda: pedigree.is_current(out, config, inputs)):
            terminal.say(f"{out}: trained already, with these settings on these tokens")
            return
        with ExitStack() as stack:
            words = Tokenizer.load(tokenizer)
            shape = model.resolved(words.vocab_size)
            identity = {
                "train": cfg.identity(),
                "model": shape.model_dump(mode="json"),
                "inputs": {role: pedigree.fingerprint(path, role, out).sha256 for path, role in inputs[:2]},
            }
            rec: pedigree.Record | None = None
            checkpoint = world.from_main(lambda: stack.enter_context(open_run(out, identity, terminal)))
            if world.is_main:
                rec = stack.enter_context(pedigree.record(out, "pretrain", config))
                for path, role in inputs:
                    rec.add_input(path, role)
                rec.inherit_licenses(tokens)
            run = _Run(cfg, shape, words, tokens, tokenizer, corpus, out, terminal, world)
            run.train(identity, checkpoint, rec)


@dataclass
class _Run:
    """One process' part of a pre-training."""

    cfg: TrainConfig
    shape: ModelConfig
    words: Tokenizer
    tokens: Path
    tokenizer: Path
    corpus: Path | None
    out: Path
    terminal: Terminal
    world: World

    def train(self, identity: dict[str, Any], checkpoint: Checkpoint | None, rec: pedigree.Record | None) -> None:
        """Train from `checkpoint` on; the main process, which has the record, leaves the model."""
        cfg, shape, world = self.cfg, self.shape, self.world
        batches = _batches(cfg, shape)
        layout = cfg.parallel.layout(world.size)
        _require_shares(batches, layout)
        cfg.parallel.require_fit(layout, shape, sequences=batches.sequences)
        index = read_index(self.tokens)
        length = batches.tokens_after(batches.steps)
        mixture = Mixture(self.tokens, context=batches.context, seed=cfg.seed, tokenizer=self.tokenizer, length=length)
        per_token = shape.flops_per_token(batches.context)
        machine, size = world.from_main(lambda: self._decide(batches, layout, per_token, checkpoint))
        task = Pretraining(mixture, batches, size, cfg.document_mask, head_loss=HeadLoss(cfg.z_loss, cfg.loss_chunk))
        if world.is_main:
            plan = write_plan(task, shape, machine, self.out, context=batches.context, micro_batch=size, epochs=task.epochs())
            plan.show(self.terminal, sources=False)
            mixture.show(batches.before(batches.steps), self.terminal)
        validate = load_validation(
            self.corpus, self.words, separator_id=int(index["separator_id"]), context=batches.context,
            sequences=cfg.eval_sequences,
        )  # fmt: skip
        network, spread = self._network(layout, machine)
        setting = Setting(identity, per_token, machine.peak_flops() * world.size, _bytes_per_token(index), validate)
        outcome = train(
            network, task, cfg, setting, machine, self.out, self.terminal, checkpoint=checkpoint, world=world, spread=spread
        )
        whole = collect_decoder(network, world)
        if whole is not None and rec is not None:
            self.terminal.say(write_model(whole, outcome, setting, machine, task, self.out, rec, tokenizer=self.words))

    def _decide(
        self, batches: BatchPlan, layout: Layout, per_token: float, checkpoint: Checkpoint | None
    ) -> tuple[Machine, int]:
        """How the machine is used, and sequences a micro-batch: one decision for all processes."""
        before = checkpoint.facts["machine"] if checkpoint is not None else None
        flops = per_token * batches.tokens_after(batches.steps) / self.world.size
        machine = decide(self.cfg, flops=flops, before=before)
        if layout.tensor > 1:
            machine = replace(machine, compiled=False)  # matrices cut over processes are not compiled in torch 2.13
        wanted = self.cfg.micro_batch if checkpoint is None else checkpoint.micro_batch(self.cfg.micro_batch)
        size = micro_batch_size(wanted, sequences=batches.sequences // layout.data_ranks, context=batches.context,
                                model=self.shape, device=machine.device, dtype=machine.dtype,
                                eager=not machine.compiled)  # fmt: skip
        return machine, size

    def _network(self, layout: Layout, machine: Machine) -> tuple[Decoder, Spread]:
        """The model with its first weights, spread over the processes: the same weights for any layout."""
        if self.world.size == 1:
            network = Decoder(self.shape)
            network.init_weights(torch.Generator().manual_seed(self.cfg.seed), self.cfg.init)
            return network, Spread()
        network = empty_decoder(self.shape)
        spread = parallelize(network, self.cfg.parallel, layout, self.world, machine.dtype)
        materialize(network, self.world.device, self.cfg.seed, self.cfg.init)
        return network, spread


def _require_shares(batches: BatchPlan, layout: Layout) -> None:
    """Raise UserError when a step of a growing batch cannot be shared out evenly."""
    ranks = layout.data_ranks
    uneven = next((step for step in range(len(batches.growing)) if len(batches.of(step)) % ranks), None)
    if uneven is not None:
        raise UserError(
            f"the {len(batches.of(uneven))} sequences of step {uneven + 1} cannot be shared out among {ranks} processes",
            where="train.batch_ramp", todo=f"let start and increment be multiples of {ranks * batches.context} tokens",
        )  # fmt: skip


def _batches(cfg: TrainConfig, shape: ModelConfig) -> BatchPlan:
    """How many sequences each step has. Raises UserError when sizes do not fit each other or the model."""
    context = cfg.context or shape.context
    if context > shape.context:
        raise UserError(f"train.context ({context}) is longer than the model's context ({shape.context})",
                        todo="raise model.context, or lower train.context")  # fmt: skip
    return plan_batches(cfg, context)


def _bytes_per_token(index: dict[str, Any]) -> float | None:
    """Text bytes a token stands for, over all sources as they are weighted by their size."""
    tokens = sum(source["tokens"] for source in index["sources"].values())
    size = sum(source["bytes"] for source in index["sources"].values())
    return size / tokens if tokens and size else None
