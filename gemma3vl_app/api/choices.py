"""The streams of one request: started together, read as one, and stopped with it.

Streams may be started in a thread while the client leaves; then they are stopped as soon as they
exist. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from gemma3vl_app.api.failures import MODEL_RETRY_SEC, RequestError
from gemma3vl_app.api.limits import shutting_down
from gemma3vl_app.errors import EngineError, public_text
from gemma3vl_app.generation import Answer, Chunk
from gemma3vl_app.stream import Stream


class Choices:
    """Up to n answers to one request; leaving the `with` block stops those that still run."""

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        """Ask `check`, which raises where no answer can come any more, while none comes."""
        self._check = check
        self._lock = threading.Lock()
        self._streams: list[Stream] = []
        self._ended = False

    def start(self, start: Callable[[int], Stream], count: int) -> None:
        """Start `count` streams by `start(index)`; stops at once where nobody waits any more."""
        for index in range(count):
            with self._lock:
                if self._ended:
                    return
            try:
                stream = start(index)
            except EngineError as error:  # it takes no requests: closed, or making room
                raise RequestError(
                    public_text(error),
                    code="model_unavailable",
                    status=503,
                    retry_sec=MODEL_RETRY_SEC,
                ) from error
            with self._lock:
                self._streams.append(stream)
                ended = self._ended
            if ended:
                stream.cancel()

    def end(self) -> None:
        """Stop every answer, also those that are about to be started; safe from any thread."""
        with self._lock:
            self._ended = True
            streams = list(self._streams)
        for stream in streams:
            if not stream.done:
                stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    async def chunks(self, *, idle_sec: float) -> AsyncIterator[tuple[int, Chunk | Answer] | None]:
        """Yield each chunk with its choice's index, an `Answer` where one ends.

        Yields None whenever nothing came for `idle_sec`. Raises what a stream failed with, and
        `RequestError` where answers were ended from outside, or can come no more.
        """
        reading = {asyncio.ensure_future(_next(s)): i for i, s in enumerate(self._streams)}
        try:
            while reading:
                done, _ = await asyncio.wait(
                    reading, timeout=idle_sec, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    self._check()
                    yield None
                for task in sorted(done, key=lambda each: reading[each]):
                    index = reading.pop(task)
                    try:
                        chunk = task.result()
                    except EngineError:
                        self._check()  # which knows better where the whole engine has ended
                        raise
                    if isinstance(chunk, Chunk):
                        following = asyncio.ensure_future(_next(self._streams[index]))
                        reading[following] = index
                    elif chunk.finish_reason == "cancelled":
                        raise shutting_down()
                    yield index, chunk
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    async def answers(self, *, idle_sec: float) -> list[Answer]:
        """Wait for all answers, in the order of their choices; see `chunks`."""
        found: dict[int, Answer] = {}
        async for each in self.chunks(idle_sec=idle_sec):
            if each is not None and isinstance(each[1], Answer):
                found[each[0]] = each[1]
        return [found[index] for index in sorted(found)]


async def _next(stream: Stream) -> Chunk | Answer:
    try:
        return await anext(stream)
    except StopAsyncIteration:
        return stream.answer
