"""Once there are keys, everything is closed: a new route, too, unless this file lists it."""

import logging
import re
import secrets

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.routing import Mount

from gemma3vl_app.api.keys import Keys, read_keys
from gemma3vl_app.errors import Gemma3VLError
from gemma3vl_app.server import ApiOptions, create_app
from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.api.servers import KEY, OTHER_KEY, chat_body, picture_url, served

OPEN_TO_ALL = {"/healthz"}
LOGIN_PAGE = {"/", "/login", "/login/", "/theme.css", "/favicon.ico", "/manifest.json"}
LOGIN_FILES = ("/assets/", "/static/", "/svelte/")
LOGINS = [("anna", "secret")]


def app_with(*, keys=(KEY,), **options):
    return create_app(ScriptedBackend(), api=ApiOptions(keys=Keys(keys)), **options)


def routes_of(app, prefix=""):
    """Every path of an app and what is mounted or included in it, with the methods it takes."""
    routes = app.effective_candidates() if hasattr(app, "effective_candidates") else app.routes
    for route in routes:
        if hasattr(route, "effective_candidates"):  # a router that FastAPI keeps as a branch
            yield from routes_of(route, prefix)
            continue
        path = prefix + re.sub(r"\{(\w+)(:\w+)?\}", r"\1", route.path)
        if isinstance(route, Mount):
            yield from routes_of(route.app, path.rstrip("/"))
        else:
            for method in sorted(getattr(route, "methods", None) or {"GET"}):
                yield method, path


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def closed_app():
    return app_with()


@pytest.mark.parametrize("headers", [{}, bearer("wrong-key-0123456789"), {"authorization": KEY}])
def test_every_route_of_the_app_and_the_page_needs_a_key(closed_app, headers):
    client = TestClient(closed_app, base_url="http://127.0.0.1")
    walked = list(routes_of(closed_app))
    assert len(walked) > 80  # gradio's are among them
    assert {"/v1/chat/completions", "/metrics", "/gradio_api/queue/join"} <= {p for _, p in walked}
    for method, path in walked:  # one by one: some that were open would never come to an end
        status = client.request(method, path, headers=headers).status_code
        assert (status != 401) == (path in OPEN_TO_ALL), path


def test_a_refusal_is_an_openai_error(closed_app):
    refused = TestClient(closed_app, base_url="http://127.0.0.1").get("/v1/models")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "invalid_api_key"


