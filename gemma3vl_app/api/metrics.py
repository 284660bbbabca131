"""`GET /metrics`: what Prometheus asks for, about requests, tokens, caches, phases and memory.

Each app has a registry of its own. Nothing here names a key, a conversation or a client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemma3vl_app.api.limits import Gate
from gemma3vl_app.backends.protocol import Backend, ReportsActivity
from gemma3vl_app.generation import Answer
from gemma3vl_app.manager.memory import used_bytes

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SEC = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts what is answered, and reads the rest when it is asked."""

    def __init__(self, backend: Callable[[], Backend], gate: Gate) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._requests = Counter(
            "gemma3vl_requests",
            "Requests by path and status",
            ["path", "status"],
            registry=registry,
        )
        self._request_sec = Histogram(
            "gemma3vl_request_seconds",
            "Time from a request to the end of its response",
            ["path"],
            buckets=_SEC,
            registry=registry,
        )
        self._answers = Counter(
            "gemma3vl_answers", "Answers by how they ended", ["finish_reason"], registry=registry
        )
        self._tokens = Counter(
            "gemma3vl_tokens",
            "Tokens by kind; cached and image tokens are parts of prompt tokens",
            ["kind"],
            registry=registry,
        )
        self._cache_hits = Counter(
            "gemma3vl_cache_hits", "Answers whose prompt was partly known", registry=registry
        )
        self._phase_sec = Counter(
            "gemma3vl_phase_seconds", "Time spent by phase of answers", ["phase"], registry=registry
        )
        self._first_token_sec = Histogram(
            "gemma3vl_time_to_first_token_seconds",
            "Time from the engine's getting a request to its first token",
            buckets=_SEC,
            registry=registry,
        )
        ProcessCollector(registry=registry)
        registry.register(_Now(backend, gate))

    def count_answer(self, answer: Answer) -> None:
        """Count a finished answer."""
        usage, timing = answer.usage, answer.timing
        self._answers.labels(answer.finish_reason).inc()
        for kind, tokens in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("image", usage.image_tokens),
            ("completion", usage.completion_tokens),
        ):
            self._tokens.labels(kind).inc(tokens)
        if usage.cached_tokens:
            self._cache_hits.inc()
        for phase, sec in (
            ("decode_image", timing.decode_image_sec),
            ("vision", timing.vision_sec),
            ("prefill", timing.prefill_sec),
            ("decode", timing.decode_sec),
        ):
            self._phase_sec.labels(phase).inc(max(0.0, sec))
        self._first_token_sec.observe(timing.ttft_sec)

    def count_request(self, path: str, status: int, sec: float) -> None:
        """Count a request that has been answered."""
        self._requests.labels(path, str(status)).inc()
        self._request_sec.labels(path).observe(sec)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _Now(Collector):
    """What is not counted but looked at: the queue and the memory of this moment."""

    def __init__(self, backend: Callable[[], Backend], gate: Gate) -> None:
        self._backend = backend
        self._gate = gate

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand, so that nothing is read while registering."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield what there is now."""
        yield GaugeMetricFamily(
            "gemma3vl_open_requests",
            "API requests that are being answered or wait",
            self._gate.open_requests,
        )
        backend = self._backend()
        if isinstance(backend, ReportsActivity):
            activity = backend.activity
            yield GaugeMetricFamily(
                "gemma3vl_engine_running", "Answers the model is working on", activity.running
            )
            yield GaugeMetricFamily(
                "gemma3vl_engine_waiting", "Answers that wait for the model", activity.waiting
            )
        memory = GaugeMetricFamily(
            "gemma3vl_memory_bytes", "Memory in use by device", labels=["device"]
        )
        for device, size in used_bytes().items():
            memory.add_metric([device], size)
        yield memory


class CountRequests:
    """Count every request to one of `paths`, whatever becomes of it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: Iterable[str]) -> None:
        self.app = app
        self._metrics = metrics
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, and note how it ended."""
        if scope["type"] != "http" or scope["path"] not in self._paths:
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status = 499  # the client left before there was one

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_noting_status)
        finally:
            self._metrics.count_request(scope["path"], status, time.monotonic() - began)
