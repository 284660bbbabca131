"""What is too much is refused at once, with the status and the advice for it."""

import asyncio
import json
import socket

import httpx
import pytest

from gemma3vl_app.api.failures import RequestError
from gemma3vl_app.api.limits import ApiLimits, Gate
from gemma3vl_app.schemas import LARGEST_SCHEMA_BYTES
from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.api.servers import HAPPENS_WITHIN_SEC, HeldBackend, chat_body, picture_url, served


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_one_caller_may_send_so_many_a_minute_and_others_still_can():
    clock = Clock()
    gate = Gate(ApiLimits(requests_per_minute=2), clock)
    for _ in range(2):
        with gate.admit("anna"):
            pass
        clock.now += 10
    with pytest.raises(RequestError) as caught, gate.admit("anna"):
        pass
    assert (caught.value.status, caught.value.retry_sec) == (429, 40)
    with gate.admit("ben"):
        pass
    clock.now += 40
    with gate.admit("anna"):
        pass


def test_callers_that_have_gone_are_forgotten():
    clock = Clock()
    gate = Gate(ApiLimits(), clock)
    for number in range(50):
        with gate.admit(f"address {number}"):
            pass
    clock.now += 61
    with gate.admit("anna"):
        pass
    assert list(gate._arrivals) == ["anna"]
    assert not gate._at_once


def test_one_caller_cannot_take_every_place():
    gate = Gate(ApiLimits(requests_at_once=3, requests_at_once_per_caller=2))
    with gate.admit("anna"), gate.admit("anna"):
        with pytest.raises(RequestError) as caught, gate.admit("anna"):
            pass
        assert caught.value.status == 429 and caught.value.retry_sec
        with gate.admit("ben"), pytest.raises(RequestError) as caught, gate.admit("cleo"):
            pass
        assert caught.value.status == 503 and caught.value.retry_sec
    assert gate.open_requests == 0


def test_a_gate_that_closes_waits_for_who_is_inside():
    async def scenario():
        gate = Gate(ApiLimits())
        with gate.admit("anna"):
            gate.close()
            with pytest.raises(RequestError) as caught, gate.admit("ben"):
                pass
            assert caught.value.status == 503
            assert not await gate.wait_until_empty(0)
            waiting = asyncio.ensure_future(gate.wait_until_empty(HAPPENS_WITHIN_SEC))
            await asyncio.sleep(0)
        return await waiting

    assert asyncio.run(scenario())


def test_too_many_at_once_are_told_when_to_come_again():
    backend = HeldBackend()
    with (
        served(backend, requests_at_once_per_caller=1) as server,
        httpx.Client(base_url=server.address, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)),
    ):
        assert backend.began.wait(HAPPENS_WITHIN_SEC)
        refused = client.post("/v1/chat/completions", json=chat_body())
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "rate_limit_error"


@pytest.fixture(scope="module")
def small():
    with served(ScriptedBackend(), body_bytes=20_000, pictures=2, messages=3) as server:
        yield server


def test_a_body_is_counted_while_it_comes_in(small):
    def endless():
        while True:
            yield b" " * 1000

    with httpx.Client(base_url=small.address) as client:
        stated = client.post("/v1/chat/completions", json=chat_body("x" * 30_000))
    assert (stated.status_code, stated.json()["error"]["code"]) == (413, "request_too_large")
    # Without a stated length; the answer comes although the body never ends.
    with socket.create_connection(("127.0.0.1", small.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for piece, _ in zip(endless(), range(21), strict=False):
            connection.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        assert b" 413 " in connection.recv(100)


def test_a_body_that_does_not_arrive_is_given_up():
    with (
        served(ScriptedBackend(), body_sec=0.05) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection,
    ):
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert b" 408 " in connection.recv(100)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"role": "user", "content": "x"}] * 4, "4 messages were sent; the limit is 3"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": picture_url(c)}}],
                }
                for c in ("red", "green", "blue")
            ],
            "3 pictures; the limit is 2",
        ),
    ],
)
def test_too_much_in_one_request_is_told_with_its_limit(small, messages, told):
    with httpx.Client(base_url=small.address) as client:
        refused = client.post(
            "/v1/chat/completions", json={"model": "scripted", "messages": messages}
        )
    assert refused.status_code == 400
    assert told in refused.json()["error"]["message"]


HUGE = {"enum": ["x" * LARGEST_SCHEMA_BYTES]}


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"n": 5}, "n", "the limit is 4"),
        ({"max_tokens": 8193}, "max_tokens", "the limit is 8,192"),
        ({"max_completion_tokens": 8193}, "max_completion_tokens", "the limit is 8,192"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "huge", "schema": HUGE},
                }
            },
            "response_format.json_schema.schema",
            "larger than 1 MiB",
        ),
    ],
    ids=["choices", "tokens", "tokens by their newer name", "schema"],
)
def test_more_work_than_the_limits_allow_is_told_with_its_field(http, fields, param, told):
    refused = http.post("/v1/chat/completions", json=chat_body(**fields))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
    assert told in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_only_plain_json_is_accepted(http, headers):
    refused = http.post("/v1/chat/completions", content=json.dumps(chat_body()), headers=headers)
    assert refused.status_code == 415
    assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200