def test_a_key_opens_everything_that_is_not_of_the_page(closed_app):
    client = TestClient(closed_app, base_url="http://127.0.0.1", headers=bearer(KEY))
    for path in ("/v1/models", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200
    assert client.post("/v1/chat/completions", json=chat_body()).status_code == 200


def test_a_login_opens_the_page_and_not_the_api():
    app = app_with(logins=LOGINS)
    client = TestClient(app, base_url="http://127.0.0.1")
    for method, path in routes_of(app):
        if path not in OPEN_TO_ALL | LOGIN_PAGE and not path.startswith(LOGIN_FILES):
            assert client.request(method, path).status_code == 401, path
    assert client.post("/gradio_api/cancel", json={}).status_code == 401
    assert client.post("/login", data={"username": "anna", "password": "no"}).status_code == 400
    entered = client.post("/login", data={"username": "anna", "password": "secret"})
    assert entered.status_code == 200
    assert client.get("/config").status_code == 200
    assert client.get("/v1/models").status_code == 401
    assert client.get("/metrics").status_code == 401


def test_logins_without_keys_close_the_api():
    client = TestClient(app_with(keys=(), logins=LOGINS), base_url="http://127.0.0.1")
    client.post("/login", data={"username": "anna", "password": "secret"})
    assert client.get("/v1/models").status_code == 401
    assert client.get("/metrics").status_code == 401
    assert client.get("/config").status_code == 200


def test_without_keys_and_logins_all_is_open():
    client = TestClient(app_with(keys=()), base_url="http://127.0.0.1")
    assert client.get("/v1/models").status_code == 200
    assert client.get("/config").status_code == 200


def test_the_api_sets_no_cookies_and_the_page_does():
    client = TestClient(app_with(keys=()), base_url="http://127.0.0.1")
    assert "set-cookie" not in client.get("/v1/models").headers
    assert "set-cookie" in client.get("/").headers


def test_each_key_has_caches_of_its_own_that_no_client_can_name():
    backend = ScriptedBackend()
    with (
        served(backend, keys=[KEY, OTHER_KEY]) as server,
        httpx.Client(base_url=server.address) as client,
    ):
        for key in (KEY, OTHER_KEY, KEY):
            body = chat_body(user="anna", prompt_cache_key="shared", metadata={"salt": "x"})
            assert client.post("/v1/chat/completions", json=body, headers=bearer(key)).is_success
        refused = client.post(
            "/v1/chat/completions", json=chat_body(cache_salt="x"), headers=bearer(KEY)
        )
    sessions = [request.session for request in backend.requests]
    assert sessions[0] == sessions[2] != sessions[1]
    assert KEY not in sessions[0] and "anna" not in sessions[0]
    assert refused.json()["error"]["param"] == "cache_salt"


def test_keys_come_from_a_file_and_the_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n{KEY}  # Anna\n\n")
    file.chmod(0o600)
    keys = read_keys(file, f"{OTHER_KEY}, third-key-0123456789")
    for key in (KEY, OTHER_KEY, "third-key-0123456789"):
        assert keys.caller(
            {"type": "http", "headers": [(b"authorization", b"bearer " + key.encode())]}
        )
    assert not read_keys(None, None)


def test_a_keys_file_that_others_can_read_is_warned_of(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text(KEY)
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        read_keys(file, None)
    assert "chmod 600" in caplog.text and KEY not in caplog.text


@pytest.mark.parametrize(
    ("content", "told"),
    [("", "holds no key"), ("short\n", "16 to 200"), ("schlüssel-0123456789", "ASCII")],
)
def test_keys_that_would_protect_nothing_are_refused(tmp_path, content, told):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(Gemma3VLError, match=told):
        read_keys(file, None)
    with pytest.raises(Gemma3VLError, match="cannot be read"):
        read_keys(tmp_path / "none", None)


def test_a_header_of_strange_bytes_is_no_key():
    headers = [(b"authorization", b"Bearer " + bytes(range(128, 256)))]
    assert Keys([KEY]).caller({"type": "http", "headers": headers}) is None


def test_every_key_is_compared_in_constant_time(monkeypatch):
    keys, compared = Keys([KEY, OTHER_KEY]), []

    def compare(given, known):
        compared.append((given, known))
        return False

    monkeypatch.setattr(secrets, "compare_digest", compare)
    for value in (f"Bearer {KEY}", f"Bearer {OTHER_KEY}", "Bearer wrong", ""):
        scope = {"type": "http", "headers": [(b"authorization", value.encode())]}
        assert keys.caller(scope) is None  # nothing else decides
        assert [known for _, known in compared] == keys._digests
        assert all(len(given) == len(known) for given, known in compared)
        compared.clear()


def test_requests_a_minute_are_counted_for_each_key_over_http():
    with (
        served(ScriptedBackend(), keys=[KEY, OTHER_KEY], requests_per_minute=2) as server,
        httpx.Client(base_url=server.address, timeout=60) as client,
    ):

        def ask(key):
            return client.post("/v1/chat/completions", json=chat_body(), headers=bearer(key))

        assert [ask(KEY).status_code for _ in range(3)] == [200, 200, 429]
        refused = ask(KEY)
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert ask("wrong-key-0123456789").status_code == 401  # which costs nobody a place
        assert ask(OTHER_KEY).status_code == 200


def test_keys_words_and_pictures_are_in_no_log_line_and_no_error(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    words, picture = "my-secret-words", picture_url("purple", 40)
    secret = re.compile(f"{KEY}|{OTHER_KEY}|{words}|{re.escape(picture[30:60])}")
    parts = [
        {"type": "text", "text": words},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    damaged = [{"type": "image_url", "image_url": {"url": picture[:-40]}}]
    backend = ScriptedBackend()
    with (
        served(backend, keys=[KEY]) as server,
        httpx.Client(base_url=server.address, timeout=60, headers=bearer(KEY)) as client,
    ):

        def ask(content=parts, key=KEY, **fields):
            body = {"model": "scripted", "messages": [{"role": "user", "content": content}]}
            return client.post("/v1/chat/completions", json={**body, **fields}, headers=bearer(key))

        assert ask().status_code == 200
        refused = [
            ask(key=OTHER_KEY),
            ask(damaged),
            ask(top_p=words),
            ask(stop=[words] * 99),
            ask(model=f"{words}"),
            ask(**{words: 1}),
            client.post("/v1/chat/completions", content=f'{{"{words}": {picture}'),
            client.get(f"/v1/{words}"),
        ]
        backend._chunks, backend._error = ["Well"], RuntimeError("a defect")
        refused += [ask(), ask(stream=True)]
    for response in refused[:4] + refused[6:]:
        assert not secret.search(response.text), response.text
    assert {response.status_code for response in refused} >= {400, 401, 404, 500}
    for response in refused:  # a name of theirs that is wrong is told back; a key never
        assert KEY not in response.text and OTHER_KEY not in response.text
        assert picture[30:60] not in response.text
    clients = ("httpx", "httpcore")  # the log of whoever asks, which is in this process, too
    lines = [record for record in caplog.records if not record.name.startswith(clients)]
    log = "".join(map(logging.Formatter("%(message)s %(args)s").format, lines))
    log += "".join(capfd.readouterr())
    assert "a defect" in log  # what is unexpected is there
    assert not secret.search(log)
