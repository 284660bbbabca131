"""Requests that schemathesis makes from the API's own description: fitting and breaking ones."""

from __future__ import annotations

from collections import Counter

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from schemathesis import GenerationMode, checks

from gemma3vl_app.api.routes import OPENAPI

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
MODES = {"fitting": GenerationMode.POSITIVE, "breaking": GenerationMode.NEGATIVE}


def send(
    address: str, *, each: int, model: str, key: str = "", seed: int | None = None
) -> Counter[tuple]:
    """Send `each` requests of each kind to each path; count (kind, path, status).

    A reply that is not as described fails, and so does one that accepts what breaks the
    description. Fitting requests get the name of the model that is there, or hardly one would
    reach it. Without a seed the same requests come each time.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    described = schemathesis.openapi.from_url(address + OPENAPI, headers=headers)
    seen: Counter[tuple] = Counter()
    for kind in MODES:
        for operation in described.get_all_operations():
            operation = operation.ok()
            if kind == "breaking" and not operation.body:
                continue  # nothing to break: every name may be asked for
            count = each if operation.body else max(1, each // 20)
            _send(operation, kind, count, model, headers, seed, seen)
    return seen


def _send(operation, kind, count, model, headers, seed, seen) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=seed is None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=MODES[kind]))
    def send_one(case) -> None:
        if isinstance(case.body, dict) and kind == "fitting":
            case.body["model"] = model
        reply = case.call(timeout=60, headers=headers)
        seen[kind, operation.path, reply.status_code] += 1
        case.validate_response(reply, checks=CHECKS)
        assert kind == "fitting" or reply.status_code >= 400, case.body

    if seed is not None:
        send_one = seeded(seed)(send_one)
    send_one()
