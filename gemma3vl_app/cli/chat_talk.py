"""One chat in the terminal: what is attached and kept, and one answer at a time, stoppable.

Whatever fails or is stopped before its first word leaves the chat as it was. Knows nothing of
commands or of how lines are typed.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from gemma3vl_app.backends.protocol import Backend, StreamOptions
from gemma3vl_app.chat import Chat
from gemma3vl_app.cli.chat_screen import Screen
from gemma3vl_app.cli.exit_codes import INTERRUPTED
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Answer, Greedy, Sampling
from gemma3vl_app.pictures import Crops, Picture
from gemma3vl_app.stream import Stream
from gemma3vl_app.wording import summary

PATIENCE = 3  # so many Ctrl-C, and the program ends though the answer has not


class Talk:
    """A `Chat`, the pictures that go with the next message, and what was done so far.

    `options` go with every request. `computed_tokens` and `cached_tokens` count what this talk
    cost and saved; `saved_as` is the file the chat was read from or saved to last.
    """

    def __init__(
        self, backend: Backend, chat: Chat, screen: Screen, options: StreamOptions
    ) -> None:
        self.backend = backend
        self.chat = chat
        self.screen = screen
        self.options = options
        self.attached: list[Picture] = []
        self.crops: Crops = "auto"
        self.saved_as: Path | None = None
        self.unsaved = False
        self.ended = False
        self.computed_tokens = 0
        self.cached_tokens = 0
        self.last: Answer | None = None

    @property
    def sampling(self) -> Sampling:
        """How answers are chosen."""
        return self.chat.sampling or self.backend.capabilities.sampling

    def attach(self, pictures: Sequence[Picture]) -> None:
        """Show pictures and let them go with the next message."""
        if pictures and not self.backend.capabilities.pictures:
            raise ConversationError(
                "This model takes no pictures. Start the chat with another one."
            )
        self.attached += pictures
        self.screen.show(pictures)

    def send(self, text: str) -> None:
        """Ask; what is attached goes with it, and stays attached where nothing comes of it."""
        pictures = tuple(self.attached)
        if self._answer(
            lambda: self.chat.stream(text, images=pictures, crops=self.crops, **self.options)
        ):
            self.attached = []

    def edit(self, text: str) -> None:
        """Say the last message differently, its pictures kept."""
        messages = self.chat.conversation.messages
        asked = [n for n, message in enumerate(messages) if message.role == "user"]
        if not asked:
            raise ConversationError("There is no message to say differently; ask something first.")
        self._answer(lambda: self.chat.edit(asked[-1], text, **self.options))

    def retry(self) -> None:
        """Answer the last message again; a given seed is counted up, or it would say the same."""
        options: StreamOptions = {**self.options}
        rule, messages = self.sampling, self.chat.conversation.messages
        if isinstance(rule, Greedy):
            self.screen.note(
                "This chat takes the likeliest words, so expect the same answer. "
                "`gemma3vl chat --temperature 1` draws others."
            )
        elif rule.seed is not None and messages and messages[-1].role == "assistant":
            tries = len(self.chat.versions(len(messages) - 1))
            options["sampling"] = dataclasses.replace(rule, seed=rule.seed + tries)
        self._answer(lambda: self.chat.regenerate(**options))

    def resume(self) -> None:
        """Go on with the last answer where it was cut."""
        self._answer(lambda: self.chat.resume(**self.options))

    def go_to(self, count: int) -> None:
        """Go back to where the chat had `count` messages; what followed stays as a branch."""
        if count:
            self.chat.branch(count - 1)
        else:
            while self.chat.conversation.messages:
                self.chat.undo()

    def take(self, chat: Chat, saved_as: Path) -> None:
        """Go on with another chat, read from a file."""
        self.chat, self.saved_as, self.unsaved, self.last = chat, saved_as, False, None

    def _answer(self, start: Callable[[], Stream]) -> bool:
        """Show an answer as it comes; False, and the chat as it was, where there was none."""
        place = _place(self.chat)
        try:
            with _stopped_by_ctrl_c() as interrupts:
                answer = self.screen.follow(interrupts.watch(start()))
        except Exception:
            _return_to(self.chat, place)
            raise
        if not answer.text.strip():
            _return_to(self.chat, place)
        self._count(answer)
        self._tell(answer)
        if interrupts.count and not self.screen.interactive:
            raise KeyboardInterrupt  # a program that is interrupted ends
        return bool(answer.text.strip())

    def _count(self, answer: Answer) -> None:
        usage = answer.usage
        self.computed_tokens += usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens
        self.cached_tokens += usage.cached_tokens
        if answer.text.strip():
            self.last, self.unsaved = answer, True

    def _tell(self, answer: Answer) -> None:
        if answer.text.strip():
            if self.screen.interactive:
                hint = " · /resume goes on" if answer.finish_reason == "length" else ""
                self.screen.note(f"{summary(answer)}{hint}\n")
        elif answer.finish_reason == "cancelled":
            self.screen.note("stopped before the first word; the chat is as it was")
        else:
            self.screen.note("The model had nothing to say; the chat is as it was.")


def open_pictures(paths: Iterable[Path]) -> list[Picture]:
    """Return pictures, and of PDFs all pages; raises `PictureError` for the first bad one."""
    found: list[Picture] = []
    for path in paths:
        found += Picture.pages(path) if path.suffix.lower() == ".pdf" else [Picture.open(path)]
    return found


# --- the place in the tree of turns ---------------------------------------------------------------


def _place(chat: Chat) -> tuple[int, ...]:
    """Return which version of each message is shown, from the first one down."""
    found = []
    for index, message in enumerate(chat.conversation.messages):
        versions = chat.versions(index)
        found.append(next(n for n, version in enumerate(versions) if version is message))
    return tuple(found)


def _return_to(chat: Chat, place: tuple[int, ...]) -> None:
    if not place:
        while chat.conversation.messages:
            chat.undo()
        return
    for index, version in enumerate(place):
        chat.switch(index, version)
    chat.branch(len(place) - 1)


# --- Ctrl-C ---------------------------------------------------------------------------------------


class _Interrupts:
    """Ctrl-C while an answer is written: it ends the answer, and only insisting ends the program.

    No exception is raised where it comes, which may be between taking a lock and giving it back.
    """

    def __init__(self) -> None:
        self.count = 0
        self._stream: Stream | None = None

    def watch(self, stream: Stream) -> Stream:
        self._stream = stream
        if self.count:  # it came while the request was prepared
            stream.cancel()
        return stream

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count >= PATIENCE:
            raise SystemExit(INTERRUPTED)
        if self._stream is not None:
            self._stream.cancel()


@contextmanager
def _stopped_by_ctrl_c() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    before = signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
