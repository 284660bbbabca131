"""A conversation that is open on this server: its answer grows whether somebody looks or not.

An answer belongs to its conversation, not to a browser tab. A tab watches; one that is reloaded, or
a second one, sees the answer still growing. Nobody watching for `GRACE_SEC` ends it. Knows the
backend protocol; knows nothing of gradio or HTML.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gemma3vl_app.backends.protocol import Backend, Capabilities
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError, Gemma3VLError, public_text
from gemma3vl_app.generation import Answer
from gemma3vl_app.messages import Message
from gemma3vl_app.stream import Stream
from gemma3vl_app.transcript import Transcript
from gemma3vl_app.wording import describe, sentence, summary

GRACE_SEC = 15.0  # for a tab that was reloaded, or has lost its network, to come back
SECONDS_AT_MOST = 1.0  # between two looks of a watcher while nothing is new
SECONDS_BETWEEN_MOMENTS = 0.05  # twenty a second read as flowing text and keep a slow network calm
OUR_FAULT = "Something went wrong on our side; the server's log says what. Try again."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A conversation as it is now.

    `messages` are those of the branch that is shown. A running answer is not among them: it has
    said `said` so far, and with `continues` goes on with the last of them. `versions` says for each
    message which branch of how many it is, from 0. `answer` is what the last answer cost, while
    this server remembers, and `answered_by` the model that gave it.
    """

    messages: tuple[Message, ...]
    versions: tuple[tuple[int, int], ...]
    said: str = ""
    answering: bool = False
    continues: bool = False
    line: str = ""
    is_error: bool = False
    answer: Answer | None = None
    answered_by: Capabilities | None = None


