"""What the one-shot commands share: options, pictures and stdin, and how an answer is told."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from gemma3vl_app import catalog
from gemma3vl_app.cli import load
from gemma3vl_app.cli.messages import in_options
from gemma3vl_app.errors import ConversationError, Gemma3VLError, PictureError
from gemma3vl_app.generation import Answer, Chunk, Sample, Timing, Usage
from gemma3vl_app.plain import plain
from gemma3vl_app.wording import counted, describe

if TYPE_CHECKING:
    from gemma3vl_app.backends.protocol import Backend
    from gemma3vl_app.pictures import Picture
    from gemma3vl_app.tasks import TaskOptions, TaskRequest

MAX_ALTERNATIVES = 20
LARGEST_TEXT_BYTES = 1 << 20
STDIN = Path("-")

# --- options --------------------------------------------------------------------------------------

Crops = Annotated[
    Literal["auto", "on", "off"],
    typer.Option(help="Show long pictures in crops, too: where it helps, always or never."),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Stop after so many tokens.", metavar="NUMBER")
]
System = Annotated[str | None, typer.Option(help="How the model should behave.", metavar="TEXT")]
GreedyFlag = Annotated[bool, typer.Option("--greedy", help="Always take the most likely word.")]
Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Draw answers at random, always the same way.", metavar="NUMBER"),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="Above 1 for more variety, below for less.", metavar="NUMBER"),
]
TopK = Annotated[
    int | None,
    typer.Option(min=0, help="Draw from so many likeliest words; 0 from all.", metavar="NUMBER"),
]
TopP = Annotated[
    float | None,
    typer.Option(help="Draw from the likeliest words that make up this part.", metavar="NUMBER"),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON line with everything, at the end.")
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=MAX_ALTERNATIVES,
        help="With --json: each token's log-probability, and that many alternatives.",
        metavar="NUMBER",
    ),
]
Pictures = Annotated[
    list[Path] | None,
    typer.Argument(help="Pictures or PDFs; - is stdin.", metavar="FILES", show_default=False),
]


def check_sampling(drawing: Mapping[str, Any], *, greedy: bool) -> None:
    """Refuse options of drawing that make no sense, alone or together."""
    if greedy and drawing:
        raise typer.BadParameter("--greedy draws nothing; leave the options of drawing away.")
    with load.mistakes():
        Sample(**drawing)


def check_logprobs(logprobs: int | None, *, as_json: bool) -> None:
    """Refuse log-probabilities that nobody would see."""
    if logprobs is not None and not as_json:
        raise typer.BadParameter("--logprobs shows in JSON only; add --json.")


@dataclasses.dataclass(frozen=True)
class Shot:
    """What every task is told on the command line: the model, how it answers, how that is shown."""

    model: str
    wishes: load.Wishes
    max_new_tokens: int | None
    seed: int | None
    as_json: bool
    logprobs: int | None

    def __post_init__(self) -> None:
        check_logprobs(self.logprobs, as_json=self.as_json)
        catalog.check_source(self.model, servers=True)

    def load(self) -> Backend:
        """Load the model."""
        return load.load_backend(self.model, self.wishes)

    def options(self, backend: Backend) -> TaskOptions:
        """Return the options of a task: greedy unless there is a seed."""
        options: TaskOptions = {"adapter": only_adapter(self.wishes), "logprobs": self.logprobs}
        if self.max_new_tokens is not None:
            options["max_new_tokens"] = self.max_new_tokens
        if self.seed is not None:
            options["sampling"] = drawing(backend, {"seed": self.seed})
        return options

    def tell(self, backend: Backend, request: TaskRequest) -> None:
        """Ask and print the answer as it comes, or as JSON."""
        with request.stream(backend, self.options(backend)) as stream:
            follow(stream, silent=self.as_json)
        if self.as_json:
            self.tell_json(backend, stream.answer.text.strip(), [stream.answer])
        else:
            typer.echo()
            note_cut(stream.answer)

    def tell_json(
        self, backend: Backend, text: str, answers: Sequence[Answer], **more: object
    ) -> None:
        """Print what `summary` says, then `more`, as a line of JSON."""
        write_json({**summary(backend, text, answers, logprobs=self.logprobs), **more})


def only_adapter(wishes: load.Wishes) -> str | None:
    """Return the adapter that answers: the one that was loaded, where it is one."""
    names = list(wishes.adapters or ())
    return names[0] if len(names) == 1 else None


def drawing(backend: Backend, given: dict[str, Any]) -> Sample:
    """Return the checkpoint's own sampling, or the default one if it is greedy, with `given`."""
    own = backend.capabilities.sampling
    return dataclasses.replace(own if isinstance(own, Sample) else Sample(), **given)


