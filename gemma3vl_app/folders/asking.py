"""Ask about many pictures side by side, and hand the outcomes over in order.

The engine answers many requests at once: some more than it runs are kept in flight, so that the
next picture is always ready, and only those are in memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gemma3vl_app.errors import (
    BusyError,
    ContextLengthError,
    EngineError,
    Gemma3VLError,
    PictureError,
)
from gemma3vl_app.folders.items import BatchItem
from gemma3vl_app.folders.journal import LARGEST_GROUP
from gemma3vl_app.generation import Answer, Usage
from gemma3vl_app.messages import Conversation
from gemma3vl_app.schemas import parse_json
from gemma3vl_app.stream import Stream
from gemma3vl_app.wording import counted

IN_FLIGHT = 32  # not answered yet; the engine runs 16 at once
UNWRITTEN = LARGEST_GROUP  # in flight, or answered before their turn: what a crash may cost
ENGINE_FAILURES = 3  # in a row, each of them twice: the engine, and not the pictures, is broken
_BUSY_SEC = 0.2  # between two tries while others fill the queue

_LONGEST_PROBLEM = 200  # characters

Check = Callable[[Any], object]  # raises ValueError for a value that is not acceptable


@dataclass(frozen=True)
class Question:
    """What is asked about each picture.

    `open` makes a conversation of a picture's name, `ask` sends that, `size` is the file's, and
    `objection` a reason not to ask. `with_schema` says that answers are JSON, `check` looks at it.
    """

    open: Callable[[str], Conversation]
    ask: Callable[[str, Conversation], Stream]
    size: Callable[[str], int | None]
    objection: Callable[[str], str | None]
    with_schema: bool = False
    check: Check | None = None


@dataclass
class _Asked:
    """A picture on its way: opened, then sent, then answered; or `error`, why not."""

    name: str
    size_bytes: int | None
    conversation: Conversation | None = None  # until it is sent: it holds the picture
    stream: Stream | None = None
    error: str | None = None
    again: bool = False

    @property
    def done(self) -> bool:
        return self.error is not None or (self.stream is not None and self.stream.done)


class Asking:
    """One pass over pictures; go through `groups` once."""

    def __init__(self, question: Question, names: Iterable[str]) -> None:
        self._question = question
        self._names = iter(names)
        self._next: _Asked | None = None  # opened, but the queue was full
        self._window: deque[_Asked] = deque()  # in order; the first is written first
        self._engine_failures = 0  # in a row

    def groups(self) -> Generator[list[BatchItem]]:
        """Yield outcomes in the order of the names, those that are ready together in one list.

        What is a picture's own fault is in its item; else what the backend raises ends this, and so
        does a backend that fails at one picture after the other. Closing the generator cancels what
        is running.
        """
        try:
            while True:
                self._fill()
                if ready := self._take_ready():
                    yield ready
                elif self._window:
                    self._wait_for(self._window[0])
                elif self._next is not None:
                    time.sleep(_BUSY_SEC)
                else:
                    return
        finally:
            for asked in self._window:
                if asked.stream is not None and not asked.stream.done:
                    asked.stream.cancel()

    def _wait_for(self, asked: _Asked) -> None:
        """Sleep until the oldest request makes a step: others may have ended meanwhile."""
        if asked.stream is not None:
            with suppress(Gemma3VLError):  # it is met again when the answer is taken
                next(asked.stream, None)

    # --- asking ---

    def _fill(self) -> None:
        """Send pictures while there is room for them."""
        while len(self._window) < UNWRITTEN and self._running() < IN_FLIGHT:
            self._next = self._next or self._open_next()
            if self._next is None or not self._send(self._next):
                return
            self._window.append(self._next)
            self._next = None

    def _running(self) -> int:
        return sum(not asked.done for asked in self._window)

    def _open_next(self) -> _Asked | None:
        name = next(self._names, None)
        if name is None:
            return None
        asked = _Asked(name, self._question.size(name))
        asked.error = self._question.objection(name)
        self._open(asked)
        return asked

    def _open(self, asked: _Asked) -> None:
        if asked.error is None:
            try:
                asked.conversation = self._question.open(asked.name)
            except PictureError as error:
                asked.error = str(error)

    def _send(self, asked: _Asked) -> bool:
        """Ask about an opened picture; False where the queue is full."""
        if asked.conversation is not None:
            try:
                asked.stream = self._question.ask(asked.name, asked.conversation)
            except BusyError:
                return False
            except (PictureError, ContextLengthError) as error:
                asked.error = str(error)
        asked.conversation = None
        return True

    # --- what came of it ---

    def _take_ready(self) -> list[BatchItem]:
        """Take the outcomes that stand first and are complete."""
        ready: list[BatchItem] = []
        while self._window and self._window[0].done:
            first = self._window[0]
            try:
                item = self._outcome(first)
            except EngineError:
                if ready:
                    break  # those are handed over first
                if first.again:
                    raise
                self._ask_again(first)
                break
            self._window.popleft()
            ready.append(item)
        return ready

    def _outcome(self, asked: _Asked) -> BatchItem:
        """Return a picture's item; raises `EngineError` where a second try or none is of use."""
        if asked.stream is None:
            return BatchItem(file=asked.name, size_bytes=asked.size_bytes, error=asked.error)
        try:
            answer = asked.stream.answer
        except EngineError as error:
            if not asked.again or self._engine_failures + 1 == ENGINE_FAILURES:
                raise
            self._engine_failures += 1
            problem = str(error)
        except Gemma3VLError as error:
            problem = str(error)
        else:
            self._engine_failures = 0
            return self._item(asked, answer)
        return BatchItem(file=asked.name, size_bytes=asked.size_bytes, error=problem)

    def _ask_again(self, asked: _Asked) -> None:
        """Ask once more after the engine failed: a closed one refuses, and that ends the run."""
        asked.stream, asked.again = None, True
        self._open(asked)
        while not self._send(asked):
            time.sleep(_BUSY_SEC)

    def _item(self, asked: _Asked, answer: Answer) -> BatchItem:
        value, error = None, None
        if answer.finish_reason == "cancelled":
            error = "The answer was stopped before it was complete."
        elif self._question.with_schema:
            value, error = self._read(answer)
        used = answer.usage
        return BatchItem(
            file=asked.name,
            text=answer.text if error or not self._question.with_schema else "",
            value=value,
            finish_reason=answer.finish_reason,
            usage=Usage(used.prompt_tokens, 0, used.image_tokens, used.completion_tokens),
            error=error,
            size_bytes=asked.size_bytes,
        )

    def _read(self, answer: Answer) -> tuple[Any, str | None]:
        """Return an answer as data, or what is wrong with it."""
        if answer.finish_reason == "length":
            return None, (
                f"The answer was cut after {counted(answer.usage.completion_tokens, 'token')}, "
                "before its JSON was complete. Allow longer answers."
            )
        try:
            value = parse_json(answer.text)
        except ValueError as problem:
            return None, f"The answer is not valid JSON ({problem})."
        try:
            if self._question.check is not None:
                self._question.check(value)
        except ValueError as problem:
            line = " ".join(str(problem).split())
            return None, f"The answer does not fit the schema: {line[:_LONGEST_PROBLEM]}"
        return value, None
