"""Multiple choice without a word written: how likely the model finds each letter as its answer.

The letters of a question are scored one after the other, so that all but the first find the prompt
computed; several questions at once, since scoring waits for its turn in the engine.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import BusyError, Gemma3VLError
from gemma3vl_app.generation import Answer, FinishReason, Token
from gemma3vl_app.messages import Conversation
from gemma3vl_app.stream import Stream

_AT_ONCE = 8
_BUSY_SEC = 0.2  # between two tries while others fill the queue
_DIGITS = 6


class Letters:
    """Scores letters; a context manager, which ends what is still waiting."""

    def __init__(self, backend: Backend, *, adapter: str | None, session: str) -> None:
        self._backend = backend
        self._adapter = adapter
        self._session = session
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="letters")

    def ask(self, conversation: Conversation, letters: str) -> Stream:
        """Return a stream whose answer is JSON of each letter's natural-log probability."""
        stream = Stream()
        self._pool.submit(self._score, conversation, letters, stream)
        return stream

    def _score(self, conversation: Conversation, letters: str, stream: Stream) -> None:
        logprobs: dict[str, float] = {}
        try:
            for letter in letters:
                if stream.cancelled:
                    break
                tokens = self._tokens(conversation, letter)
                logprobs[letter] = round(sum(t.logprob or 0.0 for t in tokens), _DIGITS)
        except Gemma3VLError as error:
            stream.fail(error)
        except Exception as error:  # a bug of ours must not leave the reader waiting for ever
            stream.fail(error)
            raise
        else:
            ended: FinishReason = "cancelled" if len(logprobs) < len(letters) else "stop"
            stream.finish(Answer(json.dumps(logprobs), ended))

    def _tokens(self, conversation: Conversation, letter: str) -> tuple[Token, ...]:
        while True:
            try:
                return self._backend.score(
                    conversation, letter, adapter=self._adapter, session=self._session
                )
            except BusyError:
                time.sleep(_BUSY_SEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=error is None, cancel_futures=True)