# --- pictures and stdin ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Piped:
    """What came on stdin: pictures (several from a PDF) or a text; neither where it was empty."""

    pictures: tuple[Picture, ...] = ()
    text: str = ""


def open_pictures(paths: Sequence[Path], crops: Crops) -> list[tuple[str, Picture]]:
    """Open pictures and the pages of PDFs, each with the name to call it by; "-" is stdin."""
    check_stdin_once(paths)
    return [named for path in paths for named in open_named(path, crops)]


def open_named(path: Path, crops: Crops) -> list[tuple[str, Picture]]:
    """Open a picture or the pages of a PDF, each with the name to call it by; "-" is stdin."""
    from gemma3vl_app.tasks.requests import open_pictures

    opened = piped_pictures(crops) if path == STDIN else open_pictures(path, crops)
    name = "stdin" if path == STDIN else str(path)
    if len(opened) == 1:
        return [(name, opened[0])]
    return [(f"{name}, page {number}", page) for number, page in enumerate(opened, start=1)]


def picture_paths(paths: Sequence[Path] | None) -> Sequence[Path]:
    """Return the paths, or stdin where none is given and something is piped in."""
    if not paths:
        if not is_piped():
            raise typer.BadParameter("Give a picture or a PDF, or pipe one in.")
        return [STDIN]
    check_stdin_once(paths)
    return paths


def check_stdin_once(paths: Sequence[Path]) -> None:
    """Refuse to read stdin twice."""
    if paths.count(STDIN) > 1:
        raise typer.BadParameter("- is there more than once, but stdin is read only once.")


def piped_pictures(crops: Crops) -> tuple[Picture, ...]:
    """Return the picture on stdin, or the pages of a PDF; raises `PictureError` without one."""
    piped = read_piped(crops, needed=True)
    if piped.text:
        raise PictureError("What came on stdin is a text, not a picture. Pipe a picture's file in.")
    return piped.pictures


def read_piped(crops: Crops, *, needed: bool = False) -> Piped:
    """Read stdin to its end and find out what it is.

    Only a pipe or a file is read, unless it is `needed`: a program that was started without a
    thought of its stdin must not wait for it. Raises `ConversationError` for what is too long or
    missing, `PictureError` for what is neither picture nor text.
    """
    from gemma3vl_app.pictures import DEFAULT_LIMITS, Picture
    from gemma3vl_app.tasks.requests import is_pdf

    data = _read_stdin(DEFAULT_LIMITS.max_bytes, needed=needed)
    if not data:
        if needed:
            raise ConversationError("Nothing came on stdin. Pipe a picture or a text in.")
        return Piped()
    if is_pdf(data):
        return Piped(Picture.pages(data, name="stdin", crops=crops))
    if (text := _as_text(data)) is None:
        return Piped((Picture.open(data, name="stdin", crops=crops),))
    if len(data) > LARGEST_TEXT_BYTES:
        raise ConversationError(
            f"The text on stdin has {len(data):,} bytes; the limit is {LARGEST_TEXT_BYTES:,}. "
            "Pipe the part in that the question is about."
        )
    return Piped(text=text.strip())


