"""Checkpoints by torch.distributed.checkpoint: whole or absent, checked when read, the newest few kept.

`checkpoint-000100/` holds `state/` (weights and optimizer, in the format of torch.distributed.checkpoint, so that a run on
other devices can read it) and `checkpoint.json` (step, seed, what the run is, the hashes of the files). Random numbers and
the order of the data follow from seed and step, so those two are all the random state there is. A checkpoint is written
aside, synced to disk and renamed: `kill -9` at any moment leaves the one before in place; `latest` names the newest. One
whose files are missing or changed is passed over for the one before it. Read only checkpoints that you or people you trust
have written: torch's format has a pickled index.
"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import xxhash
from torch import nn

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.files import atomic_folder, read_json, sync, write_json, write_text
from herdbook.units import human_bytes

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException

LATEST = "latest"
FACTS = "checkpoint.json"
STATE = "state"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk that was found whole.

    Attributes:
        step: updates done when it was written.
        facts: what else the loop noted: `seed`, `identity`, `machine`, `micro_batch`, `elapsed_s`, `validation`.
    """

    path: Path
    step: int
    facts: dict[str, Any]

    def micro_batch(self, wanted: Literal["auto"] | int) -> Literal["auto"] | int:
        """What the config wants, or for `auto` what it came to before: sums in another order would round differently."""
        found: Literal["auto"] | int = self.facts.get("micro_batch") or wanted
        return found if wanted == "auto" else wanted


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


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that changes while training, by names that do not depend on how it is spread over devices."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}


def save_checkpoint(
    out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any], *, keep: int
) -> Path:
    """Write `checkpoint-STEP/` whole, point `latest` to it, and delete all but the newest `keep`."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    target = checkpoint_path(out, step)
    with atomic_folder(target) as aside:
        state = aside / STATE
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                save(_snapshot(model, optimizer), checkpoint_id=state, no_dist=True)
        except CheckpointException as error:
            raise _not_written(target, error) from error
        files = {path.name: {"bytes": path.stat().st_size, "xxh3": _hash_file(path)} for path in sorted(state.iterdir())}
        write_json(aside / FACTS, {"version": 1, "step": step, "files": files, **facts})
        sync(state)
        sync(aside)
    write_text(out / LATEST, target.name + "\n")
    # What is newer than this one was found broken when the run was taken up again, or it would have gone on from there.
    earlier = [old for old in _steps_on_disk(out) if old <= step]
    for old in {*_steps_on_disk(out)} - {*earlier[:keep]}:
        shutil.rmtree(checkpoint_path(out, old))
    return target


def _not_written(target: Path, error: CheckpointException) -> Exception:
    """What a failure to write means to a person; torch hides the system's error behind others of its own."""
    causes = [failure for failure, _ in error.failures.values()]
    for cause in causes:
        if isinstance(cause, OSError):
            return cause
    free = human_bytes(shutil.disk_usage(target.parent).free)
    return UserError(
        f"the checkpoint could not be written ({causes[0] if causes else error})",
        where=target,
        todo=f"free some space ({free} left), then run the same command again: the checkpoint before it is kept",
    )


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
    """Put weights and optimizer back as they were. Raises UserError when they do not fit the model."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    state = _snapshot(model, optimizer)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(state, checkpoint_id=checkpoint.path / STATE, no_dist=True)
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise UserError(f"this checkpoint does not fit the model ({error})", where=checkpoint.path,
                        todo="train into another folder, or delete this one's checkpoints") from error  # fmt: skip
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


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
