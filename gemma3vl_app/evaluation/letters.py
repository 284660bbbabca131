"""Multiple choice without a word written: how likely the model finds each letter as its answer.

The letters of a question are scored one after the other, so that all but the first find the prompt
computed; several questions at once, since scoring waits for its turn in the engine.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import BusyError, EngineError, EvaluationError, Gemma3VLError
from gemma3vl_app.generation import Answer, FinishReason, Token
from gemma3vl_app.messages import Conversation, Text
from gemma3vl_app.stream import Stream

_AT_ONCE = 8
_BUSY_SEC = 0.2  # between two tries while others fill the queue
_DIGITS = 6
_TRIAL = Conversation().user(Text("A or B?"))  # what any model that still works can score


class Letters:
    """Scores letters; a context manager, which ends what is still waiting."""

    def __init__(self, backend: Backend, *, adapter: str | None, session: str) -> None:
        self._backend = backend
        self._adapter = adapter
        self._session = session
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="letters")
        self._failed = threading.Event()  # since then nobody has seen it work

    def ask(self, conversation: Conversation, letters: str) -> Stream:
        """Return a stream whose answer is JSON of each letter's natural-log probability.

        Raises `EngineError` where the backend failed before and does not work any more.
        """
        if self._failed.is_set():
            self._try()
        stream = Stream()
        self._pool.submit(self._score, conversation, letters, stream)
        return stream

    def _score(self, conversation: Conversation, letters: str, stream: Stream) -> None:
        logprobs: dict[str, float] = {}
        try:
            for letter in letters:
                tokens = self._tokens(conversation, letter, stream)
                if tokens is None:
                    break
                logprobs[letter] = round(_sum(tokens, letter), _DIGITS)
        except Gemma3VLError as error:
            if isinstance(error, EngineError):
                self._failed.set()
            stream.fail(error)
        except Exception as error:  # a bug of ours must not leave the reader waiting for ever
            stream.fail(error)
            raise
        else:
            ended: FinishReason = "cancelled" if len(logprobs) < len(letters) else "stop"
            stream.finish(Answer(json.dumps(logprobs), ended))

    def _tokens(
        self, conversation: Conversation, letter: str, stream: Stream
    ) -> tuple[Token, ...] | None:
        """Score a letter; None once somebody cancelled its question."""
        while not stream.cancelled:
            try:
                return self._backend.score(
                    conversation, letter, adapter=self._adapter, session=self._session
                )
            except BusyError:
                time.sleep(_BUSY_SEC)
        return None

    def _try(self) -> None:
        """Find out whether one question failed or the backend: then it fails at any other, too."""
        try:
            self._backend.score(_TRIAL, "A", adapter=self._adapter, session=self._session)
        except EngineError:
            raise
        except Gemma3VLError:  # it works, if not for us now
            pass
        self._failed.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=error is None, cancel_futures=True)


def _sum(tokens: Sequence[Token], letter: str) -> float:
    """Return a letter's log-probability; a missing one is no certainty."""
    logprobs = [token.logprob for token in tokens if token.logprob is not None]
    if not tokens or len(logprobs) < len(tokens):
        raise EngineError(
            f"The model did not tell the log-probability of the letter {letter!r}. Ask again."
        )
    return sum(logprobs)


def read_logprobs(answer: str, letters: str) -> dict[str, float]:
    """Return what an answer of `Letters.ask` says; raises `EvaluationError` where it is none."""
    try:
        told = json.loads(answer)
        return {letter: float(told[letter]) for letter in letters}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvaluationError(
            "An answer that was kept holds no log-probabilities of its letters. "
            "Begin anew with restart=True."
        ) from error
