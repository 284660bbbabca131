"""HTTP connections of a server: a client that connects has to ask something, and to do so in time.

uvicorn gives no time for that. It also can bound connections, and then turns everybody away while
others hold them all: here each is closed that does not come to its request.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEADER_SEC = 20.0
HEADER_BYTES = 64 << 10
KEEP_ALIVE_SEC = 5
MOST_FILES = 1 << 16  # each connection is one


def uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    """Return how the server listens."""
    return uvicorn.Config(
        app,
        log_level="warning",
        http=PunctualProtocol,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SEC,
        timeout_graceful_shutdown=3,
    )


def allow_many() -> None:
    """Let this process hold as many connections as the system lets it: often 1,024 at first."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class PunctualProtocol(H11Protocol):
    """uvicorn's HTTP, but a request's line and headers have to be there within `HEADER_SEC`.

    Looks at the connection that often: it is closed where it waited for a request the last time
    and waits for the same one now.
    """

    _looking: asyncio.TimerHandle | None = None

    # As uvicorn declares it, which is narrower than asyncio's own protocol
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look."""
        super().connection_made(transport)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    @property
    def _waits(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _look_again(self) -> None:
        self._looking = self.loop.call_later(HEADER_SEC, self._look, self.cycle, self._waits)

    def _look(self, last: RequestResponseCycle | None, waited: bool) -> None:
        """Close the connection if no request has begun since it was looked at last."""
        if self.transport.is_closing() or self._is_another_protocol():
            return
        if waited and self._waits and self.cycle is last:
            self.transport.close()
        else:
            self._look_again()

    def _is_another_protocol(self) -> bool:
        protocol: Any = self.transport.get_protocol()  # a WebSocket's, once that has begun
        return protocol is not self
