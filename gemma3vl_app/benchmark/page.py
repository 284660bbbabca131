"""How quick the page is: until it can be used, until a follow-up's first word, with twenty at once.

The server runs in a process of its own, as it does for people; chromium opens the page.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from gemma3vl_app.benchmark.programs import QUESTIONS
from gemma3vl_app.benchmark.result import Result

CHROMIUM = "/usr/bin/chromium"
LOADS, RUNS = 5, 5
_START_SEC = 120

# Serving belongs to a higher layer than measuring, so it is started by name.
_SERVE_SCRIPTED = """
from gemma3vl_app.server import serve
from gemma3vl_app.testing import ScriptedBackend
backend = ScriptedBackend(["word "] * 10, seconds_per_chunk=0.05)
serve(backend, port=0, on_ready=lambda address: print(address, flush=True))
"""
_SERVE_DEMO = """
from gemma3vl_app.backends.local import load
from gemma3vl_app.server import serve
serve(load("demo"), port=0, on_ready=lambda address: print(address, flush=True))
"""


def programs() -> list[Result]:
    """Programs beside each other, on the scripted backend."""
    with _served(_SERVE_SCRIPTED) as address:
        return [_programs(_first_chunk_secs(address))]


def page() -> list[Result]:
    """The page in chromium, on the scripted backend and with the demo."""
    with _served(_SERVE_SCRIPTED) as address:
        loads = _page_load_secs(address)
    with _served(_SERVE_DEMO) as address:
        follow_up_sec = _follow_up_sec(address)
    return [
        _seconds("page usable after load, median of 5, warm", statistics.median(loads), 2.0),
        _seconds("first word of a follow-up on the page, demo", follow_up_sec, 0.5),
    ]


def _programs(waited: list[list[float]]) -> Result:
    """Return the figure over all questions; the details tell first questions from later ones."""
    pooled = [seconds for question in waited for seconds in question]
    is_first = [number % QUESTIONS == 0 for number in range(len(waited))]
    first = [s for question, first in zip(waited, is_first, strict=True) if first for s in question]
    later = [
        s for question, first in zip(waited, is_first, strict=True) if not first for s in question
    ]
    return _seconds(
        "first chunk for 20 programs at once, scripted backend, 95 of 100",
        _p95(pooled),
        0.3,
        median_sec=statistics.median(pooled),
        p95_of_first_questions_sec=_p95(first),
        p95_of_later_questions_sec=_p95(later),
    )


def _p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


def _seconds(name: str, value: float, target: float, **details: float) -> Result:
    return Result(
        name=name,
        value=value,
        baseline=1.0,
        unit="s",
        baseline_name="a second",
        bound="at most",
        target=target,
        details=details,
    )


@contextmanager
def _served(code: str) -> Iterator[str]:
    """Serve a page in a process of its own; yield its address once it answers."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            deadline = time.monotonic() + _START_SEC
            while time.monotonic() < deadline:
                try:
                    httpx.get(f"{address}/healthz", timeout=5)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield address
        finally:
            process.terminate()


@contextmanager
def _browser_page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # not a dependency of the package

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def _page_load_secs(address: str) -> list[float]:
    """Return how long it takes each time until the box can be written in and shows its examples."""
    seconds = []
    with _browser_page() as shown:
        for _ in range(LOADS + 1):
            began = time.perf_counter()
            shown.goto(address)
            shown.locator("#composer textarea").wait_for()
            shown.locator("#conversation .welcome").wait_for()
            seconds.append(time.perf_counter() - began)
    return seconds[1:]  # the first one fills the browser's cache


def _follow_up_sec(address: str) -> float:
    """Return the seconds from Enter to the first word of an answer, without a new picture."""
    with _browser_page() as shown:
        shown.goto(address)
        shown.get_by_text("What is in the picture?").click()
        shown.locator("#line p", has_text="tokens/s").wait_for(timeout=60_000)
        seconds = []
        for asked, question in enumerate(("What color is it?", "Where is it?", "Is it large?")):
            shown.locator("#composer textarea").fill(question)
            began = time.perf_counter()
            shown.locator("#composer textarea").press("Enter")
            shown.locator("#conversation .assistant").nth(asked + 1).wait_for()
            seconds.append(time.perf_counter() - began)
            shown.locator("#composer .send:enabled").wait_for(timeout=60_000)
    return statistics.median(seconds)


def _first_chunk_secs(address: str) -> list[list[float]]:
    """Return how long each of many programs waits for the first words: a list for each question.

    Each run has new programs, whose first questions are counted. The server's own first one, for
    which it still loads what it needs, is not.
    """
    ask_once = (
        "import sys, gradio_client as g; g.Client(sys.argv[1]).predict('Hi', api_name='/ask')"
    )
    subprocess.run([sys.executable, "-c", ask_once, address], check=True, capture_output=True)
    waited: list[list[float]] = []
    for _ in range(RUNS):
        command = [sys.executable, "-m", "gemma3vl_app.benchmark.programs", address]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        waited += json.loads(done.stdout)
    return waited
