"""The verbs that work one station of the road."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from herdbook.cli.options import AsJson, Commercial, DryRun, Out, Quiet, Words, Workers, open_terminal

app = typer.Typer()


@app.command()
def curate(
    targets: Annotated[
        list[str], typer.Argument(metavar="RECIPE|FILES... [KEY=VALUE]...", help="a recipe, a run's folder, or files to read")
    ],
    out: Out = None,
    dry_run: DryRun = False,
    commercial: Commercial = False,
    workers: Workers = None,
    slurm: Annotated[
        int | None, typer.Option(min=1, metavar="PARTS", help="plan the run and write a script that has Slurm do it in parts")
    ] = None,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="do one of N parts of a planned run, counted from 0, and stop")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read, extract, identify, filter and deduplicate documents; goes on where it was cut off."""
    from herdbook.verbs import station

    station.curate(
        targets,
        out,
        open_terminal(quiet, as_json),
        dry_run=dry_run,
        commercial=commercial,
        workers=workers,
        part=part,
        slurm=slurm,
    )


@app.command()
def tokenizer(
    target: Annotated[str, typer.Argument(metavar="RECIPE|CORPUS", help="a recipe, a run's folder, or a folder of documents")],
    words: Words = None,
    out: Out = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train the tokenizer, and report its bytes per token."""
    from herdbook.verbs import station

    station.work("tokenizer", target, words, out, open_terminal(quiet, as_json), dry_run=dry_run)


@app.command()
def tokens(
    target: Annotated[str, typer.Argument(metavar="RECIPE|CORPUS", help="a recipe, a run's folder, or a folder of documents")],
    words: Words = None,
    tokenizer_path: Annotated[Path | None, typer.Option("--tokenizer", help="the tokenizer's folder")] = None,
    out: Out = None,
    dry_run: DryRun = False,
    workers: Workers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the corpus as memory-mapped token shards."""
    from herdbook.verbs import station

    paths = {"tokenizer": tokenizer_path}
    station.work("tokens", target, words, out, open_terminal(quiet, as_json), paths, dry_run=dry_run, workers=workers)


@app.command()
def pretrain(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|TOKENS", help="a recipe, a run's folder, or a folder of token shards")
    ],
    words: Words = None,
    tokenizer_path: Annotated[Path | None, typer.Option("--tokenizer", help="the tokenizer's folder")] = None,
    corpus: Annotated[Path | None, typer.Option(help="the corpus, for held-out bits per byte")] = None,
    out: Out = None,
    launch: Annotated[
        str | None, typer.Option(metavar="torchrun|slurm", help="only write a script that starts this on several devices")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="with --launch: machines")] = 1,
    gpus: Annotated[int, typer.Option("--gpus-per-node", min=1, help="with --launch: devices of each machine")] = 1,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Pre-train a model, on one device or, started by torchrun, on many; run again to go on after an interruption."""
    from herdbook.verbs import station

    if launch is not None:
        station.launch(launch, target, words, out, open_terminal(quiet, as_json), nodes=nodes, gpus=gpus)
        return
    paths = {"tokenizer": tokenizer_path, "corpus": corpus}
    station.work("pretrain", target, words, out, open_terminal(quiet, as_json), paths, dry_run=dry_run)


@app.command()
def sft(
    target: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="a recipe, a run's folder, or a base model's folder")],
    words: Words = None,
    corpus: Annotated[Path | None, typer.Option(help="the corpus, for conversations made from it")] = None,
    out: Out = None,
    dry_run: DryRun = False,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="refuse a base model or data that may not be used commercially")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on conversations."""
    from herdbook.verbs import station

    words = [*(words or []), *(["sft.commercial=true"] if commercial else [])]
    station.work("sft", target, words, out, open_terminal(quiet, as_json), {"corpus": corpus}, dry_run=dry_run)


@app.command(name="eval")
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="a recipe, a run's folder, or a model folder")],
    words: Words = None,
    suite: Annotated[
        str | None, typer.Option(help="tasks on published sets: tiny, leaderboard-v1, or the path of your own")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="where the files of published sets lie")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="questions a task at most")] = None,
    corpus: Annotated[Path | None, typer.Option(help="the corpus whose held-out documents are scored")] = None,
    out: Out = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on held-out documents, and on published sets."""
    from herdbook.verbs import station

    given = {"suite": suite, "folder": data, "limit": limit}
    words = [*(words or []), *(f"eval.{key}={value}" for key, value in given.items() if value is not None)]
    station.work("eval", target, words, out, open_terminal(quiet, as_json), {"corpus": corpus}, dry_run=dry_run)
