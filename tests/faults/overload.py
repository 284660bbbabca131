"""Send a real server several times what it can take, and see whether it stays fair and exact.

`python -m tests.faults.overload --minutes 5 --factor 4` prints figures as JSON. The server is a
process of its own with a tiny model that writes a few answers at once. There are two stages. First
one greedy caller has most of the connections and comes again sooner than it is told, while five
polite ones ask one thing at a time: the greedy one gets 429. Then a crowd comes, more callers than
there are places, and whoever finds none gets 503.

Each request has a nonce, some have a picture. Afterwards, with nobody else there, each that was
answered is asked once more by somebody who shares no cache with the others: the answer must be the
same. One that belonged to another request would be another text.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx

from tests.api.servers import picture_url
from tests.faults.model_process import ModelProcess, model_process
from tests.faults.next_answer import NEXT_WITHIN_SEC, next_answer_within

INSIDE, INSIDE_PER_CALLER = 16, 8
POLITE, CROWD = 5, 24
TOKENS = 12
EACH_WITH_PICTURE = 4  # every fourth request has one
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
    """What one stage saw."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)  # by caller
    waits: dict[str, list[float]] = field(default_factory=dict)  # of answers, in seconds
    texts: dict[int, str] = field(default_factory=dict)  # by the request's number
    resident: list[int] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    without_advice: int = 0

    def replies(self) -> Counter[int]:
        return sum(self.statuses.values(), Counter())

    def waits_of(self, callers: Sequence[str]) -> list[float]:
        return [wait for caller in callers for wait in self.waits.get(caller, [])]


def body(number: int) -> dict[str, object]:
    """The request of a number, which no other request has."""
    nonce = hashlib.sha256(b"%d" % number).hexdigest()[:12]
    content: list[object] = [{"type": "text", "text": f"My number is {nonce}. What is it?"}]
    if not number % EACH_WITH_PICTURE:
        picture = {"type": "image_url", "image_url": {"url": picture_url(f"#{nonce[:6]}")}}
        content.insert(0, picture)
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


