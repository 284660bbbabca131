"""`Stream`: an answer in the making, handed from the thread that computes it to whoever reads it.

Knows nothing of models. A producer calls `put`, then `finish` or `fail` once; a consumer iterates
(with `for` or `async for`), may `cancel` from any thread, and finds the whole answer in `answer`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType

from gemma3vl_app.generation import Answer, Chunk


class Stream:
    """Iterate over the chunks of one answer, or wait for all of it.

    ```python
    with backend.stream(conversation) as stream:
        for chunk in stream:
            print(chunk.text, end="")
    print(stream.answer.usage)
    ```

    Leaving the `with` block early cancels, and so does Ctrl-C, or a notebook's stop button, while
    waiting. One consumer per stream; every method is thread-safe.
    """

    def __init__(self, on_cancel: Callable[[], None] | None = None) -> None:
        self._on_cancel = on_cancel
        self._changed = threading.Condition()
        self._chunks: deque[Chunk] = deque()
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._cancelled = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    # --- producer ---

    def put(self, chunk: Chunk) -> None:
        """Append a chunk for the consumer."""
        with self._changed:
            self._chunks.append(chunk)
            self._wake()

    def finish(self, answer: Answer) -> None:
        """End the stream with its answer; only the first `finish` or `fail` counts."""
        with self._changed:
            if not self.done:
                self._answer = answer
                self._wake()

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, raised to the consumer after the chunks already put."""
        with self._changed:
            if not self.done:
                self._error = error
                self._wake()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop; the producer looks here between its steps."""
        return self._cancelled

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waiter is not None:
            loop, event = self._waiter
            self._waiter = None
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # the consumer's event loop is closed: nobody is waiting any more
                self._cancelled = True

    # --- consumer ---

    @property
    def done(self) -> bool:
        """Whether the producer has finished or failed; chunks may still be unread."""
        return self._answer is not None or self._error is not None

    def cancel(self) -> None:
        """Ask the producer to stop at its next step; safe from any thread, any number of times."""
        with self._changed:
            first, self._cancelled = not self._cancelled, True
        if first and self._on_cancel is not None:
            self._on_cancel()

    def wait(self) -> None:
        """Wait for the end, whatever it is; any number of threads may."""
        self._wait_for(lambda: self.done)

    @property
    def answer(self) -> Answer:
        """The whole answer; waits for the end, raises what the producer failed with."""
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        self._wait_for(lambda: bool(self._chunks) or self.done)
        with self._changed:
            if self._chunks:
                return self._chunks.popleft()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def _wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait; an interrupt ends the answer too, or the model would go on for nobody."""
        try:
            with self._changed:
                self._changed.wait_for(happened)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        while True:
            with self._changed:
                if self._chunks:
                    return self._chunks.popleft()
                if self._error is not None:
                    raise self._error
                if self._answer is not None:
                    raise StopAsyncIteration
                event = asyncio.Event()
                self._waiter = (asyncio.get_running_loop(), event)
            await event.wait()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.done:
            self.cancel()
