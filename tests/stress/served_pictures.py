"""Sends bad pictures to a server, as requests about them, and keeps count of the replies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from tests.faults.model_process import ModelProcess, client_of
from tests.stress.canary import Canary, asked_about

BATCH = 200
CONNECTIONS = 8


@dataclass
class Replies:
    """What a server said to pictures; `longest_sec` is the longest that one reply took."""

    statuses: Counter[int] = field(default_factory=Counter)
    longest_sec: float = 0.0
    seconds: float = 0.0
    canaries: int = 0
    memory: list[int] = field(default_factory=list)  # of server and workers, after each batch

    def __str__(self) -> str:
        return (
            f"{self.statuses.total():,} files: {self.statuses[200]:,} answered, "
            f"{self.statuses[400]:,} refused, {self.canaries} canaries; "
            f"{self.seconds:.0f} s, the longest {self.longest_sec:.1f} s; "
            f"memory {self.memory[0] >> 20} to {self.memory[-1] >> 20} MiB"
        )


def send(
    files: Iterable[tuple[str, bytes]], served: ModelProcess, key: str, canary: Canary
) -> Replies:
    """Ask about each file, several at once; after each batch a good one gets the same answer."""
    replies, start = Replies(), time.monotonic()
    replies.memory.append(served.resident_bytes())  # before the first
    with client_of(served.address, key) as client, ThreadPoolExecutor(CONNECTIONS) as pool:

        def ask(file: tuple[str, bytes]) -> tuple[int, float]:
            name, data = file
            began = time.monotonic()
            body = asked_about(data, "What is it?", max_tokens=1)
            reply = client.post("/v1/chat/completions", json=body)
            assert reply.status_code in (200, 400), f"{name}: {reply.status_code} {reply.text}"
            if reply.status_code == 400:
                error = reply.json()["error"]
                assert error["type"] == "invalid_request_error" and error["message"].isprintable()
                assert "object at" not in error["message"], name
            return reply.status_code, time.monotonic() - began

        rest = iter(files)
        while batch := list(islice(rest, BATCH)):
            for status, seconds in pool.map(ask, batch):
                replies.statuses[status] += 1
                replies.longest_sec = max(replies.longest_sec, seconds)
            canary.check(batch[-1][0])
            replies.memory.append(served.resident_bytes())
    replies.seconds, replies.canaries = time.monotonic() - start, canary.times
    return replies
