"""The API over servers elsewhere: its users learn nothing of them, but when all are down."""

import ast
import json
import re
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import gemma3vl_app
from gemma3vl_app.backends.remote import load_remote
from gemma3vl_app.backends.remote.failures import about
from gemma3vl_app.errors import ConversationError, public_text
from tests.api.servers import HAPPENS_WITHIN_SEC, chat_body, served, wait_until
from tests.backends.remote.conftest import QUICK
from tests.backends.remote.fake_server import DONE, FakeServer, delta, event, fails

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
WORDS = "no file /srv/models/gemma at worker-7.internal (10.1.2.3:9999)"
SAID = {"error": {"message": WORDS}}
TOO_LONG = {"error": {"message": f"maximum context length is 9; {WORDS}"}}
SECRETS = re.compile(
    r"/srv|worker-7|10\.1\.2\.3|9999/|:9999|127\.0\.0\.1|localhost|Traceback|http://"
)


class Over:
    """The API over servers of ours; `ask` returns status and whole text of an answer."""

    def __init__(self, address, engines):
        self.client = httpx.Client(base_url=address, timeout=HAPPENS_WITHIN_SEC)
        self.engines = engines

    def ask(self, text="Hello", *, path=CHAT, **fields):
        body = chat_body(text) if path == CHAT else {"input": text}
        return self.client.post(path, json={**body, "model": "tiny", **fields})

    def ready(self):
        return self.client.get("/readyz").status_code

    def gauges(self):
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        return {sample.name: sample.value for each in families for sample in each.samples}


@contextmanager
def api_over(count=1):
    """Start servers, and the API over them."""
    with ExitStack() as open_now:
        engines = [open_now.enter_context(FakeServer("vllm")) for _ in range(count)]
        source = ",".join(each.url for each in engines)
        backend = open_now.enter_context(load_remote(source, api_key="", limits=QUICK))
        server = open_now.enter_context(served(backend, requests_per_minute=10_000))
        api = Over(server.address, engines)
        open_now.enter_context(api.client)
        yield api


@pytest.fixture(scope="module")
def one_engine():
    with api_over() as api:
        yield api


def refuses(*args, **headers):
    return lambda engine: fails(*args, **headers)


def fails_in_the_middle(engine):
    return lambda _: engine.raw([delta("Well"), event(SAID), DONE])


def breaks_off(engine):
    return lambda _: engine.raw([delta("Well")], breaks=True)


def talks_nonsense(engine):
    return lambda _: engine.raw([b"data: <html>\n\n"])


@pytest.mark.parametrize(
    ("fault", "status", "code", "log"),
    [
        (refuses(400, SAID), 400, None, WORDS),
        (refuses(400, TOO_LONG), 400, "context_length_exceeded", WORDS),
        (refuses(401, SAID), 500, "engine_error", "GEMMA3VL_REMOTE_KEY"),
        (refuses(404, SAID), 500, "engine_error", WORDS),
        (refuses(302, SAID, location="http://10.1.2.3:9999/"), 500, "engine_error", "another"),
        (refuses(413, SAID), 400, None, "too large"),
        (refuses(429, SAID, retry_after="3600"), 503, "overloaded", "too much to do"),
        (refuses(500, SAID), 500, "engine_error", "HTTP 500"),
        (fails_in_the_middle, 500, "engine_error", WORDS),
        (breaks_off, 500, "engine_error", "broke"),
        (talks_nonsense, 500, "engine_error", "/v1"),
    ],
)
def test_neither_its_address_nor_its_words_reach_a_client(
    one_engine, fault, status, code, log, caplog
):
    api = one_engine
    (engine,) = api.engines
    engine.script += [fault(engine)] * 4
    whole = [api.ask(), api.ask(path=RESPONSES)]
    streamed = [api.ask(stream=True), api.ask(path=RESPONSES, stream=True)]
    assert not engine.script
    for response in whole:
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    for response in streamed:
        assert response.status_code == 200 and '"error":{"message":"' in response.text
    for response in (*whole, *streamed):
        assert "model's server" in response.text
        assert not SECRETS.search(response.text), response.text
        assert str(engine.port) not in response.text
    assert f"server at {engine.host}" in caplog.text and log in caplog.text  # for the operator


def test_an_engine_that_is_down_is_told_with_when_to_come_again(caplog):
    with api_over() as api:
        _goes_down_and_comes_back(api, caplog)


def _goes_down_and_comes_back(api, caplog):
    (engine,) = api.engines
    assert api.ask().status_code == 200 and api.ready() == 200
    engine.__exit__()
    whole, streamed = api.ask(), api.ask(stream=True)
    assert (whole.status_code, whole.headers["retry-after"]) == (503, "5")
    assert whole.json()["error"]["code"] == "model_unavailable"
    for response in (whole, streamed):
        assert "model's server cannot be reached" in response.text
        assert not SECRETS.search(response.text)
        assert str(engine.port) not in response.text
    assert f"server at {engine.host} cannot be reached" in caplog.text
    wait_until(lambda: api.ready() == 503)
    assert api.client.get("/healthz").status_code == 200
    with FakeServer("vllm", port=engine.port):  # it is back: the next request finds it
        assert api.ask().status_code == 200
        assert api.ready() == 200


def test_it_is_ready_while_any_engine_is_up():
    with api_over(2) as api:
        _fail_one_after_the_other(api)


def _fail_one_after_the_other(api):
    one, two = api.engines
    assert api.gauges()["gemma3vl_engine_running"] == 0
    one.broken = True
    assert [api.ask(f"Question {n}").status_code for n in range(4)] == [200] * 4
    assert api.ready() == 200
    two.broken = True
    wait_until(lambda: api.ready() == 503)  # found by looking, without a request
    assert api.client.get("/readyz").json() == {"status": "no server of the model answers"}
    refused = api.ask()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    one.broken = False
    wait_until(lambda: api.ready() == 200)
    assert api.ask().status_code == 200


def test_what_is_for_the_operator_alone_goes_to_the_log(caplog):
    error = about("host:1", ConversationError, "The {server} says no{said}.", "Ask.", said=": {x}")
    assert str(error) == "The server at host:1 says no: {x}. Ask."
    assert public_text(error) == "The model's server says no. Ask."
    assert [record.getMessage() for record in caplog.records] == [str(error)]
    caplog.clear()
    assert public_text(ConversationError("Write a question.")) == "Write a question."
    assert not caplog.records


def test_what_serves_others_shows_the_public_text_of_errors_only():
    package = Path(gemma3vl_app.__file__).parent
    for file in [*(package / "api").glob("*.py"), *(package / "webui").glob("*.py")]:
        for handler in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(handler, ast.ExceptHandler) and handler.name:
                called = [n for n in ast.walk(handler) if isinstance(n, ast.Call)]
                shown = [
                    call
                    for call in called
                    if isinstance(call.func, ast.Name) and call.func.id == "str"
                    if isinstance(call.args[0], ast.Name) and call.args[0].id == handler.name
                ]
                assert not shown, f"{file.name}:{handler.lineno}"


def test_engines_are_not_told_the_key_of_who_asks(one_engine):
    (engine,) = one_engine.engines
    key = {"authorization": "Bearer key-of-anna-0123456789"}
    body = {**chat_body(), "model": "tiny"}
    assert one_engine.client.post(CHAT, json=body, headers=key).status_code == 200
    assert "key-of-anna" not in json.dumps([engine.bodies, engine.headers])
