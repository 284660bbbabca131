"""The program `gemma3vl`: its commands, and the border where errors become a line of text.

Answers go to stdout, everything else to stderr. Errors are one plain line and exit code 1;
`--debug` before the command shows where they come from. Heavy modules are imported by the command
that needs them.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from gemma3vl_app import __version__
from gemma3vl_app.cli import (
    ask,
    batch,
    cache,
    chat,
    doctor,
    export,
    models,
    page,
    replay,
    tasks,
)
from gemma3vl_app.cli.load import stderr
from gemma3vl_app.errors import Gemma3VLError

INTERRUPTED = 130  # the exit code shells expect after Ctrl-C

app = typer.Typer(
    name="gemma3vl",
    help="Use Gemma 3 vision-language models from a browser or a terminal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("app")(page.open_app)
app.command("chat")(chat.chat)
app.command("ask")(ask.ask)
app.command("caption")(tasks.caption)
app.command("ocr")(tasks.ocr)
app.command("compare")(tasks.compare)
app.command("extract")(tasks.extract)
app.command("batch")(batch.batch)
app.command("replay")(replay.replay)
app.command("export")(export.export)
app.command("models")(models.models)
app.command("plan")(models.plan)
app.command("doctor")(doctor.doctor)
app.add_typer(cache.app, name="cache")
_debug = False


def main() -> None:
    """Run the command line; the one place where errors become a line of text and an exit code."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Gemma3VLError as error:
        if _debug:
            raise
        _fail(str(error))
    except Exception as error:
        if _debug:
            raise
        _fail(
            f"Something went wrong inside ({type(error).__name__}). "
            "Run it again as `gemma3vl --debug ...` to see where."
        )


def _fail(line: str) -> None:
    stderr.print(line, style="red", markup=False, soft_wrap=True)
    sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Use Gemma 3 vision-language models from a browser or a terminal.

    Example: gemma3vl ask demo "What color is the circle?" --image circle.png
    """
    global _debug
    _debug = debug
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING)
