"""The verbs that look: report, pedigree, doctor, and the catalogue of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from herdbook.cli.options import AsJson, open_terminal

app = typer.Typer()


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder")], as_json: AsJson = False) -> None:
    """Write a run's report (HTML and Markdown) anew."""
    from herdbook.console import emit
    from herdbook.report.report import write_report

    terminal = open_terminal(as_json=as_json)
    path = write_report(folder, terminal)
    if as_json:
        emit({"report": str(path)})
    else:
        terminal.say(f"report: {path}")


@app.command()
def pedigree(
    path: Annotated[Path | None, typer.Argument(help="a run's folder, a station's folder or a model folder")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="hash every file again")] = False,
    batch: Annotated[str | None, typer.Option(metavar="RUN@STEP", help="the documents that a step was trained on")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what something was made from, back to the crawl; check that it still is what it was."""
    if batch is not None:
        from herdbook.verbs import batch as trace

        trace.show(batch, open_terminal(as_json=as_json))
    else:
        from herdbook.verbs import lineage

        lineage.show(path or Path(), open_terminal(as_json=as_json), verify=verify)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has, what is missing, and the command that installs it."""
    from herdbook.verbs import doctor as verb

    verb.show(open_terminal(as_json=as_json))


models = typer.Typer(invoke_without_command=True, help="The catalogue of model families and sizes.")
app.add_typer(models, name="models")

Family = Annotated[str | None, typer.Option(metavar="NAME", help="only this family, as in llama2")]
Fits = Annotated[str | None, typer.Option(metavar="SIZE", help="only what this much memory serves, as in 24GB")]
Precision = Annotated[str, typer.Option(help="of the weights when served: fp32, bf16, fp16, int8 or int4")]
MayEarn = Annotated[bool, typer.Option("--commercial", help="only published weights that may be used commercially")]
OneModel = Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="as in llama2-7b, or a model folder")]


@models.callback()
def _models(
    context: typer.Context,
    family: Family = None,
    fits: Fits = None,
    precision: Precision = "bf16",
    commercial: MayEarn = False,
    as_json: AsJson = False,
) -> None:
    from herdbook.errors import UserError

    if context.invoked_subcommand is None:
        models_ls(family, fits, precision, commercial, as_json)
    elif family or fits or precision != "bf16" or commercial or as_json:
        raise UserError("options go behind the verb", todo=f"`herdbook models {context.invoked_subcommand} … --json`")


@models.command("ls")
def models_ls(
    family: Family = None,
    fits: Fits = None,
    precision: Precision = "bf16",
    commercial: MayEarn = False,
    as_json: AsJson = False,
) -> None:
    """List the sizes in the catalogue."""
    from herdbook.verbs import catalogue

    catalogue.ls(open_terminal(as_json=as_json), family=family, fits=fits, precision=precision, commercial=commercial)


@models.command("show")
def models_show(name: OneModel, as_json: AsJson = False) -> None:
    """Show a size, or a model folder: architecture, memory, training, sources, licence in plain words."""
    from herdbook.verbs import catalogue

    catalogue.show(name, open_terminal(as_json=as_json))


@models.command("compare")
def models_compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME|FOLDER...", help="two or more")], as_json: AsJson = False
) -> None:
    """Compare sizes or model folders: facts side by side, and published results."""
    from herdbook.verbs.compare import compare

    compare(names, open_terminal(as_json=as_json))
