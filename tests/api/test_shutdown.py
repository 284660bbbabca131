"""A server that is to end says so, lets answers finish, and ends those that take too long."""

import json
import signal
import threading

import httpx
import pytest

from tests.api.servers import HAPPENS_WITHIN_SEC, HeldBackend, chat_body, served, wait_until


class Asking(threading.Thread):
    """A client that waits for its answer."""

    def __init__(self, server, **fields):
        super().__init__(daemon=True)
        self.address, self.fields, self.response = server.address, fields, None
        self.start()

    def run(self):
        with httpx.Client(base_url=self.address, timeout=HAPPENS_WITHIN_SEC) as client:
            self.response = client.post("/v1/chat/completions", json=chat_body(**self.fields))


@pytest.fixture
def backend():
    return HeldBackend()


def test_running_answers_finish_while_new_requests_are_refused(backend, server):
    asking = Asking(server)
    assert backend.began.wait(HAPPENS_WITHIN_SEC)
    server.server.handle_exit(signal.SIGTERM, None)
    with httpx.Client(base_url=server.address) as client:
        refused = client.post("/v1/chat/completions", json=chat_body())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "shutting_down"
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
    backend.finish("All of it.")
    asking.join(HAPPENS_WITHIN_SEC)
    assert asking.response.json()["choices"][0]["message"]["content"] == "All of it."


@pytest.mark.parametrize("stream", [True, False])
def test_what_takes_too_long_is_ended_and_marked(backend, stream):
    with served(backend, finish_sec=0.05) as server:
        asking = Asking(server, stream=stream)
        assert backend.began.wait(HAPPENS_WITHIN_SEC)
        backend.say("Half of ")
        server.server.handle_exit(signal.SIGTERM, None)
        assert backend.cancelled.wait(HAPPENS_WITHIN_SEC)
        asking.join(HAPPENS_WITHIN_SEC)
        response = asking.response
    if not stream:
        assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
        return
    *_, last, done = [line for line in response.text.splitlines() if line]
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert "Half of " in response.text


def test_a_second_signal_ends_at_once(backend, server):
    Asking(server)
    assert backend.began.wait(HAPPENS_WITHIN_SEC)
    server.server.handle_exit(signal.SIGINT, None)
    server.server.handle_exit(signal.SIGINT, None)
    assert backend.cancelled.wait(HAPPENS_WITHIN_SEC)
    wait_until(lambda: not server.app.state.api.gate.open_requests)
