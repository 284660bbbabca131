"""The worker threads that torch computes with on processors: who does not compute keeps none.

Knows nothing of models.
"""

from __future__ import annotations

import ctypes
import sys

_IDLE_FOR_NOW = 1  # OpenMP's `omp_pause_soft`


def release_workers() -> None:
    """End the worker threads that torch's work in this thread has left, where GNU's OpenMP is used.

    It gives each thread that computes some of its own and keeps them. With more in the process than
    processors, those of the engine sleep between two operations instead of waiting awake, and to
    wake them took a quarter of each token of the demo (35 ms instead of 26, on two cores). They
    come back with the next work.
    """
    if sys.platform == "linux":
        pause = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
        if pause is not None:
            pause(_IDLE_FOR_NOW)
