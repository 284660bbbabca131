"""Is the server alive, and would it answer: two questions with two answers.

Alive means that it replies at all. Ready means that a request sent now would be answered: it is not
shutting down, there is a model, and the model's engine makes progress.
"""

from __future__ import annotations

from typing import Any

from gemma3vl_app.api import progress
from gemma3vl_app.api.serving import Api


def readiness(api: Api) -> tuple[int, dict[str, Any]]:
    """Return a status (200 or 503) and what to say."""
    if api.gate.closing:
        return 503, {"status": "shutting down"}
    if why := progress.trouble(api.backend(), api.limits.stalled_sec):
        return 503, {"status": why}
    return 200, {"status": "ready"}
