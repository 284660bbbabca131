"""One browser session: its conversation, and the answer being given right now.

Turns what a person sent into a `Conversation` and a stream into `View`s, which say in plain
values what the page shows. Knows the backend protocol; knows nothing of gradio or HTML.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import Gemma3VLError
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.stream import Stream
from gemma3vl_app.wording import describe, sentence, summary

SECONDS_BETWEEN_VIEWS = 0.05  # twenty a second read as flowing text and keep a slow network calm
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draft:
    """What a person has written and not sent, or what they just sent: text and picture files."""

    text: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """One message of the page; `files` are pictures of a user's message."""

    role: Literal["user", "assistant"]
    text: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """What the page shows: messages, a line of plain text below them, and the box to write in.

    `draft` None leaves the box as the person has it.
    """

    messages: tuple[Shown, ...]
    line: str = ""
    is_error: bool = False
    answering: bool = False
    draft: Draft | None = None


class Session:
    """Hold one conversation for one browser tab; safe to stop from another thread.

    A copy is a new, empty session: gradio deep-copies what it keeps for each visitor.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._turn: _Turn | None = None
        self._forget()

    def __deepcopy__(self, memo: dict[int, object]) -> Session:
        return Session(self._backend)

    @property
    def conversation(self) -> Conversation:
        """The finished turns."""
        return self._chat.conversation

    def ask(self, draft: Draft) -> Iterator[View]:
        """Send `draft`; yield views until the answer has ended, was stopped, or failed.

        When nothing came of it, the last view gives the draft back and the conversation is as
        before.
        """
        turn = self._take()
        if turn is None:
            yield replace(self._view("Still answering. Stop it first, or wait."), answering=True)
            return
        try:
            yield from self._answer(draft, turn)
        except Gemma3VLError as error:
            if self._turn is turn:
                yield self._view(str(error), is_error=True, draft=draft)
        except Exception:
            _log.exception("answering failed")
            if self._turn is turn:
                line = "Something went wrong on our side; the server's log says what. Try again."
                yield self._view(line, is_error=True, draft=draft)
        finally:
            turn.stop()  # also when the browser has gone and this generator is closed
            with self._lock:
                if self._turn is turn:
                    self._turn = None

    def stop(self) -> None:
        """End the answer being given, if any; what it has said stays."""
        turn = self._turn
        if turn is not None:
            turn.stop()

    def clear(self) -> View:
        """Stop, forget everything, and return the empty page."""
        with self._lock:
            turn, self._turn = self._turn, None
            self._forget()
        if turn is not None:
            turn.stop()
        return self._view(draft=Draft())

    def _take(self) -> _Turn | None:
        """Begin a turn of the conversation as it is now; None while another one runs."""
        with self._lock:
            if self._turn is not None:
                return None
            self._turn = _Turn(self._chat)
            return self._turn

    def _forget(self) -> None:
        # A session salt of its own: nothing is reused from, or for, another visitor.
        self._chat = Chat(self._backend, session=secrets.token_hex(16))
        self._shown: tuple[Shown, ...] = ()

    def _view(self, line: str = "", *, is_error: bool = False, draft: Draft | None = None) -> View:
        return View(self._shown, line, is_error, draft=draft)

    def _as_it_is(self) -> View:
        return replace(self._view(), answering=self._turn is not None)

    def _answer(self, draft: Draft, turn: _Turn) -> Iterator[View]:
        # 1) the pictures, before anything is shown: a bad one leaves the page as it is
        text = draft.text.strip()
        if not text:
            raise Gemma3VLError("Write a question first; pictures can go with it.")
        chat = turn.chat
        pictures = [Picture.open(file, name=Path(file).name) for file in draft.files]
        shown = (*self._shown, Shown("user", text, draft.files))
        if self._turn is not turn:  # cleared meanwhile: the page shows something else
            yield self._as_it_is()
            return
        yield View(shown, "Sent", answering=True, draft=Draft())

        # 2) the answer, as it comes
        limit = self._backend.capabilities.answer_tokens
        stream = chat.stream(text, images=pictures, max_new_tokens=limit)
        turn.starts(stream)
        try:
            for said, line in _paced(stream):
                if self._turn is not turn:  # as above
                    yield self._as_it_is()
                    return
                messages = (*shown, Shown("assistant", said)) if said else shown
                yield View(messages, line, answering=True)
            answer = stream.answer
        except Exception:
            chat.undo()
            raise

        # 3) the end
        if self._turn is not turn:  # as above
            yield self._as_it_is()
            return
        if not answer.text.strip():
            chat.undo()
            stopped = answer.finish_reason == "cancelled"
            line = "Stopped before the first word." if stopped else "The model had nothing to say."
            yield self._view(line, draft=draft)
            return
        self._shown = (*shown, Shown("assistant", answer.text))
        yield self._view(sentence(summary(answer)))


class _Turn:
    """One answer in the making; it can be stopped before its stream exists."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._stream: Stream | None = None
        self._stopped = False

    def starts(self, stream: Stream) -> None:
        self._stream = stream
        if self._stopped:
            stream.cancel()

    def stop(self) -> None:
        self._stopped = True
        if self._stream is not None:
            self._stream.cancel()


def _paced(stream: Stream) -> Iterator[tuple[str, str]]:
    """Yield the text so far and the status line, at most every `SECONDS_BETWEEN_VIEWS`."""
    pieces: list[str] = []
    line, shown_at = "", 0.0
    for chunk in stream:
        pieces.append(chunk.text)
        was, line = line, sentence(describe(chunk.status))
        now = time.monotonic()
        if line != was or now - shown_at >= SECONDS_BETWEEN_VIEWS:
            shown_at = now
            yield "".join(pieces), line
