"""The program `gemma3vl`: its commands, and the border where errors become a line of text.

Answers go to stdout, everything else to stderr. Errors are one plain line and an exit code (see
`exit_codes`); `--debug` before the command shows where they come from. Heavy modules are imported
by the command that needs them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from gemma3vl_app import __version__
from gemma3vl_app.cli import (
    ask,
    batch,
    cache,
    chat,
    doctor,
    exit_codes,
    export,
    models,
    page,
    replay,
    tasks,
)
from gemma3vl_app.cli.load import stderr
from gemma3vl_app.cli.plain import plain
from gemma3vl_app.errors import Gemma3VLError

TALK = "Talk"
PICTURES = "Pictures and text"
CONVERSATIONS = "Conversations"
MACHINE = "Models and this machine"

app = typer.Typer(
    name="gemma3vl",
    help="Use Gemma 3 vision-language models from a browser or a terminal.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("chat", rich_help_panel=TALK)(chat.chat)
app.command("ask", rich_help_panel=TALK)(ask.ask)
app.command("app", rich_help_panel=TALK)(page.open_app)
app.command("caption", rich_help_panel=PICTURES)(tasks.caption)
app.command("ocr", rich_help_panel=PICTURES)(tasks.ocr)
app.command("compare", rich_help_panel=PICTURES)(tasks.compare)
app.command("extract", rich_help_panel=PICTURES)(tasks.extract)
app.command("batch", rich_help_panel=PICTURES)(batch.batch)
app.command("replay", rich_help_panel=CONVERSATIONS)(replay.replay)
app.command("export", rich_help_panel=CONVERSATIONS)(export.export)
app.command("models", rich_help_panel=MACHINE)(models.models)
app.command("plan", rich_help_panel=MACHINE)(models.plan)
app.command("doctor", rich_help_panel=MACHINE)(doctor.doctor)
app.add_typer(cache.app, name="cache", rich_help_panel=MACHINE)
_debug = False


def main() -> None:
    """Run the command line; the one place where errors become a line of text and an exit code."""
    _never_stumble_over_a_character()
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:  # closed from the start: `>&-`
                sys.stdout.flush()  # here, not at the interpreter's end, where nobody could tell
    except BrokenPipeError:
        _end_without_reader()
    except SystemExit as ended:
        # typer and rich meet the closed pipe first, and end the program in their own way.
        if isinstance(ended.__context__, BrokenPipeError):
            _end_without_reader()
        raise
    except KeyboardInterrupt:
        sys.exit(exit_codes.INTERRUPTED)
    except Gemma3VLError as error:
        if _debug:
            raise
        _fail(str(error))
    except Exception as error:
        if _debug:
            raise
        # The system's own words help; what else an unexpected error says may give things away.
        kind = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        _fail(
            f"Something went wrong inside ({kind}). "
            "Run it again as `gemma3vl --debug ...` to see where."
        )


def _fail(message: str) -> NoReturn:
    line = " ".join(plain(message).split("\n"))
    stderr.print(Text(line, style="red"), soft_wrap=True)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # a full disk: that is what the message says
        _let_go_of_stdout()
    sys.exit(exit_codes.FAILED)


def _never_stumble_over_a_character() -> None:
    """Let what a pipe's encoding does not have come out as "?", not end an answer in its middle."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _end_without_reader() -> NoReturn:
    """End quietly: whoever read the output, such as `head`, has seen enough."""
    _let_go_of_stdout()
    sys.exit(exit_codes.PIPE_CLOSED)


def _let_go_of_stdout() -> None:
    """Let what is still buffered go nowhere, or Python complains of it at its end."""
    with contextlib.suppress(OSError, ValueError):  # where stdout is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


class _PlainFormatter(logging.Formatter):
    """Keeps file names and the like in a log from commanding the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def _set_up_logging(*, debug: bool) -> None:
    """Send warnings (with `debug`: everything) to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _PlainFormatter("%(levelname)s:%(name)s: %(message)s" if debug else "%(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="GEMMA3VL_DEBUG", help="Show where an error comes from."),
    ] = False,
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
    _set_up_logging(debug=debug)
