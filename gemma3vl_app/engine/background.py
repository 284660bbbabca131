"""Work that nobody waits for: one thread, a queue bounded in bytes, an end bounded in time.

Knows nothing of what the work is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

Job = Callable[[], object]


class Background:
    """Runs jobs in order in a thread of its own; every method is thread-safe."""

    def __init__(self, name: str, *, pending_bytes: int) -> None:
        """Start the thread; jobs that wait may keep about `pending_bytes` of memory alive."""
        self._pending_bytes = pending_bytes
        self._changed = threading.Condition()  # guards what follows
        self._jobs: deque[tuple[Job, int]] = deque()
        self._held_bytes = 0  # by the jobs that wait and the one that runs
        self._ends: float | None = None  # when to stop, whatever still waits
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def offer(self, job: Job, size: int) -> bool:
        """Queue a job that keeps `size` bytes alive; False where too much waits already.

        One job is always taken while none waits, however large.
        """
        with self._changed:
            too_much = self._held_bytes and self._held_bytes + size > self._pending_bytes
            if too_much or self._ends is not None:
                return False
            self._jobs.append((job, size))
            self._held_bytes += size
            self._changed.notify_all()
            return True

    def wait(self, timeout_sec: float) -> bool:
        """Wait until everything is done; False where that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held_bytes, timeout_sec)

    def close(self, timeout_sec: float) -> None:
        """Take no more jobs, and return when all are done, after `timeout_sec` at the latest.

        Those that wait then are dropped. Safe to call twice.
        """
        with self._changed:
            self._ends = time.monotonic() + timeout_sec if self._ends is None else self._ends
            self._changed.notify_all()
        self._thread.join(timeout_sec)

    def drop(self) -> None:
        """Drop the jobs that wait, and with them what they keep alive."""
        with self._changed:
            self._drop()

    def _drop(self) -> None:
        self._held_bytes -= sum(size for _, size in self._jobs)
        self._jobs.clear()
        self._changed.notify_all()

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            job, size = taken
            try:
                job()
            except Exception:  # a defect: the next job may do better
                logger.exception("work in the background failed")
            del job, taken  # or what they keep alive would stay until the next one
            with self._changed:
                self._held_bytes -= size
                self._changed.notify_all()

    def _next(self) -> tuple[Job, int] | None:
        """Wait for the next job; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._ends is not None)
            if self._ends is not None and (not self._jobs or time.monotonic() > self._ends):
                self._drop()
                return None
            return self._jobs.popleft()
