"""How soon a request works again after a fault: within five seconds, is the promise.

GEMMA3VL_SLOWER=3 allows three times as long, for a machine that is busy with something else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import httpx

SLOWER = float(os.environ.get("GEMMA3VL_SLOWER", "1"))
NEXT_WITHIN_SEC = 5.0


def next_answer_within(seconds: float, ask: Callable[[], httpx.Response]) -> float:
    """Ask until it is answered; fails unless it is, in time; returns what that request took.

    Refusals are asked again, as clients do. The answer itself is not looked at.
    """
    end = time.monotonic() + seconds * SLOWER
    while True:
        began = time.monotonic()
        try:
            reply = ask()
            said = f"{reply.status_code} {reply.text[:200]}"
            if reply.status_code == 200:
                took = time.monotonic() - began
                assert took < seconds * SLOWER, f"the next answer took {took:.1f} s"
                return took
        except httpx.TransportError as error:
            said = repr(error)
        assert time.monotonic() < end, f"no answer within {seconds * SLOWER:g} s: {said}"
        time.sleep(0.05)
