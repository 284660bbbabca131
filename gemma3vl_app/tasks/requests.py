"""Requests that tasks make: a conversation, and the schema its answer is held to.

Built before anything is asked, so that whoever wants can stream them. Several are asked side by
side, a few at a time, and answered in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from gemma3vl_app.backends.protocol import Backend, Schema, StreamOptions
from gemma3vl_app.errors import BusyError, ConversationError, Gemma3VLError
from gemma3vl_app.generation import Greedy, Sampling
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Crops, Picture, PictureSource
from gemma3vl_app.stream import Stream

IN_FLIGHT = 8  # enough to fill a batch; more would only hold memory
PICTURE_SUFFIX_OF_PDF = ".pdf"


class TaskOptions(TypedDict, total=False):
    """The keyword arguments of `Backend.stream` that tasks pass on: all but `schema`."""

    sampling: Sampling | None
    max_new_tokens: int
    stop: Sequence[str]
    logprobs: int | None
    adapter: str | None
    session: str


@dataclass(frozen=True)
class TaskRequest:
    """One thing to ask; `answer_factor` says how many times the usual length it may be long."""

    conversation: Conversation
    schema: Schema | None = None
    answer_factor: int = 1

    def stream(self, backend: Backend, options: TaskOptions | None = None) -> Stream:
        """Ask `backend`, at temperature zero unless `options` say otherwise.

        The same picture then gives the same result, and what is read or extracted is the model's
        best guess, not a draw. Raises `ConversationError` where the model keeps to no schema.
        """
        if self.schema is not None and not backend.capabilities.schema:
            raise ConversationError(
                f"{backend.capabilities.model} cannot be held to a schema. Use another model."
            )
        chosen: StreamOptions = {
            "max_new_tokens": self.answer_factor * backend.capabilities.answer_tokens,
            **(options or {}),
            "schema": self.schema,
        }
        chosen["sampling"] = chosen.get("sampling") or Greedy()
        return backend.stream(self.conversation, **chosen)


def streams_in_order(
    backend: Backend,
    requests: Iterable[TaskRequest],
    options: TaskOptions | None = None,
    *,
    in_flight: int = IN_FLIGHT,
) -> Generator[Stream]:
    """Ask several requests side by side and yield their streams in order.

    At most `in_flight` are asked and not yet gone past. Whoever stops early cancels the rest. A
    request that is refused comes as a stream that fails.
    """
    waiting = deque(requests)
    running: deque[Stream] = deque()
    try:
        while waiting or running:
            while waiting and len(running) < in_flight:
                try:
                    running.append(waiting[0].stream(backend, options))
                except BusyError:
                    if not running:
                        raise
                    break  # others fill the queue: go on when one of ours has ended
                except Gemma3VLError as error:  # told when it is its turn
                    running.append(Stream())
                    running[-1].fail(error)
                waiting.popleft()
            yield running[0]
            running.popleft()
    finally:
        for stream in running:
            stream.cancel()


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say which of several pictures an error is about."""
    try:
        yield
    except Gemma3VLError as error:
        raise type(error)(f"{name}: {error}") from error


def open_pictures(
    sources: PictureSource | Iterable[PictureSource], crops: Crops
) -> tuple[Picture, ...]:
    """Open one picture or several; every page of a PDF is a picture."""
    return tuple(picture for source in listed(sources) for picture in _opened(source, crops))


def listed(sources: PictureSource | Iterable[PictureSource]) -> list[PictureSource]:
    """Return a list of sources where one may stand alone; PIL images and arrays iterate, too."""
    if isinstance(sources, list | tuple | Iterator):
        return list(sources)
    return [cast("PictureSource", sources)]


def is_pdf(source: PictureSource) -> bool:
    """Whether a path is named like a PDF, or bytes begin like one."""
    if isinstance(source, str | Path):
        return Path(source).suffix.lower() == PICTURE_SUFFIX_OF_PDF
    return isinstance(source, bytes | bytearray | memoryview) and bytes(source[:4]) == b"%PDF"


def _opened(source: PictureSource, crops: Crops) -> tuple[Picture, ...]:
    if is_pdf(source):
        pdf = source if isinstance(source, str | Path) else bytes(cast(bytes, source))
        return Picture.pages(pdf, crops=crops)
    return (Picture.open(source, crops=crops),)
