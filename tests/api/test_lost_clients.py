"""A client that has gone ends its answer, wherever that stands; nothing is computed for nobody."""

import json
import socket
import struct
import threading

import pytest

from gemma3vl_app.api import conversations
from gemma3vl_app.api.choices import Choices
from gemma3vl_app.generation import Answer
from gemma3vl_app.stream import Stream
from tests.api.servers import (
    HAPPENS_WITHIN_SEC,
    HeldBackend,
    chat_body,
    picture_url,
    served,
    wait_until,
)


@pytest.fixture
def backend():
    return HeldBackend()


def send(server, body, path="/v1/chat/completions"):
    """Send a request on a socket of its own, and return the socket."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=HAPPENS_WITHIN_SEC)
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    return connection


def cut(connection):
    """Close at once, as a program that is killed does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("end", [socket.socket.close, cut])
@pytest.mark.parametrize("said", ["", "One "])
def test_a_closed_socket_ends_the_answer(backend, server, stream, end, said):
    connection = send(server, chat_body(stream=stream))
    assert backend.began.wait(HAPPENS_WITHIN_SEC)
    if said:
        backend.say(said)
    end(connection)
    assert backend.cancelled.wait(HAPPENS_WITHIN_SEC)
    wait_until(lambda: server.app.state.api.gate.open_requests == 0)


def test_a_closed_socket_ends_a_response_too(backend, server):
    connection = send(server, {"model": "scripted", "input": "Hi", "stream": True}, "/v1/responses")
    assert backend.began.wait(HAPPENS_WITHIN_SEC)
    connection.close()
    assert backend.cancelled.wait(HAPPENS_WITHIN_SEC)


def test_every_choice_ends_with_its_client(backend, server):
    connection = send(server, chat_body(n=3, stream=True))
    wait_until(lambda: len(backend.streams) == 3)
    connection.close()
    wait_until(lambda: all(stream.cancelled for stream in backend.streams))


def test_who_leaves_while_pictures_are_decoded_gets_no_answer_started(backend, server, monkeypatch):
    decoding, go_on = threading.Event(), threading.Event()
    real = conversations.pictures.open_url

    def slowly(*arguments):
        decoding.set()
        assert go_on.wait(HAPPENS_WITHIN_SEC)
        return real(*arguments)

    monkeypatch.setattr(conversations.pictures, "open_url", slowly)
    part = {"type": "image_url", "image_url": {"url": picture_url()}}
    connection = send(server, chat_body(messages=[{"role": "user", "content": [part]}]))
    assert decoding.wait(HAPPENS_WITHIN_SEC)
    connection.close()
    wait_until(lambda: server.app.state.api.gate.open_requests == 0)
    go_on.set()
    server.app.state.api._threads.submit(lambda: None).result(HAPPENS_WITHIN_SEC)
    server.app.state.api._threads.shutdown(wait=True)  # whatever it was to start, it has
    assert not backend.streams


def test_a_stream_that_starts_after_its_end_is_stopped_at_once():
    choices, stopped = Choices(), threading.Event()

    def start(index):
        choices.end()  # the client leaves while the stream is being made
        return Stream(on_cancel=stopped.set)

    choices.start(start, 3)
    assert stopped.is_set()
    assert len(choices._streams) == 1


def test_a_reader_that_never_reads_is_given_up(backend):
    with served(backend, slow_reader_sec=0.2) as server:
        connection = send(server, chat_body(stream=True))
        assert backend.began.wait(HAPPENS_WITHIN_SEC)
        for _ in range(200):  # more than all the buffers on the way hold
            backend.say("x" * 100_000)
        assert backend.cancelled.wait(HAPPENS_WITHIN_SEC)
        connection.close()


def test_an_answer_in_time_is_not_ended(backend, server):
    with send(server, chat_body()) as connection:
        assert backend.began.wait(HAPPENS_WITHIN_SEC)
        backend.streams[-1].finish(Answer("Done.", "stop"))
        assert b"Done." in connection.makefile("rb").read(900)
    assert not backend.cancelled.is_set()
