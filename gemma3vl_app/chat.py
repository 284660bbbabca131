"""`Chat`: a conversation that is kept, asked, stopped, corrected and branched.

Stateful; the stateless level below is `Backend.stream`. Turns form a tree (`turn_tree`): `edit`,
`regenerate` and `branch` grow new branches and never lose old ones.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

from gemma3vl_app.backends.protocol import Backend, StreamOptions
from gemma3vl_app.conversation_file import read_chat, write_chat
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Answer, Preview, Sample, Sampling
from gemma3vl_app.messages import Conversation, Message, Part, Text
from gemma3vl_app.pictures import Crops, Picture
from gemma3vl_app.schemas import as_json_schema
from gemma3vl_app.stream import Stream
from gemma3vl_app.transcript import ROOT, Generated, Transcript, recorded_ids
from gemma3vl_app.turn_tree import TreeTurn, flat, grown

DEFAULT_MAX_NEW_TOKENS = 1 << 10  # that of `Backend.stream`
_MOST = (1 << 63) - 1  # what a conversation file holds
_SEEDS = 1 << 53  # seeds that survive JSON readers which keep numbers as doubles
_log = logging.getLogger(__name__)


class Chat:
    """Ask a model several things in one conversation.

    ```python
    chat = Chat(backend, system="Answer briefly.")
    for chunk in chat.stream("Which one is older?", images=["a.jpg", "b.jpg"]):
        print(chunk.text, end="")
    answer = chat.ask("Why?")
    chat.save("clocks.chat.zip")
    ```

    Earlier turns and pictures are cached by the backend: a follow-up computes only its new words.
    Answers drawn at random get a seed where none is given, so that a saved chat can be replayed.
    Every method that makes the model write returns a `Stream`, except `ask`, which waits for its
    answer. Safe from any thread: a notebook's cell, its widget and the page go on with the same
    chat, with one answer at a time.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        system: str | None = None,
        conversation: Conversation | None = None,
        sampling: Sampling | None = None,
        session: str | None = None,
    ) -> None:
        if conversation is not None and system is not None:
            raise ConversationError(
                "Give either `conversation` or `system`: a conversation has its own."
            )
        self.backend = backend
        self.system = system if conversation is None else conversation.system
        self.sampling = sampling
        self.session = session or ""
        self._root = TreeTurn()
        self._head = self._root
        for message in conversation.messages if conversation else ():
            self._head = self._head.add(message)
        self._lock = threading.RLock()  # guards the tree and what follows
        self._followers: list[Callable[[], None]] = []
        self._running: Stream | None = None
        self._options: StreamOptions = {}  # those of the running answer
        self._asked_system: str | None = None  # and its system text
        self._continues = False  # the running answer goes on with the head's text
        self._opened: frozenset[TreeTurn] = frozenset()  # read from a file
        self._recalled: set[tuple[TreeTurn, str | None, str | None]] = (
            set()
        )  # of those; see `_recall`

    @classmethod
    def open(cls, path: str | Path, backend: Backend, *, session: str | None = None) -> Self:
        """Return the chat that `save` wrote, all branches, to be gone on with.

        The backend may be another than the one that answered. Raises `ConversationError` for a file
        that is damaged, too large or no chat.
        """
        return cls.from_transcript(read_chat(path), backend, session=session)

    def save(self, path: str | Path, *, overwrite: bool = True) -> Path:
        """Write the whole chat to one file, or leave what was there as it is; returns its path.

        It holds all branches, the pictures' own files, and what `gemma3vl replay` needs to write
        the answers again; docs/conversation-file.md describes it. Raises `ConversationError`.
        """
        return write_chat(path, self.transcript, overwrite=overwrite)

    # --- asking ---

    def ask(
        self,
        *parts: str | Part,
        images: Iterable[Any] = (),
        crops: Crops = "auto",
        **options: Unpack[StreamOptions],
    ) -> Answer:
        """Send a user message and wait for the answer; see `stream`."""
        with self.stream(*parts, images=images, crops=crops, **options) as stream:
            return stream.answer  # an interrupt while waiting here cancels

    def stream(
        self,
        *parts: str | Part,
        images: Iterable[Any] = (),
        crops: Crops = "auto",
        **options: Unpack[StreamOptions],
    ) -> Stream:
        """Send a user message and return its answer as a stream.

        `images` (one or a list of paths, bytes, PIL pictures, arrays or `Picture`s) stand before
        `parts`; give
        `Picture` values among `parts` to interleave them. `options` are those of `Backend.stream`.
        If the request is refused, the conversation is as it was.
        """
        pictures = _pictures(images, crops)
        message = Message("user", (*pictures, *(_part(part, crops) for part in parts)))
        with self._changing():
            return self._answer(self._head, message, options)

    def stop(self) -> None:
        """Stop the running answer, if any; what it said so far stays. Safe from any thread."""
        running = self._running
        if running is not None:
            running.cancel()

    def regenerate(self, **options: Unpack[StreamOptions]) -> Stream:
        """Answer the last user message anew; the answer so far stays as another branch."""
        with self._changing():
            turn = self._head
            if (
                turn.message is not None
                and turn.message.role == "assistant"
                and turn.parent is not None
            ):
                turn = turn.parent
            if turn.message is None or turn.message.role != "user":
                raise ConversationError("There is no user message to answer; ask something first.")
            return self._start(turn, options)

    def resume(self, **options: Unpack[StreamOptions]) -> Stream:
        """Go on with the last answer where it was cut; the stream brings only the new text."""
        with self._changing():
            if self._head.message is None or self._head.message.role != "assistant":
                raise ConversationError("There is no answer to go on with; ask something first.")
            return self._start(self._head, options, continues=True)

    def preview(
        self, *parts: str | Part, images: Iterable[Any] = (), crops: Crops = "auto"
    ) -> Preview:
        """Return what sending this message would cost, computing nothing."""
        added = (*_pictures(images, crops), *(_part(part, crops) for part in parts))
        with self._lock:
            self._settle()
            conversation = self._conversation(self._head).user(*added)
        return self.backend.preview(conversation, session=self.session)

    # --- the tree of turns ---

    @property
    def conversation(self) -> Conversation:
        """The messages up to where the chat stands now, a running answer left out."""
        with self._lock:
            self._settle_if_over()
            return self._conversation(self._head)

    def undo(self) -> None:
        """Step back before the last user message; it and its answer stay as a branch."""
        with self._changing():
            turn = self._head
            while turn.message is not None and turn.message.role == "assistant" and turn.parent:
                turn = turn.parent
            if turn.parent is None:
                raise ConversationError("There is nothing to undo.")
            self._head = turn.parent

    def edit(self, index: int, text: str, **options: Unpack[StreamOptions]) -> Stream:
        """Say user message `index` (from 0) differently, its pictures kept, and stream the answer.

        Grows a branch from there; what followed the old wording stays in its own.
        """
        with self._changing():
            turn = self._turn(index)
            assert turn.message is not None and turn.parent is not None
            if turn.message.role != "user":
                raise ConversationError(
                    f"Message {index} is the assistant's; only user messages are edited."
                )
            message = Message("user", (*turn.message.pictures, *([Text(text)] if text else [])))
            return self._answer(turn.parent, message, options)

    def branch(self, index: int) -> None:
        """Go back to after message `index` (from 0): what is asked next is a new branch."""
        with self._changing():
            self._head = self._turn(index)

    def versions(self, index: int) -> tuple[Message, ...]:
        """Return all branches that message `index` (from 0) is one of, oldest first."""
        with self._lock:
            self._settle_if_over()
            parent = self._turn(index).parent
            assert parent is not None
            return tuple(turn.message for turn in parent.children if turn.message is not None)

    def switch(self, index: int, version: int) -> None:
        """Show branch `version` (from 0) of message `index`, down to its latest turn."""
        with self._changing():
            parent = self._turn(index).parent
            assert parent is not None
            if not 0 <= version < len(parent.children):
                raise ConversationError(
                    f"Message {index} has {len(parent.children)} versions; {version} is none."
                )
            turn = parent.children[version]
            while turn.children:
                turn = turn.children[-1]
            self._head = turn

    # --- all of it as a value ---

    @property
    def transcript(self) -> Transcript:
        """All branches and how each answer came about, a running answer left out."""
        with self._lock:
            self._settle_if_over()
            turns, head = flat(self._root, self._head)
            return Transcript(turns, head, self.system, self.sampling)

    @classmethod
    def from_transcript(
        cls, transcript: Transcript, backend: Backend, *, session: str | None = None
    ) -> Self:
        """Return a chat that stands where `transcript` does, to be gone on with.

        Where the backend has the tokenizer that wrote the answers, their very tokens are used.
        """
        chat = cls(backend, system=transcript.system, sampling=transcript.sampling, session=session)
        turns = grown(chat._root, transcript)
        if transcript.head != ROOT:
            chat._head = turns[transcript.head]
        chat._opened = frozenset(turns)
        return chat

    def restore(self, transcript: Transcript) -> None:
        """Stand again where `transcript` does: what came after it is forgotten."""
        self.stop()
        before = type(self).from_transcript(transcript, self.backend, session=self.session)
        with self._lock:
            self.system, self.sampling = before.system, before.sampling
            self._root, self._head, self._opened = before._root, before._head, before._opened
            self._running, self._recalled = None, set()
        self._tell()

    # --- following it ---

    def on_change(self, act: Callable[[], None]) -> None:
        """Call `act` from now on when a question was asked or answered, or another branch is shown.

        Whoever changes the chat waits for it; after an answer it is called on a thread of its own.
        What it raises is logged.
        """
        with self._lock:
            self._followers.append(act)
            self._tell_at_the_end()  # of an answer that is being written already

    def _tell(self) -> None:
        for act in tuple(self._followers):
            try:
                act()
            except Exception:
                _log.exception("a follower of a chat failed")

    def _tell_at_the_end(self) -> None:
        """Tell followers when the running answer, if any, has ended."""
        if self._running is None or not self._followers:
            return

        def wait(stream: Stream) -> None:
            stream.wait()
            self._tell()

        threading.Thread(target=wait, args=(self._running,), name="chat", daemon=True).start()

    # --- inside ---

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Let one thread change the chat, with no answer being written; then tell followers."""
        with self._lock:
            self._settle()
            yield
        self._tell()  # without the lock: they may look, and wait for others who do

    def _turn(self, index: int) -> TreeTurn:
        path = self._head.path()
        if not 0 <= index < len(path):
            raise ConversationError(f"There is no message {index}; this chat has {len(path)}.")
        return path[index]

    def _conversation(self, turn: TreeTurn) -> Conversation:
        messages = tuple(turn.message for turn in turn.path() if turn.message is not None)
        return Conversation(messages, self.system)

    def _answer(self, parent: TreeTurn, message: Message, options: StreamOptions) -> Stream:
        """Add a user message and answer it; a refused request leaves nothing behind."""
        turn = parent.add(message)
        try:
            return self._start(turn, options)
        except BaseException:
            parent.children.remove(turn)
            raise

    def _start(self, turn: TreeTurn, options: StreamOptions, *, continues: bool = False) -> Stream:
        chosen: StreamOptions = {"session": self.session, **options}
        chosen["sampling"] = self._seeded(options.get("sampling"))
        self._recall(turn, chosen.get("adapter"))
        self._running = self.backend.stream(self._conversation(turn), **chosen)
        self._head, self._continues, self._options = turn, continues, chosen
        self._asked_system = self.system
        self._tell_at_the_end()
        return self._running

    def _recall(self, turn: TreeTurn, adapter: str | None) -> None:
        """Give the backend the tokens of recorded answers that its own tokenizer wrote."""
        path = turn.path()
        opened = {(each, adapter, self.system) for each in path if each in self._opened}
        if opened <= self._recalled:
            return
        answers = recorded_ids(
            [turn.generated for turn in path],
            tokenizer_sha256=self.backend.capabilities.tokenizer_sha256,
            system=self.system,
            adapter=adapter,
        )
        if answers:
            self.backend.remember(
                self._conversation(turn), answers, adapter=adapter, session=self.session
            )
        self._recalled |= opened

    def _seeded(self, sampling: Sampling | None) -> Sampling:
        """Return the rule that holds for the next answer, with a seed where it draws."""
        rule = sampling or self.sampling or self.backend.capabilities.sampling
        if isinstance(rule, Sample) and rule.seed is None:
            return replace(rule, seed=secrets.randbelow(_SEEDS))
        return rule

    def _settle_if_over(self) -> None:
        """Put the answer into the tree if it has ended or been stopped."""
        if self._running is not None and (self._running.done or self._running.cancelled):
            self._settle()

    def _settle(self) -> None:
        """Put the finished answer into the tree; refuse to go on while one is being written."""
        if self._running is None:
            return
        if not self._running.done and not self._running.cancelled:
            raise ConversationError(
                "An answer is still being written; wait for it, or stop() it first."
            )
        answer = None
        with suppress(Exception):  # it was raised to whoever read the stream; the question stays
            answer = self._running.answer  # of a cancelled one: there within a step
        self._running = None  # not before: an interrupt while waiting would lose the answer
        if answer is None or not answer.text:
            return
        text, parent = answer.text, self._head
        earlier: tuple[Generated, ...] = ()
        if self._continues:
            assert self._head.message is not None and self._head.parent is not None
            text, parent = self._head.message.text + text, self._head.parent
            earlier = self._head.generated
        generated = (*earlier, self._generated(answer))
        self._head = parent.add(Message("assistant", (Text(text),)), generated)

    def _generated(self, answer: Answer) -> Generated:
        """Return how the answer that has just ended came about."""
        options, rule = self._options, self._options["sampling"]
        assert rule is not None
        schema, stop = options.get("schema"), options.get("stop", ())
        return Generated(
            ids=tuple(token.id for token in answer.tokens),
            said_tokens=_said_tokens(answer),
            text=answer.text,
            finish_reason=answer.finish_reason,
            model=self.backend.capabilities.identity,
            system=self._asked_system,
            sampling=rule,
            max_new_tokens=min(int(options.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)), _MOST),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            schema=None if schema is None else as_json_schema(schema),
            adapter=options.get("adapter"),
            usage=answer.usage,
            timing=answer.timing,
        )


def _said_tokens(answer: Answer) -> int:
    """Return how many of an answer's tokens say its text; others lie past a stop string."""
    said = ""
    for count, token in enumerate(answer.tokens):
        if said == answer.text:
            return count
        said += token.text
    return len(answer.tokens)


def _pictures(images: Any, crops: Crops) -> list[Picture]:
    """Open pictures; one alone need not stand in a list, though it may be iterable itself."""
    alone = isinstance(images, str | bytes) or not isinstance(images, list | tuple | Iterator)
    return [Picture.open(image, crops=crops) for image in ([images] if alone else images)]


def _part(part: str | Part | Path, crops: Crops) -> Part:
    if isinstance(part, str):
        return Text(part)
    return part if isinstance(part, Text | Picture) else Picture.open(part, crops=crops)
