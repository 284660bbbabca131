"""Send a real server several times what it can take, and see whether it stays fair and exact.

`python -m tests.faults.overload --minutes 5 --factor 4` prints figures as JSON. The server is a
process of its own with a tiny model that writes a few answers at once. One greedy caller has most
of the connections, comes again sooner than it is told, and five polite ones ask one thing at a
time. Each request carries a number, and its answer must be the one that this number gets when the
server is idle: an answer that belonged to another request would be another text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[2]
RUNNING, INSIDE, INSIDE_PER_CALLER = 4, 16, 8
POLITE = 5
NUMBERS = 24  # different requests
TOKENS = 12
HEALTH_WITHIN_SEC = 0.2
PROBE = """
import http.client, json, sys, threading, time

ended, waits = threading.Event(), []
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
connection = http.client.HTTPConnection(sys.argv[1], timeout=60)
while not ended.wait(0.05):
    began = time.monotonic()
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    assert response.status == 200 and response.read()
    waits.append(round(time.monotonic() - began, 4))
print(json.dumps(waits))
"""


@dataclass
class Seen:
    """What one run saw."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)  # by caller
    waits: dict[str, list[float]] = field(default_factory=dict)  # of answers, in seconds
    health: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    mixed: int = 0
    without_advice: int = 0


def body(number: int) -> dict[str, object]:
    """The request of a number."""
    content = f"My number is {number * 7919}. What is it?"
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": TOKENS,
    }


async def ask(client: httpx.AsyncClient, key: str, number: int) -> httpx.Response:
    return await client.post(
        "/v1/chat/completions", json=body(number), headers={"authorization": f"Bearer {key}"}
    )


def text_of(response: httpx.Response) -> str:
    return response.json()["choices"][0]["message"]["content"]


async def caller(
    client: httpx.AsyncClient, key: str, rude: bool, expected: list[str], until: float, seen: Seen
) -> None:
    """Ask again and again, over one connection at a time."""
    rng = random.Random(f"{key} {id(client)} {time.monotonic()}")
    while time.monotonic() < until:
        number = rng.randrange(NUMBERS)
        began = time.monotonic()
        response = await ask(client, key, number)
        seen.statuses.setdefault(key, Counter())[response.status_code] += 1
        if response.status_code == 200:
            seen.waits.setdefault(key, []).append(time.monotonic() - began)
            seen.mixed += text_of(response) != expected[number]
            continue
        advice = response.headers.get("retry-after")
        seen.without_advice += advice is None
        await asyncio.sleep(0.2 if rude else float(advice or 1))


async def watch(client: httpx.AsyncClient, key: str, pid: int, until: float, seen: Seen) -> None:
    """Look at memory and the queue every second."""
    server = psutil.Process(pid)
    while time.monotonic() < until:
        seen.resident.append(server.memory_info().rss)
        headers = {"authorization": f"Bearer {key}"}
        text = (await client.get("/metrics", headers=headers)).text
        line = next(x for x in text.splitlines() if x.startswith("gemma3vl_open_requests "))
        seen.inside.append(float(line.split()[1]))
        await asyncio.sleep(1)


@contextmanager
def health_probe(address: str, waits: list[float]):
    """Ask for health all the time, from a process of its own; fills `waits` at the end."""
    probe = subprocess.Popen(
        [sys.executable, "-c", PROBE, address.removeprefix("http://")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield
        said, _ = probe.communicate("end", timeout=60)
        waits += json.loads(said)
    finally:
        probe.kill()
        probe.wait()


async def run(address: str, pid: int, keys: list[str], seconds: float, factor: float) -> dict:
    """Overload a server for so long; returns figures."""
    greedy, *polite = keys
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client,
        httpx.AsyncClient(base_url=address, timeout=120) as watcher,
    ):
        expected = [text_of(await ask(client, polite[0], number)) for number in range(NUMBERS)]
        assert len(set(expected)) == NUMBERS, "answers do not tell requests apart"
        alone = Seen()
        until = time.monotonic() + min(5.0, seconds / 4)
        await asyncio.gather(*(caller(client, k, False, expected, until, alone) for k in polite))
        seen = Seen()
        until = time.monotonic() + seconds
        connections = int(factor * INSIDE) - POLITE
        with health_probe(address, seen.health):
            await asyncio.gather(
                watch(watcher, greedy, pid, until, seen),
                *(caller(client, key, False, expected, until, seen) for key in polite),
                *(caller(client, greedy, True, expected, until, seen) for _ in range(connections)),
            )
    return figures(seen, alone, greedy, polite, seconds)


def figures(seen: Seen, alone: Seen, greedy: str, polite: list[str], seconds: float) -> dict:
    """Sum up a run; seconds where nothing else is said."""
    statuses = sum(seen.statuses.values(), Counter())
    waits = [wait for key in polite for wait in seen.waits.get(key, [])]
    quarter = max(1, len(seen.resident) // 4)
    return {
        "seconds": round(seconds),
        "replies": {str(status): count for status, count in sorted(statuses.items())},
        "mixed": seen.mixed,
        "refused_without_retry_after": seen.without_advice,
        "answers_greedy": seen.statuses[greedy][200],
        "answers_polite": [seen.statuses.get(key, Counter())[200] for key in polite],
        "refused_polite": sum(sum(seen.statuses[key].values()) for key in polite) - len(waits),
        "polite_p95_with_each_other_only": centile(
            [wait for each in alone.waits.values() for wait in each], 95
        ),
        "polite_p95": centile(waits, 95),
        "greedy_p95": centile(seen.waits.get(greedy, []), 95),
        "health_looks": len(seen.health),
        "health_p99": centile(seen.health, 99),
        "health_longest": centile(seen.health, 100),
        "most_inside": max(seen.inside),
        "memory_growth_mib": round(
            (max(seen.resident[-quarter:]) - max(seen.resident[: 2 * quarter])) / (1 << 20)
        ),
    }


def centile(values: list[float], percent: int) -> float:
    """Return the value below which so many percent are."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 3)


def overload(checkpoint: Path, seconds: float, factor: float) -> dict:
    """Start a server, overload it, and return the figures."""
    keys = [f"key-number-{number}-of-a-caller" for number in range(1 + POLITE)]
    with model_process(checkpoint, keys) as (process, address):
        return asyncio.run(run(address, process.pid, keys, seconds, factor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--factor", type=float, default=4)
    chosen = parser.parse_args()
    from gemma3vl_app.testing import tiny_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        found = overload(tiny_checkpoint(Path(folder) / "tiny"), 60 * chosen.minutes, chosen.factor)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
