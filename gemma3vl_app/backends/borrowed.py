"""A model that answers on a GPU which is lent for one answer at a time: Hugging Face's ZeroGPU.

The model lies in the memory of this process, on the CPU, where it counts tokens and computes
nothing. For each answer a GPU is borrowed: a process forked from this one, in which the model is
moved there. What that process has computed may be gone with the next answer.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from gemma3vl_app.backends.local import LocalBackend
from gemma3vl_app.backends.protocol import Capabilities, Schema
from gemma3vl_app.errors import EngineError, Gemma3VLError
from gemma3vl_app.generation import Answer, Chunk, Preview, Sampling, Token, Usage
from gemma3vl_app.messages import Conversation
from gemma3vl_app.planning import LoadPlan
from gemma3vl_app.stream import Stream

LENT = "It answers on a GPU that is lent for each answer; what was said before is computed anew."

# What a borrowed process says: chunks, then the answer, or the error that it ended with. Errors
# are values here: raised ones would lose what they say on their way between the processes.
Piece = Chunk | Answer | Gemma3VLError
Compute = Callable[[Conversation, Mapping[str, Any]], Iterator[Piece]]

_log = logging.getLogger(__name__)


class BorrowedBackend:
    """Answers with `local`'s model on `device`, inside what `borrow` makes of a generator function.

    `borrow` is `spaces.GPU`, or anything that runs a generator function in a forked process.
    """

    def __init__(
        self, local: LocalBackend, borrow: Callable[[Compute], Compute], *, device: str = "cuda"
    ) -> None:
        self._local = local
        self._device = device
        self._there: tuple[int, LocalBackend] | None = None  # with the process it is in

        def compute(conversation: Conversation, options: Mapping[str, Any]) -> Iterator[Piece]:
            try:
                with self._moved().stream(conversation, **options) as stream:
                    yield from stream
                    yield stream.answer
            except Gemma3VLError as error:
                yield error

        self._compute = borrow(compute)

    def _moved(self) -> LocalBackend:
        """Return the model on the device; called in the borrowed process only."""
        if self._there is None or self._there[0] != os.getpid():
            torch.set_num_threads(1)  # those of this process stayed behind when it was forked
            self._there = os.getpid(), self._local.on(self._device)
        return self._there[1]

    @property
    def capabilities(self) -> Capabilities:
        """What the model is and can do; `knows` says that its GPU is lent."""
        about = self._local.capabilities
        return replace(about, knows=f"{about.knows} {LENT}".strip(), score=False)

    @property
    def plan(self) -> LoadPlan:
        """How the model was placed in this process."""
        return self._local.plan

    @property
    def adapters(self) -> tuple[str, ...]:
        """None: see `add_adapter`."""
        return ()

    def stream(
        self,
        conversation: Conversation,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 1024,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        schema: Schema | None = None,
        adapter: str | None = None,
        session: str = "",
    ) -> Stream:
        """Borrow a GPU and start an answer; see `Backend.stream`."""
        cost = self._local.preview(conversation, adapter=adapter)  # what is bad borrows nothing
        options = {
            "sampling": sampling,
            "max_new_tokens": max_new_tokens,
            "stop": tuple(stop),
            "logprobs": logprobs,
            "schema": schema,
            "session": session,
        }
        said: list[Chunk] = []
        # A GPU may be long in coming: who stops does not wait for it.
        stream = Stream(on_cancel=lambda: stream.finish(_stopped(said, cost)))
        # spaces finds in the context whose request this is, and whose time it takes.
        run = copy_context().run
        threading.Thread(
            target=run, args=(self._follow, stream, said, conversation, options), daemon=True
        ).start()
        return stream

    def _follow(
        self,
        stream: Stream,
        said: list[Chunk],
        conversation: Conversation,
        options: Mapping[str, Any],
    ) -> None:
        """Hand on what the borrowed process says, until it ends or somebody stops it."""
        try:
            for piece in self._compute(conversation, options):
                if stream.done:
                    return  # stopped: the generator is closed, and the GPU given back
                if isinstance(piece, Answer):
                    stream.finish(piece)
                elif isinstance(piece, Gemma3VLError):
                    stream.fail(piece)
                else:
                    said.append(piece)
                    stream.put(piece)
            stream.fail(EngineError("The GPU was taken away before the answer was finished."))
        except Exception as error:  # whatever lends the GPU says so in its own ways
            _log.warning("no answer on a borrowed GPU", exc_info=True)
            stream.fail(EngineError(f"No GPU could be borrowed: {error} Try again later."))

    def preview(
        self, conversation: Conversation, *, adapter: str | None = None, session: str = ""
    ) -> Preview:
        """Return what `conversation` would cost, computing nothing."""
        return self._local.preview(conversation, adapter=adapter, session=session)

    def score(
        self,
        conversation: Conversation,
        text: str,
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> tuple[Token, ...]:
        """Raise `EngineError`: only answers borrow a GPU."""
        raise EngineError("Texts are not scored where a GPU is lent for answers only.")

    def remember(
        self,
        conversation: Conversation,
        answers: Mapping[int, Sequence[int]],
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> None:
        """Do nothing: no answer's tokens outlast it."""

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Raise `EngineError`: borrowed processes that run already would not know it."""
        raise EngineError("Adapters cannot be added where a GPU is lent: merge them first.")

    def close(self, *, finish_sec: float = 0.0) -> None:
        """Let go of the model; answers that run end with their borrowed processes."""
        self._local.close(finish_sec=finish_sec)

    def __enter__(self) -> BorrowedBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _stopped(said: Sequence[Chunk], cost: Preview) -> Answer:
    """Return an answer that was stopped here, while the borrowed process was still writing."""
    tokens = tuple(token for chunk in said for token in chunk.tokens)
    usage = Usage(
        prompt_tokens=cost.prompt_tokens,
        image_tokens=cost.image_tokens,
        completion_tokens=len(tokens),
    )
    return Answer("".join(chunk.text for chunk in said), "cancelled", usage, tokens=tokens)
