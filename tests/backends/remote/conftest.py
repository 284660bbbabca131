"""Servers of every kind, and a backend over one."""

from contextlib import ExitStack

import pytest

from gemma3vl_app.backends.remote import RemoteLimits, load_remote
from tests.backends.remote.fake_server import FakeServer

QUICK = RemoteLimits(pause_sec=0.01, retry_sec=5.0, health_sec=0.02)


@pytest.fixture
def serve():
    """Start servers: `serve("vllm")`."""
    with ExitStack() as running:
        yield lambda *args, **options: running.enter_context(FakeServer(*args, **options))


@pytest.fixture
def connect(monkeypatch):
    """Load backends over servers: `connect(server, ...)`; each server forgets the probing."""
    monkeypatch.delenv("GEMMA3VL_REMOTE_KEY", raising=False)
    with ExitStack() as open_backends:

        def connect(*servers, limits=QUICK, **options):
            source = ",".join(server.url for server in servers)
            backend = open_backends.enter_context(load_remote(source, limits=limits, **options))
            for server in servers:
                server.forget()
            return backend

        yield connect
