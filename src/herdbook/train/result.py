"""What every training station leaves besides checkpoints: the plan, the model folder, the counts in the pedigree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from herdbook import pedigree
from herdbook.files import write_json
from herdbook.interop.hf import save_folder
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.plan.plan import Plan, plan_training
from herdbook.tokenizer import Tokenizer
from herdbook.train.machine import Machine
from herdbook.train.progress import summary
from herdbook.train.task import Outcome, Setting, Task


def write_plan(
    task: Task, shape: ModelConfig, machine: Machine, out: Path, *, context: int, micro_batch: int,
    epochs: Mapping[str, float],
) -> Plan:  # fmt: skip
    """What the run will take, also left in plan.json.

    Args:
        micro_batch: sequences computed at once.
        epochs: how often each source is gone through.
    """
    plan = plan_training(
        shape,
        tokens=task.tokens_after(task.steps),
        steps=task.steps,
        tokens_per_step=task.tokens_per_step,
        context=context,
        flops_per_s=machine.expected_flops(),
        epochs=epochs,
        micro_batch_tokens=micro_batch * context,
        activation_bytes_per_value=machine.dtype.itemsize,
    )
    write_json(out / "plan.json", plan.as_dict())
    return plan


def write_model(
    network: Decoder, outcome: Outcome, setting: Setting, machine: Machine, task: Task, out: Path, rec: pedigree.Record,
    *, tokenizer: Tokenizer,
) -> str:  # fmt: skip
    """Write the trained model as a Hugging Face folder, note the run's counts in its pedigree; the run in one line."""
    save_folder(network.cpu(), out, tokenizer=tokenizer, license_id=rec.license.id)
    rec.counts.update(
        parameters=network.cfg.parameters(),
        tokens=outcome.tokens,
        steps=outcome.steps,
        flops=outcome.tokens * setting.flops_per_token,
        final_loss=outcome.final_loss,
        train_s=outcome.train_s,
        tokens_per_s=outcome.tokens_per_s,
        peak_flops_per_s=setting.peak_flops,
        mfu=outcome.mfu,
        **outcome.validation,
    )
    rec.notes["task"] = task.describe()
    rec.notes["training"] = machine.as_dict()
    return summary(outcome)
