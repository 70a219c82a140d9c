"""The command line: verbs parse, call and print; nothing here does the work, and nothing heavy is imported at the top.

Exit codes: 0 done, 1 failed (a defect of ours, with its traceback), 2 the user's input, 130/143 interrupted and saved. What a
person reads goes to stderr, what a program reads (`--json`, generated text) to stdout.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from herdbook.cli import corpus, looking, road, stations, using

app = typer.Typer(
    name="herdbook",
    help="Raise your own open base language model, from raw web pages to a model that answers, and know its pedigree.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `herdbook quickstart`, or write a recipe for your own pages with `herdbook init`.",
)
# Without a name of their own these verbs become verbs of `herdbook` itself, in this order.
for part in (road, stations, using, looking, corpus):
    app.add_typer(part.app)


def _version(value: bool) -> None:
    if value:
        from herdbook import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False,
) -> None:
    pass


def main() -> None:
    """The entry point: turns exceptions into exit codes."""
    from herdbook.threads import wait_politely

    wait_politely()
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: run the same command again to go on from the last finished part\n")
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has seen enough; end quietly, as other tools do.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """Print what a person needs to read about an exception, and return the exit code for it."""
    from herdbook.errors import Interrupted, UserError, explain_os_error

    if isinstance(error, Interrupted):
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    explained = explain_os_error(error) if isinstance(error, OSError) else error
    if isinstance(explained, UserError):
        sys.stderr.write(f"error: {explained}\n")
        return 2
    import traceback

    traceback.print_exception(error)
    sys.stderr.write("\nThis is a defect of herdbook. Please report it with the lines above and the command you typed.\n")
    return 1
