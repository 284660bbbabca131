"""A server on the scripted backend, and clients of it."""

import httpx
import openai
import pytest

from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.api.servers import served


@pytest.fixture
def backend():
    return ScriptedBackend()


@pytest.fixture
def server(backend):
    with served(backend) as running:
        yield running


@pytest.fixture
def client(server):
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(server):
    """A plain client, for what OpenAI's would not send."""
    with httpx.Client(base_url=server.address, timeout=60) as client:
        yield client
