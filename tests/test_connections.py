"""Clients that connect and ask nothing, or ask too slowly, leave the others their server."""

import resource
import select
import socket
from contextlib import ExitStack

import httpx
import pytest

from gemma3vl_app import connections
from gemma3vl_app.testing import ScriptedBackend
from tests.api.servers import HeldBackend, chat_body, served, wait_until

SOCKETS = 1000
BEGUN = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "


@pytest.fixture
def many_files():
    """Both ends of all sockets are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3 * SOCKETS:
        pytest.skip(f"a process may have {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3 * SOCKETS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_others_are_answered_while_a_thousand_sockets_ask_nothing(many_files, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SEC", 3600.0)
    with ExitStack() as open_now:
        server = open_now.enter_context(served(ScriptedBackend()))
        for number in range(SOCKETS):
            half = open_now.enter_context(socket.create_connection(("127.0.0.1", server.port), 60))
            if number % 2:
                half.sendall(BEGUN)
        connected = server.server.server_state.connections
        wait_until(lambda: len(connected) == SOCKETS)
        client = open_now.enter_context(httpx.Client(base_url=server.address, timeout=60))
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/chat/completions", json=chat_body()).status_code == 200
        assert len(connected) == SOCKETS + 1


def test_a_socket_is_closed_that_does_not_come_to_its_request(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SEC", 0.05)
    with served(ScriptedBackend()) as server, ExitStack() as open_now:
        silent, slow, second = (
            open_now.enter_context(socket.create_connection(("127.0.0.1", server.port), 60))
            for _ in range(3)
        )
        second.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        while b'"ok"' not in second.recv(4096):
            pass
        second.sendall(BEGUN)  # after a whole request: that a connection once was good is no excuse
        assert silent.recv(1) == b""
        assert second.recv(1) == b""
        with pytest.raises(ConnectionError):
            slow.sendall(BEGUN)
            while not select.select([slow], [], [], 0.01)[0]:
                slow.sendall(b"x")  # a byte at a time, for ever
            raise ConnectionError(slow.recv(1))


def test_an_answer_that_takes_long_is_not_cut_off(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SEC", 0.02)
    backend = HeldBackend()
    with (
        served(backend) as server,
        httpx.Client(base_url=server.address, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as response,
    ):
        looks = []
        real = connections.PunctualProtocol._look
        monkeypatch.setattr(
            connections.PunctualProtocol,
            "_look",
            lambda *args: (looks.append(args), real(*args)),
        )
        wait_until(lambda: len(looks) > 3)
        backend.say("still here")
        backend.finish("still here")
        assert "still here" in response.read().decode()
        assert "[DONE]" in response.text


def test_headers_have_a_most_of_bytes():
    with (
        served(ScriptedBackend()) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection,
    ):
        connection.sendall(BEGUN)
        with pytest.raises(OSError):  # it is closed, whoever notices first
            for _ in range(100 * connections.HEADER_BYTES // 1000):
                connection.sendall(b"x" * 1000)
            raise ConnectionError(connection.recv(100)[:12])


def test_a_server_may_hold_as_many_connections_as_the_system_allows():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        connections.allow_many()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, connections.MOST_FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
