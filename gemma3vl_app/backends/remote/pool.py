"""Which of several servers is asked: where a conversation was before, or who has least to do.

Everything here runs on one event loop; nothing is locked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gemma3vl_app.backends.remote.connection import Connection
from gemma3vl_app.backends.remote.failures import Unavailable
from gemma3vl_app.errors import Gemma3VLError

REMEMBERED_HOMES = 4096
LONGEST_PAUSE = 8  # times the usual one, between two looks at a server that is down

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Server:
    """One server: how many requests run there, and whether it seems to work.

    `failures` counts looks in a row that found it down, `looks_left_out` those before the next.
    """

    connection: Connection
    running: int = 0
    is_down: bool = False
    failures: int = 0
    looks_left_out: int = 0

    @property
    def host(self) -> str:
        """What people call it."""
        return self.connection.host


class Pool:
    """Servers of one model."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = tuple(servers)
        self._homes: OrderedDict[str, Server] = OrderedDict()

    @property
    def running(self) -> int:
        """Requests that run now."""
        return sum(server.running for server in self.servers)

    @property
    def is_up(self) -> bool:
        """Whether any server works, as far as is known."""
        return not all(server.is_down for server in self.servers)

    @contextmanager
    def asking(self, home: str, tried: Sequence[Server] = ()) -> Iterator[Server]:
        """Choose a server for a request of the conversation `home`, and count it as busy.

        A conversation stays with its server, which has it cached, while that works. Else the least
        busy one of those that work is chosen, none of `tried` if there is another; where all seem
        down, one is tried all the same.
        """
        server = self._chosen(home, tried)
        self._homes[home] = server
        self._homes.move_to_end(home)
        if len(self._homes) > REMEMBERED_HOMES:
            self._homes.popitem(last=False)
        server.running += 1
        try:
            yield server
        finally:
            server.running -= 1

    def mark_down(self, server: Server) -> None:
        """Send nothing to a server, if there is another, until it is found to work again."""
        if not server.is_down:
            # With one server, whoever asked it is told the same.
            level = logging.WARNING if len(self.servers) > 1 else logging.INFO
            _log.log(level, "The server at %s is left out until it answers again.", server.host)
            server.is_down, server.failures, server.looks_left_out = True, 0, 0

    def mark_up(self, server: Server) -> None:
        """Take back a server that has answered."""
        if server.is_down:
            level = logging.WARNING if len(self.servers) > 1 else logging.INFO
            _log.log(level, "The server at %s answers again.", server.host)
            server.is_down, server.failures, server.looks_left_out = False, 0, 0

    async def look_after(
        self, looks_well: Callable[[Server], Awaitable[bool]], every_sec: float
    ) -> None:
        """Look at every server again and again, until this is cancelled."""
        while True:
            await asyncio.sleep(every_sec)
            await asyncio.gather(*(self._look(server, looks_well) for server in self.servers))

    async def _look(self, server: Server, looks_well: Callable[[Server], Awaitable[bool]]) -> None:
        if server.looks_left_out and self.is_up:  # while all are down, none is left out
            server.looks_left_out -= 1
            return
        try:
            works = await looks_well(server)
        except (Unavailable, Gemma3VLError):
            works = False
        if works:
            self.mark_up(server)
            return
        self.mark_down(server)
        server.failures += 1
        server.looks_left_out = min(2**server.failures, LONGEST_PAUSE) - 1

    def _chosen(self, home: str, tried: Sequence[Server]) -> Server:
        fresh = [server for server in self.servers if server not in tried] or list(self.servers)
        able = [server for server in fresh if not server.is_down] or fresh
        before = self._homes.get(home)
        return before if before in able else min(able, key=lambda server: server.running)