class Load:
    """Callers of a server, each with a key, who ask again and again until a stage ends."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._numbers = count()

    async def stage(self, seconds: float, polite: Sequence[str], rude: Sequence[str]) -> Seen:
        """Let each of these callers have one connection (a caller may be named twice)."""
        seen, until = Seen(), time.monotonic() + seconds
        await asyncio.gather(
            self._watch(polite[0], until, seen),
            *(self._caller(key, False, until, seen) for key in polite),
            *(self._caller(key, True, until, seen) for key in rude),
        )
        return seen

    async def _caller(self, key: str, is_rude: bool, until: float, seen: Seen) -> None:
        while time.monotonic() < until:
            number, began = next(self._numbers), time.monotonic()
            response = await ask(self._client, key, number)
            seen.statuses.setdefault(key, Counter())[response.status_code] += 1
            if response.status_code == 200:
                seen.waits.setdefault(key, []).append(time.monotonic() - began)
                seen.texts[number] = text_of(response)
                continue
            advice = response.headers.get("retry-after")
            seen.without_advice += advice is None
            await asyncio.sleep(0.2 if is_rude else float(advice or 1))

    async def _watch(self, key: str, until: float, seen: Seen) -> None:
        """Look at the queue and at memory now and then."""
        while time.monotonic() < until:
            headers = {"authorization": f"Bearer {key}"}
            text = (await self._client.get("/metrics", headers=headers)).text
            seen.inside.append(_metric(text, "gemma3vl_open_requests"))
            seen.resident.append(int(_metric(text, "process_resident_memory_bytes")))
            await asyncio.sleep(0.5)

    async def wrong(self, key: str, texts: dict[int, str]) -> list[int]:
        """Ask everything once more, a few at a time; returns the numbers of other answers."""
        numbers, wrong = iter(texts), []

        async def compare() -> None:
            for number in numbers:
                response = await ask(self._client, key, number)
                assert response.status_code == 200, response.text
                if text_of(response) != texts[number]:
                    wrong.append(number)

        await asyncio.gather(*(compare() for _ in range(INSIDE_PER_CALLER // 2)))
        return wrong


def _metric(text: str, name: str) -> float:
    return float(next(x for x in text.splitlines() if x.startswith(f"{name} ")).split()[1])


@contextmanager
def health_probe(address: str, waits: list[float]) -> Iterator[None]:
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


async def run(served: ModelProcess, keys: Keys, seconds: float, factor: float) -> dict:
    """Overload a server for so long; returns figures."""
    connections, health = int(factor * INSIDE), list[float]()
    greedy = [keys.greedy] * (connections - POLITE)
    crowd = [*keys.crowd, *greedy[: connections - POLITE - CROWD]]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=served.address, timeout=120, limits=limits) as client:
        load = Load(client)
        await load.stage(0.5, keys.polite, [])  # what is done once is done
        alone = await load.stage(min(30.0, seconds / 4), keys.polite, [])
        with health_probe(served.address, health):
            one = await load.stage(seconds * 0.6, keys.polite, greedy)
            many = await load.stage(seconds * 0.4, keys.polite, crowd)
        next_sec = await asyncio.to_thread(_next_answer_sec, served.address, keys.referee)
        texts = one.texts | many.texts
        wrong = await load.wrong(keys.referee, texts)
    return {
        "seconds": round(seconds),
        "answers": len(texts),
        "different_answers": len(set(texts.values())),
        "wrong": wrong,
        "next_answer_sec": round(next_sec, 3),
        "health_looks": len(health),
        "health_p99": centile(health, 99),
        "health_longest": centile(health, 100),
        "one_greedy_caller": {
            **figures(one),
            "answers_greedy": one.statuses[keys.greedy][200],
            "answers_polite": [one.statuses.get(key, Counter())[200] for key in keys.polite],
            "refused_polite": sum(
                one.statuses[key].total() - one.statuses[key][200] for key in keys.polite
            ),
            "polite_p95_with_each_other_only": centile(alone.waits_of(keys.polite), 95),
            "polite_p95": centile(one.waits_of(keys.polite), 95),
            "greedy_p95": centile(one.waits_of([keys.greedy]), 95),
        },
        "a_crowd": {
            **figures(many),
            "callers_without_an_answer": sum(
                not many.statuses.get(key, Counter())[200] for key in [*keys.polite, *keys.crowd]
            ),
        },
    }


def figures(seen: Seen) -> dict:
    """Sum up a stage."""
    half = len(seen.resident) // 2
    return {
        "replies": {str(status): times for status, times in sorted(seen.replies().items())},
        "refused_without_retry_after": seen.without_advice,
        "most_inside": max(seen.inside),
        "memory_growth_mib": (max(seen.resident[half:]) - max(seen.resident[: half + 1])) >> 20,
    }


def _next_answer_sec(address: str, key: str) -> float:
    """How long somebody waits who comes when all others have gone."""
    with httpx.Client(base_url=address, headers={"authorization": f"Bearer {key}"}) as client:
        asked = {**body(0), "max_tokens": 1}
        return next_answer_within(
            NEXT_WITHIN_SEC, lambda: client.post("/v1/chat/completions", json=asked, timeout=60)
        )


def centile(values: list[float], percent: int) -> float:
    """Return the value below which so many percent are."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 3)


@dataclass(frozen=True)
class Keys:
    """Who comes."""

    greedy: str = "key-of-the-greedy-caller"
    polite: tuple[str, ...] = tuple(f"key-of-polite-caller-{n}" for n in range(POLITE))
    crowd: tuple[str, ...] = tuple(f"key-of-caller-{n}-of-many" for n in range(CROWD))
    referee: str = "key-of-the-referee"


def overload(checkpoint: Path, seconds: float, factor: float) -> dict:
    """Start a server, overload it, and return the figures."""
    keys = Keys()
    limits = {"requests_at_once": INSIDE, "requests_at_once_per_caller": INSIDE_PER_CALLER}
    everybody = [keys.greedy, *keys.polite, *keys.crowd, keys.referee]
    with model_process(checkpoint, everybody, **limits) as served:
        return asyncio.run(run(served, keys, seconds, factor))


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
