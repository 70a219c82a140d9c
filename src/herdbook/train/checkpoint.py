"""Checkpoints by torch.distributed.checkpoint: whole or absent, checked when read, the newest few kept.

`checkpoint-000100/` holds `state/` (weights and optimizer, in the format of torch.distributed.checkpoint, so that a run on
other devices or another number of processes can read it) and `checkpoint.json` (step, seed, what the run is, the hashes of
the files). Random numbers and the order of the data follow from seed and step, so those two are all the random state there
is. A checkpoint is written aside, synced to disk and renamed: `kill -9` at any moment leaves the one before in place;
`latest` names the newest. One whose files are missing or changed is passed over for the one before it. Read only checkpoints
that you or people you trust have written: torch's format has a pickled index.

With several processes each writes its slices and their hashes, and the main one renames when all have. A `CheckpointWriter`
does all of that beside training: only the copy of weights and moments to other memory is on the training thread.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import xxhash
from torch import nn

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.files import atomic_folder, read_json, sync, write_json, write_text
from herdbook.train.parallel.world import World
from herdbook.units import human_bytes

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException

LATEST = "latest"
FACTS = "checkpoint.json"
STATE = "state"
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]  # one, or several that share out the parameters
HASHED_AT_ONCE = 8  # files; hashing waits for the disk


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


def _state(model: nn.Module, optimizer: Optimizers) -> dict[str, Any]:
    """All that changes while training, by names that do not depend on how it is spread over devices; not copied."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.reshard()  # a look at held-out text leaves weights collected
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}


def save_checkpoint(
    out: Path, step: int, model: nn.Module, optimizer: Optimizers, facts: dict[str, Any], *, keep: int,
    world: World | None = None,
) -> Path:  # fmt: skip
    """Write `checkpoint-STEP/` whole, point `latest` to it, and delete all but the newest `keep`.

    With several processes all have to call it together, and `out` has to be a folder that they share. Raises on all of them
    what any of them meets.
    """
    return _write(out, step, _state(model, optimizer), facts, keep, world or World())


class CheckpointWriter:
    """Writes checkpoints beside training, at most one at a time.

    The state is copied to memory of the CPU when `save` is called, once more than the weights and moments of this process
    take; serialising, hashing, syncing and renaming go on while training does. An error of that is raised by the next
    `save` or by `finish`; the checkpoint before is kept.

    Args:
        background: False writes while the caller waits and takes no memory.
        world: all processes have to call `save` and `finish` at the same steps.
    """

    def __init__(
        self, out: Path, model: nn.Module, optimizer: Optimizers, *, keep: int, world: World | None = None,
        background: bool = True,
    ) -> None:  # fmt: skip
        self.out, self.model, self.optimizer, self.keep = out, model, optimizer, keep
        self.world, self.background = world or World(), background
        self._pending: Future[Path] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._copy: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def save(self, step: int, facts: dict[str, Any]) -> None:
        """Have `checkpoint-STEP/` written. Waits for the one before, and raises what went wrong with it."""
        self.finish()
        state = _state(self.model, self.optimizer)
        if not self.background:
            _write(self.out, step, state, facts, self.keep, self.world)
            return
        if self._copy is None:
            self._copy = _copier()
        self._pending = self._thread.submit(_write, self.out, step, self._copy(state), facts, self.keep, self.world)

    def finish(self) -> None:
        """Wait until the checkpoint under way is whole. Raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for what is under way and let go of the thread; for the end of a run that ended otherwise, so silent."""
        pending, self._pending = self._pending, None
        self._thread.shutdown(wait=True)
        if pending is not None:
            pending.exception()


def _copier() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Copies a state to memory of the CPU, the same memory each time."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    fast = torch.cuda.is_available()  # pinned memory, and copies that overlap one another
    options = StagingOptions(
        use_pinned_memory=fast, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=fast
    )
    stager = DefaultStager(options)

    def copy(state: dict[str, Any]) -> dict[str, Any]:
        copied = stager.stage(state)
        assert isinstance(copied, dict)  # a Future only when staging is asynchronous
        return copied

    return copy


def _write(out: Path, step: int, state: dict[str, Any], facts: dict[str, Any], keep: int, world: World) -> Path:
    """Write a state: every process its slices, then the main one names, syncs and renames, and deletes old ones."""
    target, group = checkpoint_path(out, step), world.background
    with ExitStack() as stack:
        aside = world.from_main(lambda: stack.enter_context(atomic_folder(target)), group)
        if not all(world.gather(aside.is_dir(), group)):
            raise UserError("not all processes see the folder of the run", where=out,
                            todo="take a folder that all machines share, with out=DIR")  # fmt: skip
        error: Exception | None = None
        files: dict[str, Any] = {}
        try:
            files = _write_slices(aside, state, world)
        except Exception as met:
            error = met
        world.require_all(error, group)
        everyones = world.gather(files, group)

        def seal() -> None:
            rows = {name: row for part in everyones for name, row in part.items()}
            write_json(aside / FACTS, {"version": 1, "step": step, "files": dict(sorted(rows.items())), **facts})
            sync(aside / STATE)
            sync(aside)
            stack.close()  # renames
            write_text(out / LATEST, target.name + "\n")
            _prune(out, step, keep)

        world.from_main(seal, group)
    return target


def _write_slices(aside: Path, state: dict[str, Any], world: World) -> dict[str, Any]:
    """Write what this process holds of a state; sizes and hashes of its files."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    _no_news()
    folder = aside / STATE
    try:
        save(state, checkpoint_id=folder, process_group=world.background, no_dist=world.size == 1)
    except CheckpointException as error:
        raise _not_written(aside, error) from error
    mine = [*folder.glob(f"__{world.rank}_*"), *(folder.glob(".metadata") if world.is_main else ())]
    return {path.name: {"bytes": path.stat().st_size, "xxh3": _hash_file(path)} for path in mine}


def _prune(out: Path, step: int, keep: int) -> None:
    # What is newer than this one was found broken when the run was taken up again, or it would have gone on from there.
    earlier = [old for old in _steps_on_disk(out) if old <= step]
    for old in {*_steps_on_disk(out)} - {*earlier[:keep]}:
        shutil.rmtree(checkpoint_path(out, old))


def _no_news() -> None:
    """Keep torch from telling that one process needs no process group."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


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

    def whole(name: str) -> bool:
        file, row = path / STATE / name, facts["files"][name]
        if not file.is_file():
            raise UserError(f"the file {name} of this checkpoint is missing", where=path)
        return bool(file.stat().st_size == row["bytes"] and _hash_file(file) == row["xxh3"])

    with ThreadPoolExecutor(HASHED_AT_ONCE) as threads:
        for name, is_whole in zip(facts["files"], threads.map(whole, facts["files"]), strict=True):
            if not is_whole:
                raise UserError(f"the file {name} of this checkpoint is broken", where=path)
    return Checkpoint(path, step, facts)


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizers, world: World | None = None) -> None:
    """Put weights and optimizer back as they were, whatever number of processes wrote them and reads them.

    Raises UserError when they do not fit the model.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    world = world or World()
    state = _state(model, optimizer)
    _no_news()
    try:
        load(
            state, checkpoint_id=checkpoint.path / STATE, process_group=world.background, no_dist=world.size == 1
        )  # each process reads its slices
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
