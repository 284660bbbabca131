"""How much is accepted: from one request, from one caller, and from all together.

`Gate` counts in the event loop's thread alone, so it needs no lock. It also knows which answers are
running, which a server that shuts down waits for.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gemma3vl_app.api.failures import RETRY_SEC, RequestError

MIB = 1 << 20
_RATE_SEC = 60.0


@dataclass(frozen=True, kw_only=True)
class ApiLimits:
    """Bounds of the API; a caller is a key, or an address where no keys are set.

    `requests_at_once` counts all callers: those that are answered and those that wait.
    `answer_tokens` bounds what one answer may ask for; the model's context bounds it, too.
    `slow_reader_sec` is how long a client may leave a piece of its answer unread.
    """

    body_bytes: int = 32 * MIB
    pictures: int = 20
    messages: int = 1000
    choices: int = 4
    answer_tokens: int = 8192
    requests_at_once: int = 64
    requests_at_once_per_caller: int = 32
    requests_per_minute: int = 600
    body_sec: float = 60.0
    slow_reader_sec: float = 60.0
    finish_sec: float = 30.0
    stalled_sec: float = 120.0


@dataclass(eq=False)
class Visit:
    """One request that has been admitted; `end_answer` stops what is computed for it."""

    caller: str
    end_answer: Callable[[], None] = field(default=lambda: None)


class Gate:
    """Admits requests within the limits, and none any more once it is closing."""

    def __init__(self, limits: ApiLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._visits: set[Visit] = set()
        self._at_once: Counter[str] = Counter()
        self._arrivals: dict[str, deque[float]] = {}
        self._emptied: asyncio.Event | None = None
        self.closing = False

    @property
    def open_requests(self) -> int:
        """How many requests are inside."""
        return len(self._visits)

    @contextmanager
    def admit(self, caller: str) -> Iterator[Visit]:
        """Count a request in for as long as the block runs; raises `RequestError` (429 or 503)."""
        self._check(caller)
        visit = Visit(caller)
        self._visits.add(visit)
        self._at_once[caller] += 1
        try:
            yield visit
        finally:
            self._visits.remove(visit)
            self._at_once[caller] -= 1
            if not self._at_once[caller]:
                del self._at_once[caller]
            if not self._visits and self._emptied is not None:
                self._emptied.set()

    def _check(self, caller: str) -> None:
        if self.closing:
            raise shutting_down()
        limits = self.limits
        if self._at_once[caller] >= limits.requests_at_once_per_caller:
            raise RequestError(
                f"{limits.requests_at_once_per_caller} requests of yours are being answered "
                "already, the limit. Wait for one of them.",
                code="too_many_requests_at_once",
                status=429,
                retry_sec=RETRY_SEC,
            )
        if len(self._visits) >= limits.requests_at_once:
            raise RequestError(
                "The server is answering as many requests as it can. Try again in a moment.",
                code="overloaded",
                status=503,
                retry_sec=RETRY_SEC,
            )
        self._check_rate(caller)

    def _check_rate(self, caller: str) -> None:
        """Count an arrival, unless the last minute has seen enough of this caller."""
        now, most = self._clock(), self.limits.requests_per_minute
        for name in [n for n, times in self._arrivals.items() if times[-1] <= now - _RATE_SEC]:
            del self._arrivals[name]
        times = self._arrivals.setdefault(caller, deque())
        while times and times[0] <= now - _RATE_SEC:
            times.popleft()
        if len(times) >= most:
            raise RequestError(
                f"{most} requests a minute are the limit, and you have sent them. Wait a moment.",
                code="rate_limit_exceeded",
                status=429,
                retry_sec=max(1, math.ceil(times[0] + _RATE_SEC - now)),
            )
        times.append(now)

    # --- the end ---

    def close(self) -> None:
        """Admit nobody from now on."""
        self.closing = True

    async def wait_until_empty(self, timeout_sec: float) -> bool:
        """Wait until all requests have been answered; False where that takes too long."""
        if not self._visits:
            return True
        self._emptied = asyncio.Event()
        try:
            await asyncio.wait_for(self._emptied.wait(), timeout_sec)
        except TimeoutError:
            return False
        return True

    def end_answers(self) -> None:
        """Stop every answer that still runs; its client is told why."""
        for visit in list(self._visits):
            visit.end_answer()


def shutting_down() -> RequestError:
    """Return what a client is told whose answer a server that ends cannot give any more."""
    return RequestError(
        "The server is shutting down. Ask again in a while, or another server.",
        code="shutting_down",
        status=503,
        retry_sec=RETRY_SEC,
    )
