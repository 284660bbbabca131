"""Sends bad pictures through workers and keeps count: of what became of each, and of the cost."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import psutil

from gemma3vl_app import picture_decoding
from gemma3vl_app.errors import PictureError
from gemma3vl_app.picture_workers import PictureWorkers, _Died, _TooSlow
from gemma3vl_app.pictures import DEFAULT_LIMITS, PictureLimits
from tests.picture_files import encoded, photo

BATCH = 200
SMALL = PictureLimits(max_pixels=20_000)  # for pages: it is reading them that is tried
CANARY = encoded(photo(120, 80), "JPEG")


@dataclass
class Outcome:
    """What became of pictures; `longest_sec` is the longest that one took."""

    accepted: int = 0
    refused: int = 0
    died: list[str] = field(default_factory=list)
    too_slow: list[str] = field(default_factory=list)
    seconds: float = 0.0
    longest_sec: float = 0.0
    memory_before: int = 0
    memory_after: int = 0

    @property
    def count(self) -> int:
        return self.accepted + self.refused + len(self.died) + len(self.too_slow)

    @property
    def memory_growth(self) -> float:
        """Of this program, the parent: 0.1 for a tenth."""
        return self.memory_after / self.memory_before - 1

    def __str__(self) -> str:
        return (
            f"{self.count:,} files: {self.accepted:,} accepted, {self.refused:,} refused, "
            f"{len(self.died)} ended a worker, {len(self.too_slow)} took too long; "
            f"{self.seconds:.0f} s, the longest {self.longest_sec:.1f} s; "
            f"memory {self.memory_before >> 20} to {self.memory_after >> 20} MiB"
        )


def send(files: Iterable[tuple[str, bytes]], workers: PictureWorkers) -> Outcome:
    """Decode each file; after each batch a good picture must come back byte for byte.

    Anything but a picture or a `PictureError` is raised.
    """
    expected = picture_decoding.decode(CANARY, "canary", DEFAULT_LIMITS).tobytes()
    outcome, start = Outcome(), time.monotonic()
    for number, (name, data) in enumerate(files, start=1):
        _send_one(name, data, workers, outcome)
        if number == BATCH:  # by now all that is loaded late is loaded
            outcome.memory_before = psutil.Process().memory_info().rss
        if number % BATCH == 0:
            _check_canary(workers, expected, name)
    _check_canary(workers, expected, "the last")
    outcome.seconds = time.monotonic() - start
    outcome.memory_after = psutil.Process().memory_info().rss
    outcome.memory_before = outcome.memory_before or outcome.memory_after
    return outcome


def _send_one(name: str, data: bytes, workers: PictureWorkers, outcome: Outcome) -> None:
    start = time.monotonic()
    try:
        if data.startswith(b"%PDF"):
            images = list(workers.render_pages(data, name, SMALL))
        else:
            images = [workers.decode(data, name, DEFAULT_LIMITS)]
    except _Died:
        outcome.died.append(name)
    except _TooSlow:
        outcome.too_slow.append(name)
    except PictureError as error:
        assert str(error).isprintable() and "object at" not in str(error), name
        outcome.refused += 1
    else:
        assert {image.mode for image in images} == {"RGB"}, name
        outcome.accepted += 1
    outcome.longest_sec = max(outcome.longest_sec, time.monotonic() - start)


def _check_canary(workers: PictureWorkers, expected: bytes, after: str) -> None:
    found = workers.decode(CANARY, "canary", DEFAULT_LIMITS).tobytes()
    assert found == expected, f"a good picture is another one after {after}"
