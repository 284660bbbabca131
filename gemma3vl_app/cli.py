"""The command line: `gemma3vl app` opens the page, `gemma3vl ask` asks one question.

Answers go to stdout, everything else to stderr. Errors are one plain line and exit code 1;
`--debug` before the command shows where they come from. Heavy modules are imported by the command
that needs them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status as Spinner

from gemma3vl_app import __version__, catalog
from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import ConversationError, Gemma3VLError
from gemma3vl_app.generation import Answer, Progress, Sample
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.stream import Stream

SIGNALLED = 128  # plus the signal, by which a shell sees what ended a program
INTERRUPTED = 130  # the exit code shells expect after Ctrl-C

app = typer.Typer(
    name="gemma3vl",
    help="Use Gemma 3 vision-language models from a browser or a terminal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_stderr = Console(stderr=True, highlight=False)
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
    _stderr.print(line, style="red", markup=False, soft_wrap=True)
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
    """Use Gemma 3 vision-language models from a browser or a terminal."""
    global _debug
    _debug = debug
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING)


@app.command("app")
def open_app(
    model: Annotated[str, typer.Option(help="demo, 270m-pt, or a checkpoint folder.")] = "demo",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    find_port: Annotated[
        bool, typer.Option("--find-port", help="When the port is taken, use the next free one.")
    ] = False,
) -> None:
    """Open the chat page, until Ctrl-C."""
    from gemma3vl_app.server import check_port, serve

    check_port(host, port, find_port=find_port)  # before the model is loaded for nothing
    _end_tidily_on_signals()
    with load_backend(model) as backend:
        serve(
            backend,
            host=host,
            port=port,
            find_port=find_port,
            on_ready=lambda address: typer.echo(f"{model} is ready: {address}"),
        )


def _end_tidily_on_signals() -> None:
    """Let a closed terminal or `kill` end the program as Ctrl-C does: uploads are deleted."""
    for name in ("SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):  # Windows has no SIGHUP
            signal.signal(number, lambda received, _frame: sys.exit(SIGNALLED + received))


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="demo, 270m-pt, or a checkpoint folder.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture; repeat it for more.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="How the model should behave.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 1024,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draw the answer at random, always the same way.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole answer as one JSON line at the end.")
    ] = False,
) -> None:
    """Ask one question, about any number of pictures, and print the answer as it comes."""
    if not (question.strip() or image):
        raise ConversationError("The question is empty. Write one, or add a picture.")
    pictures = [Picture.open(path) for path in image or ()]
    conversation = Conversation(system=system).user(*pictures, question)
    with load_backend(model) as backend:
        sampling = None if seed is None else _seeded(backend, seed)
        stream = backend.stream(conversation, sampling=sampling, max_new_tokens=max_new_tokens)
        with stream:
            answer = _follow(stream, silent=as_json)
    typer.echo(json.dumps(_summary(backend, answer), ensure_ascii=False) if as_json else "")


def load_backend(model: str) -> Backend:
    """Load `model`, with its progress on stderr."""
    catalog.check_source(model)  # at once: what follows takes seconds to import
    from gemma3vl_app.backends.local import load

    with _spinner(f"Loading {model}") as spinner:
        return load(model, progress=lambda step: spinner.update(_describe(step)))


@contextmanager
def _spinner(text: str) -> Iterator[Spinner]:
    """Show that something is going on: on a terminal only, so that logs stay clean."""
    with _stderr.status(text) as spinner:
        yield spinner


def _describe(step: Progress) -> str:
    amount = f" {step.done} of {step.total} {step.unit}" if step.total else ""
    return f"{step.message or step.stage}{amount}"


def _seeded(backend: Backend, seed: int) -> Sample:
    """Return the checkpoint's own sampling with `seed`, or the default one if it is greedy."""
    own = backend.capabilities.sampling
    return dataclasses.replace(own if isinstance(own, Sample) else Sample(), seed=seed)


def _follow(stream: Stream, *, silent: bool) -> Answer:
    """Print the stream's text as it comes; its stages before the first word go to stderr."""
    with _spinner("Waiting") as spinner:
        for chunk in stream:
            spinner.update(str(chunk.status))
            if chunk.text and not silent:
                spinner.stop()  # it must not draw into the answer
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    return stream.answer


def _summary(backend: Backend, answer: Answer) -> dict[str, object]:
    return {
        "model": backend.capabilities.model,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": dataclasses.asdict(answer.usage),
        "timing": dataclasses.asdict(answer.timing),
    }


if __name__ == "__main__":
    main()
