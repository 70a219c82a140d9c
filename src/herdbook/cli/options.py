"""Options that several verbs share, each declared once, and what every verb does with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from herdbook.console import Terminal

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="a recipe (YAML) or a run's folder")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, as in train.tokens=2M")]
AsJson = Annotated[bool, typer.Option("--json", help="print facts as JSON on stdout")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would happen, and do nothing")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="only warnings and errors")]
Commercial = Annotated[bool, typer.Option("--commercial", help="refuse sources whose licence forbids commercial use")]
Workers = Annotated[int | None, typer.Option(min=1, help="processes to use; the number of cores if not given")]
Out = Annotated[Path | None, typer.Option(help="the folder to write to")]
LicenseId = Annotated[str | None, typer.Option("--license", help="SPDX id, where the source does not state its licence")]
TokenizerPath = Annotated[Path | None, typer.Option("--tokenizer", help="where the tokenizer lies, if not with the model")]
CommercialModel = Annotated[bool, typer.Option("--commercial", help="refuse a model that may not be used commercially")]
Force = Annotated[bool, typer.Option("--force", help="replace a file that is there")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="read .bin and .pth weights too; of these pickles only tensors are accepted")
]
ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="a model folder, a .gguf file, or a run's folder")]


def open_terminal(quiet: bool = False, as_json: bool = False) -> Terminal:
    """What says things to a person."""
    from herdbook.console import Terminal

    return Terminal(quiet=quiet, as_json=as_json)


def all_words(words: list[str] | None, commercial: bool = False) -> list[str]:
    """The settings given as words, and those that an option stands for."""
    return [*(words or []), *(["corpus.commercial=true"] if commercial else [])]


def show_facts(facts: Any, as_json: bool, show: Any) -> None:
    """Facts as JSON, or as `show` tells them to a person."""
    from herdbook.console import emit

    if as_json:
        emit(facts)
    else:
        show(facts)
