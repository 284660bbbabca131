"""Does the model make progress: asked by `/readyz`, by who comes in, and for those who wait.

A model that hangs in a kernel answers nobody and raises nothing; its server replies all the same.
"""

from __future__ import annotations

from gemma3vl_app.api.failures import MODEL_RETRY_SEC, RequestError
from gemma3vl_app.backends.protocol import Backend, ReportsActivity


def trouble(backend: Backend, stalled_sec: float) -> str | None:
    """Return why a request sent now would get no answer, None where it would."""
    if why := _engine_trouble(backend, stalled_sec):
        return why
    if isinstance(backend, ReportsActivity) and not backend.activity.reachable:
        return "no server of the model answers"
    return None


def check(backend: Backend, stalled_sec: float) -> None:
    """Raise `RequestError` (503) where a request would get no answer.

    Servers of a model elsewhere are asked all the same: one may be back since it was looked at.
    """
    if why := _engine_trouble(backend, stalled_sec):
        raise RequestError(
            f"No answer can be given now: {why}. Ask again in a while, or another server.",
            code="model_unavailable",
            status=503,
            retry_sec=MODEL_RETRY_SEC,
        )


def _engine_trouble(backend: Backend, stalled_sec: float) -> str | None:
    if isinstance(backend, ReportsActivity):
        activity = backend.activity
        if not activity.alive:
            return "the model is closed"
        if activity.still_sec > stalled_sec:
            return "the model makes no progress"
    return None
