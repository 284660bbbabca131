"""Engines end before Python does: a thread that is torn out of torch aborts the whole process.

Knows nothing of models.
"""

from __future__ import annotations

import atexit
import functools
import weakref
from typing import Protocol

LONGEST_SEC = 5.0  # that a program's end waits for a step of a model


class Closable(Protocol):
    """What has a thread that can be ended."""

    def close(self, timeout_sec: float | None = None) -> None:
        """End the thread, waiting for it at most `timeout_sec` seconds."""


def close_at_exit(engine: Closable) -> None:
    """Close `engine` when Python ends, if it is still there then."""
    _engines().add(engine)


@functools.cache
def _engines() -> weakref.WeakSet[Closable]:
    found: weakref.WeakSet[Closable] = weakref.WeakSet()
    atexit.register(_close_all, found)  # runs before Python ends its daemon threads
    return found


def _close_all(engines: weakref.WeakSet[Closable]) -> None:
    for engine in list(engines):
        engine.close(LONGEST_SEC)
