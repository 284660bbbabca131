"""The API over a real engine with a tiny model, and ways to stop it at each stage."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from gemma3vl_app.backends.local import LocalBackend, load
from gemma3vl_app.engine.engine import EngineLimits
from tests.api.servers import HAPPENS_WITHIN_SEC, Served, picture_url, served

STAGES = ("vision", "prefill", "decode")


@dataclass
class Model:
    """A server and the model behind it."""

    server: Served
    backend: LocalBackend

    def ask(self, text: str, *, picture: str | None = None, tokens: int = 8, **fields):
        """Ask greedily; returns the response."""
        with httpx.Client(base_url=self.server.address, timeout=HAPPENS_WITHIN_SEC) as client:
            return client.post(
                "/v1/chat/completions", json=body(text, picture=picture, tokens=tokens, **fields)
            )

    def module(self, stage: str):
        """The module that every pass of a stage goes through."""
        core = self.backend._loaded.model.model
        return core.vision_tower.embeddings if stage == "vision" else core.language_model.layers[0]

    @contextmanager
    def before(self, stage: str, act):
        """Call `act(rows, tokens)` on the engine's thread before each pass of a stage."""

        def hook(_, arguments):
            tokens = 0 if stage == "vision" else arguments[0].shape[1]
            if stage == "vision" or (tokens == 1) == (stage == "decode"):
                act(arguments[0])

        handle = self.module(stage).register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class Barrier:
    """Holds the engine's thread at a point until it is let go; counts who comes by."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.passes = 0

    def __call__(self, _) -> None:
        self.passes += 1
        self.reached.set()
        assert self.go_on.wait(HAPPENS_WITHIN_SEC)


def body(text: str, *, picture: str | None = None, tokens: int = 8, **fields):
    """The body of a greedy request."""
    content = [{"type": "text", "text": text}]
    if picture is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": picture_url(picture)}})
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": tokens,
        **fields,
    }


def said(response) -> str:
    """The text of an answer."""
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@contextmanager
def served_model(tiny, *, engine: EngineLimits | None = None, **limits):
    """Serve the API over the tiny checkpoint for as long as the block runs."""
    with (
        load(tiny, weights="fp32", limits=engine, speculation="off") as backend,
        served(backend, requests_per_minute=100_000, **limits) as server,
    ):
        yield Model(server, backend)