class LiveChat:
    """Hold one open conversation; every method is safe from any thread."""

    def __init__(
        self,
        chat: Chat,
        *,
        save: Callable[[Transcript], None] | None = None,
        backend: Callable[[], Backend] | None = None,
        grace_sec: float = GRACE_SEC,
        system: str | None = None,
    ) -> None:
        """Let `chat` go on here.

        `save` is given all of it after each message. `backend` returns what answers next: the
        model may be another one by then. `system` holds where the page says nothing else.
        """
        self._chat = chat
        self.system = system
        self._backend = backend or (lambda: chat.backend)
        self._save = save or (lambda transcript: None)
        self._grace_sec = grace_sec
        self._saving = threading.Lock()
        self._changed = threading.Condition()  # guards what follows
        self._writing: Writing | None = None
        self._messages: tuple[Message, ...] = ()
        self._versions: tuple[tuple[int, int], ...] = ()
        self._line, self._is_error = "", False
        self._answer: Answer | None = None
        self._answered_by: Capabilities | None = None
        self._transcript = chat.transcript
        self._is_closed = False
        self._version = 0  # grows with every change
        self._watching = 0
        self._look()

    # --- what there is ---

    @property
    def moment(self) -> Moment:
        """The conversation as it is now."""
        with self._changed:
            return self._moment()

    @property
    def transcript(self) -> Transcript:
        """All branches, a running answer left out."""
        with self._changed:
            # A stopped answer may take its time to end: nobody waits for it with the lock held.
            return self._transcript if self._writing is not None else self._chat.transcript

    @property
    def backend(self) -> Backend:
        """What answers next."""
        return self._backend()

    @property
    def session(self) -> str:
        """The salt of the conversation's owner: nothing is reused beyond it."""
        return self._chat.session

    def watch(self) -> Iterator[Moment]:
        """Yield the conversation as it is, and again while an answer grows, until it has ended.

        At least once a second, so that whoever watches can turn to something else.
        """
        seen = -1
        with self._changed:
            if self._writing is None:
                self._look()  # a program may have gone on with the same chat
        with self._watched():
            while True:
                seen, moment = self._next_moment(seen)
                yield moment
                if not moment.answering:
                    return
                time.sleep(SECONDS_BETWEEN_MOMENTS)

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being written, or somebody looks."""
        return self._writing is not None or self._watching > 0

    # --- what a person does ---

    def begin(self, ask: Callable[[Chat], Stream], *, continues: bool = False) -> Writing:
        """Begin an answer: `ask` is `Chat.stream`, `regenerate`, `edit` or `resume`.

        Raises what `ask` raises, and `ConversationError` while another answer is being written; the
        conversation is then as it was.
        """
        with self._changed:
            self._refuse_while_writing()
            before = self._chat.transcript
            backend = self._chat.backend = self._backend()
            writing = Writing(ask(self._chat), before, continues, backend.capabilities)
            self._writing = writing
            self._look()
            self._tell("Sent")
        self._keep()  # the question, before whoever sent it is told; its answer may still fail
        threading.Thread(target=self._read, args=(writing,), daemon=True).start()
        return writing

    def change(self, act: Callable[[Chat], None]) -> None:
        """Change what is shown: `act` is `Chat.undo`, `switch` or `branch`; not while answering."""
        with self._changed:
            self._refuse_while_writing()
            act(self._chat)
            self._look()
            self._answer = None
            self._tell("")
        self._keep()

    def stop(self) -> None:
        """End the answer that is being written, if any; what it has said stays."""
        with self._changed:
            if self._writing is not None:
                self._writing.stream.cancel()

    def close(self) -> None:
        """End the answer, and go on or save no more: the conversation was deleted, or closed."""
        with self._saving:
            self._save = lambda transcript: None
        with self._changed:
            self._is_closed = True
        self.stop()

    # --- inside ---

    def _refuse_while_writing(self) -> None:
        if self._is_closed:
            raise ConversationError("This conversation was deleted or closed. Begin a new one.")
        if self._writing is not None:
            raise ConversationError("Still answering. Stop it first, or wait.")

    def _tell(self, line: str, *, is_error: bool = False) -> None:
        self._line, self._is_error = line, is_error
        self._version += 1
        self._changed.notify_all()

    def _look(self) -> None:
        """Note what is shown: once per message, not once per token."""
        self._messages = self._chat.conversation.messages
        self._transcript = self._chat.transcript
        self._versions = tuple(self._version_of(index) for index in range(len(self._messages)))

    def _version_of(self, index: int) -> tuple[int, int]:
        versions = self._chat.versions(index)
        here = next(n for n, each in enumerate(versions) if each is self._messages[index])
        return here, len(versions)

    def _next_moment(self, seen: int) -> tuple[int, Moment]:
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, timeout=SECONDS_AT_MOST)
            return self._version, self._moment()

    def _moment(self) -> Moment:
        writing = self._writing
        return Moment(
            messages=self._messages,
            versions=self._versions,
            said=writing.said if writing else "",
            answering=writing is not None,
            continues=writing.continues if writing else False,
            line=self._line,
            is_error=self._is_error,
            answer=None if writing else self._answer,
            answered_by=self._answered_by,
        )

    def _read(self, writing: Writing) -> None:
        """Follow a stream to its end; runs on a thread of its own."""
        try:
            for chunk in writing.stream:
                with self._changed:
                    writing.said += chunk.text
                    self._tell(sentence(describe(chunk.status)))
            answer = writing.stream.answer
        except Gemma3VLError as error:
            self._take_back(writing, public_text(error))
        except Exception:
            _log.exception("answering failed")
            self._take_back(writing, OUR_FAULT)
        else:
            self._end(writing, answer)

    def _end(self, writing: Writing, answer: Answer) -> None:
        if not answer.text.strip() and not writing.continues:
            stopped = answer.finish_reason == "cancelled"
            line = "Stopped before the first word." if stopped else "The model had nothing to say."
            self._take_back(writing, line, is_error=False)
            return
        trouble = self._save_now(lambda: self._chat.transcript)  # `Chat` has put the answer there
        with self._changed:
            self._writing, self._answer, self._answered_by = None, answer, writing.about
            self._look()
            self._tell(trouble or sentence(summary(answer)), is_error=trouble is not None)

    def _take_back(self, writing: Writing, line: str, *, is_error: bool = True) -> None:
        """Go back to before the answer was asked for: nothing came of it."""
        with self._changed:
            self._chat.restore(writing.before)
            self._writing, writing.taken_back = None, True
            self._look()
            self._tell(line, is_error=is_error)
        self._keep()

    def _keep(self) -> None:
        """Save all there is; where that fails, the conversation goes on and a line says so."""
        if trouble := self._save_now(lambda: self.transcript):
            with self._changed:
                self._tell(trouble, is_error=True)

    def _save_now(self, transcript: Callable[[], Transcript]) -> str | None:
        """Save a transcript; returns what went wrong."""
        with self._saving:  # whoever comes last saves what is newest
            try:
                self._save(transcript())
            except Gemma3VLError as error:
                return public_text(error)
            except Exception:  # a defect: the conversation goes on all the same
                _log.exception("saving a conversation failed")
                return OUR_FAULT
        return None

    @contextmanager
    def _watched(self) -> Iterator[None]:
        with self._changed:
            self._watching += 1
        try:
            yield
        finally:
            with self._changed:
                self._watching -= 1
                if not self._watching and self._writing is not None:
                    timer = threading.Timer(self._grace_sec, self._end_if_alone, [self._writing])
                    timer.daemon = True
                    timer.start()

    def _end_if_alone(self, writing: Writing) -> None:
        with self._changed:
            if not self._watching and self._writing is writing:
                writing.stream.cancel()


class Writing:
    """One answer in the making; `taken_back` once it is clear that nothing came of it."""

    def __init__(
        self, stream: Stream, before: Transcript, continues: bool, about: Capabilities
    ) -> None:
        self.stream = stream
        self.about = about  # of the model that answers
        self.before = before
        self.continues = continues
        self.said = ""
        self.taken_back = False
