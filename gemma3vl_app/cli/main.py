"""The program `gemma3vl`: its commands, and the border where errors become a line of text.

Answers go to stdout, everything else to stderr. Errors are one plain line and an exit code (see
`exit_codes`); `--debug` before the command shows where they come from. Heavy modules are imported
by the command that needs them.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from gemma3vl_app import __version__
from gemma3vl_app.cli import (
    ask,
    batch,
    bench,
    cache,
    chat,
    convert,
    doctor,
    evaluate,
    exit_codes,
    export,
    finetune,
    models,
    page,
    replay,
    serve,
    tasks,
    verify,
)
from gemma3vl_app.cli.load import stderr
from gemma3vl_app.cli.messages import PROGRAM, in_options, usage_line
from gemma3vl_app.errors import Gemma3VLError
from gemma3vl_app.plain import plain

TALK = "Talk"
PICTURES = "Pictures and text"
CONVERSATIONS = "Conversations"
TRAINING = "Fine-tuning"
EVALUATION = "Evaluation"
MACHINE = "Models and this machine"

app = typer.Typer(
    name=PROGRAM,
    help="Use Gemma 3 vision-language models from a browser or a terminal.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    TALK: {"chat": chat.chat, "ask": ask.ask, "app": page.open_app, "serve": serve.serve},
    PICTURES: {
        "caption": tasks.caption,
        "ocr": tasks.ocr,
        "compare": tasks.compare,
        "extract": tasks.extract,
        "batch": batch.batch,
    },
    CONVERSATIONS: {"replay": replay.replay, "export": export.export},
    TRAINING: {"finetune": finetune.finetune},
    EVALUATION: {"evaluate": evaluate.evaluate},
    MACHINE: {
        "models": models.models,
        "plan": models.plan,
        "bench": bench.bench,
        "verify": verify.verify,
        "doctor": doctor.doctor,
    },
}


def _unwrapped(text: str | None) -> str:
    """Return a docstring with a line per paragraph: typer wraps them, and keeps other breaks."""
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


for _panel, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, help=_unwrapped(_command.__doc__), rich_help_panel=_panel)(_command)
app.add_typer(convert.app, name="convert", rich_help_panel=TRAINING)
app.add_typer(cache.app, name="cache", rich_help_panel=MACHINE)
_debug = False


def main() -> None:
    """Run the command line; the one place where errors become a line of text and an exit code."""
    _never_stumble_over_a_character()
    try:
        try:
            code = app(prog_name=PROGRAM, standalone_mode=False)  # that of `typer.Exit`, or None
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
    except typer.TyperException as error:
        _fail(usage_line(error), exit_codes.USAGE)
    except Gemma3VLError as error:
        if _debug:
            raise
        _fail(in_options(str(error)))
    except Exception as error:
        if _debug:
            raise
        # The system's own words help; what else an unexpected error says may give things away.
        kind = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        _fail(
            f"Something went wrong inside ({kind}). "
            "Run it again as `gemma3vl --debug ...` to see where."
        )
    sys.exit(code or exit_codes.OK)


def _fail(message: str, code: int = exit_codes.FAILED) -> NoReturn:
    if message:
        line = " ".join(plain(message).split("\n"))
        stderr.print(Text(line, style="red"), soft_wrap=True)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # a full disk: that is what the message says
        _let_go_of_stdout()
    sys.exit(code)


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
        return plain(in_options(super().format(record)))


def _set_up_logging(*, debug: bool) -> None:
    """Send warnings (with `debug`: everything) to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _PlainFormatter("%(levelname)s:%(name)s: %(message)s" if debug else "%(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])
    if not debug:  # it recommends a package that fetches code from the hub; ours does without
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


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

    Example: gemma3vl ask demo "What color is the circle?" --image docs/circle.png
    """
    global _debug
    _debug = debug
    _set_up_logging(debug=debug)
