"""`herdbook pedigree --batch RUN@STEP`: the documents that a step of a run was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from herdbook import pedigree
from herdbook.console import Terminal, emit
from herdbook.errors import UserError
from herdbook.files import read_json
from herdbook.tokens.loader import Mixture, Origin
from herdbook.train.config import TrainConfig
from herdbook.train.schedule import plan_batches
from herdbook.train.stability import read_events

_SHOWN = 200  # documents in the table for people


class _Run(NamedTuple):
    """What a run of pre-training was made of.

    Attributes:
        tokens: the tokens folder, and the hash it had.
    """

    folder: Path
    train: TrainConfig
    context: int
    tokens: Path
    tokens_sha256: str


def show(text: str, terminal: Terminal) -> None:
    """Print where the sequences of a step come from, as `RUN@STEP` names it; steps are counted from 1, as in metrics.jsonl.

    Raises UserError when there is no such run or step, or its tokens are not what they were.
    """
    name, at, number = text.rpartition("@")
    if not at or not number.replace("_", "").replace(",", "").isdecimal():
        raise UserError(f"this names no step: {text}", where="--batch", todo="as in --batch runs/quickstart@1200")
    run, step = _find(Path(name)), int(number.replace("_", "").replace(",", ""))
    origins = trace(run, step)
    if terminal.as_json:
        rows = [{"sequence": origin.number, "source": origin.source, "documents": [document._asdict() for document in
                 origin.documents]} for origin in origins]  # fmt: skip
        emit({"run": str(run.folder), "step": step, "sequences": rows})
        return
    lines = [
        (f"{origin.number:,}", origin.source, document.id, document.url or "", document.license, f"{document.tokens:,}")
        for origin in origins for document in origin.documents
    ]  # fmt: skip
    terminal.step(f"Step {step:,}", f"{len(origins):,} sequences of {run.context:,} tokens, {len(lines):,} documents")
    terminal.table(["sequence", "source", "document", "address", "licence", "tokens"], lines[:_SHOWN])
    if len(lines) > _SHOWN:
        terminal.say(f"and {len(lines) - _SHOWN:,} more; --json has all of them", style="dim")


def trace(run: _Run, step: int) -> list[Origin]:
    """Where the sequences of a step, counted from 1, come from."""
    batches = plan_batches(run.train, run.context)
    if not 1 <= step <= batches.steps:
        raise UserError(f"there is no step {step:,}: this run has {batches.steps:,}", where=run.folder)
    now = pedigree.fingerprint(run.tokens, "tokens", run.folder).sha256
    if now != run.tokens_sha256:
        raise UserError(
            "the tokens are not what they were when this run was trained", where=run.tokens,
            todo="bring back the folder or the mixture that it was trained with; `herdbook pedigree --verify` says more",
        )  # fmt: skip
    mixture = Mixture(run.tokens, context=run.context, seed=run.train.seed, length=batches.tokens_after(batches.steps))
    rewinds = [event for event in read_events(run.folder) if event.get("event") == "rewind"]
    left_out = rewinds[-1]["left_out"] if rewinds else []
    shift = sum(count for at, count in left_out if at <= step - 1)
    return [mixture.origin(number + shift) for number in batches.of(step - 1)]


def _find(path: Path) -> _Run:
    folder = path / "pretrain" if (path / "pretrain").is_dir() else path
    if not folder.is_dir():
        raise UserError("there is no such run", where=path, todo="give a run's folder, or that of its pre-training")
    if pedigree.exists(folder):
        manifest = pedigree.read(folder)
        tokens = next((item for item in manifest["inputs"] if item["role"] == "tokens"), None)
        if manifest["station"] != "pretrain" or tokens is None:
            raise UserError(f"this is a folder of {manifest['station']}, not of pre-training", where=folder)
        return _run(folder, manifest["config"], (folder / tokens["path"]).resolve(), str(tokens["sha256"]))
    for facts in sorted(folder.glob("checkpoint-*/checkpoint.json"), reverse=True):  # a run that has not ended
        identity = read_json(facts, what="checkpoint").get("identity", {})
        if "tokens" in identity.get("inputs", {}):
            return _run(folder, identity, folder.parent / "tokens", str(identity["inputs"]["tokens"]))
    raise UserError("there is neither a finished pre-training here nor a checkpoint of one", where=folder)


def _run(folder: Path, config: dict[str, Any], tokens: Path, sha256: str) -> _Run:
    try:
        train = TrainConfig.model_validate(config["train"])
        context = train.context or int(config["model"]["context"])
    except (ValidationError, KeyError, TypeError) as error:
        raise UserError(
            f"the settings of this run are not those of this version of herdbook ({error})", where=folder
        ) from error
    if not tokens.is_dir():
        raise UserError("the tokens of this run are not here any more", where=tokens)
    return _Run(folder, train, context, tokens, sha256)
