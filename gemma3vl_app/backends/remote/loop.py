"""One thread with an event loop: everything that waits for a server waits there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for other threads; `close` ends them all."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return what comes of it; an interrupt ends it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def start(
        self, work: Coroutine[Any, Any, T], at_end: Callable[[asyncio.Task[T]], None]
    ) -> Task[T]:
        """Run beside others; `at_end` is called on the loop when it is over, however it ended."""
        task = Task[T](self._loop)
        self._loop.call_soon_threadsafe(task.begin, work, at_end)
        return task

    def close(self) -> None:
        """Cancel what runs, wait until it has ended, and end the thread; safe to call twice."""
        if self._loop.is_closed():
            return
        if threading.current_thread() is not self._thread:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        loop = self._loop
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class Task(Generic[T]):
    """Work that was started on a loop; `cancel` is safe from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[T] | None = None

    def begin(
        self, work: Coroutine[Any, Any, T], at_end: Callable[[asyncio.Task[T]], None]
    ) -> None:
        """Start; on the loop."""
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(at_end)

    def cancel(self) -> None:
        """End the work, now if it has begun, else as soon as it does."""
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:  # the loop is closed, and with it the work
            return

    def _cancel(self) -> None:
        if self._task is not None:  # `begin` was called on the loop before
            self._task.cancel()