def is_piped() -> bool:
    """Whether stdin is a pipe or a file: not a terminal, and not nothing."""
    mode = _stdin_mode()
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_stdin(limit: int, *, needed: bool) -> bytes:
    if not (is_piped() or (needed and _stdin_mode() and not sys.stdin.isatty())):
        return b""
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise ConversationError(
            f"What came on stdin is longer than {limit >> 20} MiB, the limit. Pipe less in."
        )
    return data


def _stdin_mode() -> int:
    try:
        return os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or not there at all
        return 0


def _as_text(data: bytes) -> str | None:
    """Return `data` as UTF-8 text; None where it is none. No picture's file is, but for PDFs."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


# --- answers --------------------------------------------------------------------------------------


def follow(chunks: Iterable[Chunk], *, silent: bool) -> None:
    """Print text as it comes, unless `silent`; the stages before the first word go to stderr.

    Where it breaks off, by Ctrl-C or an error, the line is ended, so that what follows has its own.
    """
    said = ""
    try:
        with load.spinner("Waiting") as status:
            for chunk in chunks:
                status.update(describe(chunk.status))
                if chunk.text and not silent:
                    status.stop()  # it must not draw into the answer
                    write(chunk.text)
                    sys.stdout.flush()
                    said = chunk.text
    except (KeyboardInterrupt, Gemma3VLError):
        if said and not said.endswith("\n"):
            write("\n")
        raise


def write(text: str) -> None:
    """Write text of a model or a file to stdout: harmless on a terminal, as it is in a pipe."""
    sys.stdout.write(plain(text) if sys.stdout.isatty() else text)


def write_json(value: object) -> None:
    """Write one line of JSON to stdout."""
    write(json.dumps(value, ensure_ascii=False) + "\n")


def summary(
    backend: Backend, text: str, answers: Sequence[Answer], *, logprobs: int | None
) -> dict[str, Any]:
    """Return what `--json` says of every answer; what came in several parts is added up."""
    cut = [answer.finish_reason for answer in answers if answer.finish_reason != "stop"]
    told: dict[str, Any] = {
        "model": backend.capabilities.model,
        "text": text,
        "finish_reason": cut[0] if cut else "stop",
        "usage": _added(Usage, [answer.usage for answer in answers]),
        "timing": _timing([answer.timing for answer in answers]),
    }
    if logprobs is not None:
        told["tokens"] = [dataclasses.asdict(token) for each in answers for token in each.tokens]
    return told


def note_cut(answer: Answer, name: str = "") -> None:
    """Say on stderr that an answer, the one about `name`, was cut: it may look finished."""
    if answer.finish_reason == "length":
        where = f"{name}: cut" if name else "Cut"
        count = counted(answer.usage.completion_tokens, "token")
        note(f"{where} after {count}. Raise --max-new-tokens for more.")


def note_demo(backend: Backend, cannot: str) -> None:
    """Say on stderr what the demo cannot do, so that nobody takes its answer for one."""
    if backend.capabilities.model == "demo":
        note(f"The demo {cannot}; use a real model for this, such as --model 4b-it.")


def note_error(error: Gemma3VLError) -> None:
    """Say on stderr what failed, where the others go on."""
    note(in_options(str(error)))


def note(text: str) -> None:
    """Say something on stderr, in one line."""
    load.stderr.print(Text(plain(" ".join(text.splitlines()))), soft_wrap=True)


def _added(kind: type[Usage] | type[Timing], values: Sequence[Usage | Timing]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: sum(getattr(value, name) for value in values) for name in names}


def _timing(timings: Sequence[Timing]) -> dict[str, Any]:
    """Add up seconds; parts are computed side by side, so speeds add up, too."""
    return {**_added(Timing, timings), "ttft_sec": timings[0].ttft_sec}
