"""Checkpoints by torch.distributed.checkpoint: whole or absent, checked when read, the newest few kept.

`checkpoint-000100/` holds `state/` (weights, optimizer and random state, in the format of torch.distributed.checkpoint, so
that runs on several devices can read it) and `checkpoint.json` (step, what the run is, the hashes of the files). It is
written aside, synced to disk and renamed, so `kill -9` at any moment leaves the one before in place; `latest` names the
newest. A checkpoint whose files are missing or changed is skipped for the one before it. Read only checkpoints that you or
people you trust have written: torch's format has a pickled index.
"""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.files import atomic_folder, read_json, write_json, write_text

LATEST = "latest"
FACTS = "checkpoint.json"
STATE = "state"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk that was found whole.

    Attributes:
        step: updates done when it was written.
        facts: what else the loop noted (`identity`, `resolved`, `elapsed_s`).
    """

    path: Path
    step: int
    facts: dict[str, Any]


def checkpoint_path(out: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` updates."""
    return out / f"checkpoint-{step:06d}"


def _steps_on_disk(out: Path) -> list[int]:
    """Steps of the checkpoints in `out`, newest first, whole or not."""
    names = [path.name.removeprefix("checkpoint-") for path in out.glob("checkpoint-*") if path.is_dir()]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _hash_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _random_state() -> dict[str, Any]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that changes while training, by names that do not depend on how it is spread over devices."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer),
            "random": _random_state()}  # fmt: skip


def save_checkpoint(
    out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any], *, keep: int
) -> Path:
    """Write `checkpoint-STEP/` whole, point `latest` to it, and delete all but the newest `keep`."""
    import torch.distributed.checkpoint as dcp

    target = checkpoint_path(out, step)
    with atomic_folder(target) as aside:
        state = aside / STATE
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.save(_snapshot(model, optimizer), checkpoint_id=state, no_dist=True)
        files = {path.name: {"bytes": path.stat().st_size, "xxh3": _hash_file(path)} for path in sorted(state.iterdir())}
        write_json(aside / FACTS, {"version": 1, "step": step, "files": files, **facts})
        _sync(state)
        _sync(aside)
    write_text(out / LATEST, target.name + "\n")
    for old in _steps_on_disk(out)[keep:]:
        shutil.rmtree(checkpoint_path(out, old))
    return target


def find_checkpoint(out: Path, terminal: Terminal) -> Checkpoint | None:
    """The newest whole checkpoint in `out`, or None. Warns of each broken one that is passed over."""
    for step in _steps_on_disk(out):
        path = checkpoint_path(out, step)
        try:
            return _check(path, step)
        except UserError as error:
            terminal.warn(f"{error.render()}; going on from the checkpoint before it")
    return None


def _check(path: Path, step: int) -> Checkpoint:
    """The checkpoint at `path`. Raises UserError when it is not whole."""
    facts = read_json(path / FACTS, what="checkpoint")
    if not isinstance(facts, dict) or facts.get("version") != 1 or facts.get("step") != step or not facts.get("files"):
        raise UserError("this is not a checkpoint of this version of herdbook", where=path)
    for name, row in facts["files"].items():
        file = path / STATE / name
        if not file.is_file():
            raise UserError(f"the file {name} of this checkpoint is missing", where=path)
        if file.stat().st_size != row["bytes"] or _hash_file(file) != row["xxh3"]:
            raise UserError(f"the file {name} of this checkpoint is broken", where=path)
    return Checkpoint(path, step, facts)


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights, optimizer and random state back as they were. Raises UserError when they do not fit the model."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

    state = _snapshot(model, optimizer)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, checkpoint_id=checkpoint.path / STATE, no_dist=True)
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise UserError(f"this checkpoint does not fit the model ({error})", where=checkpoint.path,
                        todo="train into another folder, or delete this one's checkpoints") from error  # fmt: skip
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    torch.set_rng_state(state["random"]["cpu"])
    if "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"])


def discard_checkpoints(out: Path) -> None:
    """Delete all checkpoints in `out`, so that the next run there starts anew."""
    (out / LATEST).unlink(missing_ok=True)
    for step in _steps_on_disk(out):
        shutil.rmtree(checkpoint_path(out, step))


def require_same(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Raise UserError that names what differs, when a checkpoint belongs to a run with other settings or inputs."""
    before = _flatten(checkpoint.facts.get("identity", {}))
    now = _flatten(identity)
    changed = [
        f"{key}: {before.get(key)!r} → {now.get(key)!r}" for key in sorted({*before, *now}) if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            "the checkpoints here are of a run with other settings:\n  " + "\n  ".join(changed),
            where=checkpoint.path.parent,
            todo="put the settings back to go on, choose another folder with out=DIR, or delete this one to start anew",
        )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
