"""The server is private by default: own host names only, nothing fetched, nothing told."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import gradio as gr
import pytest
from fastapi.testclient import TestClient

from gemma3vl_app.api.keys import Keys
from gemma3vl_app.errors import ConversationError, Gemma3VLError
from gemma3vl_app.manager import ModelManager
from gemma3vl_app.picture_workers import _switch
from gemma3vl_app.server import (
    LOOPBACK,
    ApiOptions,
    _models,
    _open_store,
    check_access,
    create_app,
    launch,
    serve,
)
from gemma3vl_app.testing.scripted import ScriptedBackend
from gemma3vl_app.webui.words import ENGLISH


@pytest.fixture(scope="module")
def client():
    return TestClient(create_app(ScriptedBackend()), base_url="http://127.0.0.1")


def test_the_health_check_answers(client):
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_request_for_another_host_name_is_refused(client):
    assert client.get("/", headers={"host": "evil.test"}).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=https://example.com/a.png",
        "/gradio_api/file=HTTP://127.0.0.1/a.png",
        "/gradio_api/file=https:/example.com/a.png",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/file=%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/gradio_api/file=/%2fetc/passwd",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/file=README.md",  # where the program was started
        "/gradio_api/file=gemma3vl_app/server.py",
        "/file=/etc/passwd",
        "/static//etc/passwd",
        "/static/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/assets/%2e%2e/%2e%2e/app.py",
        "/svelte/..%2f..%2f..%2fapp.py",
        "/theme.css/..%2f..%2fapp.py",
        "/custom_component/x/component/..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/stream/x/0/..%2f..%2fetc%2fpasswd",
    ],
)
def test_the_file_route_fetches_nothing_and_reads_no_foreign_file(client, path):
    answer = client.get(path)
    assert answer.status_code in (400, 403, 404, 405)
    assert "root:" not in answer.text and "import" not in answer.text


def test_a_link_among_the_uploads_leads_nowhere(client, tmp_path):
    """A name that a visitor is allowed to ask for must not stand for a file elsewhere."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    (uploads / "link.txt").symlink_to(secret)
    assert client.get(f"/gradio_api/file={uploads / 'link.txt'}").status_code in (403, 404)


@pytest.mark.parametrize("address", ["https://example.com/x.png", "http://127.0.0.1:9/x.png"])
def test_an_address_in_place_of_a_file_is_not_fetched(client, address):
    for route in ("file=", "file/"):
        assert client.get(f"/gradio_api/{route}{address}").status_code == 404


@pytest.mark.parametrize("path", ["/monitoring", "/monitoring/summary", "/gradio_api/mcp"])
def test_pages_nobody_asked_for_are_off(client, path):
    assert client.get(path).status_code in (403, 404)


def test_what_gradio_would_do_by_itself_is_off(client):
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("run_history")
    assert config["max_file_size"] == 25 * 1000 * 1000 or config["max_file_size"] == 25 << 20
    names = client.get("/gradio_api/info").json()["named_endpoints"]
    assert set(names) == {"/ask"}


def test_no_variable_of_the_environment_opens_the_page(monkeypatch):
    given = []
    monkeypatch.setattr(gr.Blocks, "launch", lambda _, **options: given.append(options))
    monkeypatch.setattr(gr, "mount_gradio_app", lambda *_, **options: given.append(options))
    launch(ScriptedBackend(), host="127.0.0.1", port=1)
    create_app(ScriptedBackend())
    assert len(given) == 2 and given[0]["share"] is False  # a mounted page has no links to share
    # With None, variables such as GRADIO_SHARE, GRADIO_MCP_SERVER and GRADIO_ALLOWED_PATHS decide.
    for options in given:
        assert options["mcp_server"] is False
        assert options["allowed_paths"] == []


def test_the_browser_may_load_from_this_server_only(client):
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "http:" not in policy and "https:" not in policy and "*" not in policy


def test_every_answer_forbids_guessing_its_type_and_telling_where_it_was(client):
    for answer in (client.get("/"), client.get("/healthz"), client.get("/gradio_api/file=/x")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["content-security-policy"]


def test_no_font_or_style_comes_from_elsewhere(client):
    theme = client.get("/theme.css").text
    assert "fonts.googleapis" not in theme
    assert "http" not in theme.replace("http://www.w3.org", "")


def test_a_taken_port_is_a_plain_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Gemma3VLError, match=f"Port {port} .*--port"):
            serve(ScriptedBackend(), port=port)


@pytest.mark.parametrize(
    "origin", ["http://evil.test", "http://localhost.evil.test", "null", "file://"]
)
def test_another_sites_page_may_change_nothing(client, origin):
    headers = {"origin": origin}
    assert client.post("/gradio_api/queue/join", json={}, headers=headers).status_code == 403
    files = {"files": ("a.png", b"1", "image/png")}
    assert client.post("/gradio_api/upload", files=files, headers=headers).status_code == 403


def test_the_page_itself_and_programs_may_send(client):
    files = {"files": ("a.png", b"1", "image/png")}
    own = {"origin": "http://127.0.0.1"}
    assert client.post("/gradio_api/upload", files=files, headers=own).status_code == 200
    assert client.post("/gradio_api/upload", files=files).status_code == 200


def test_a_public_address_needs_a_login_or_a_clear_word():
    with pytest.raises(Gemma3VLError, match="--auth NAME:PASSWORD"):
        serve(ScriptedBackend(), host="0.0.0.0", port=1)
    check_access("0.0.0.0", [("anna", "secret")], no_auth=False)
    check_access("127.0.0.1", [], no_auth=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_nobody_may_come_in_from_outside_unless_somebody_says_so(host):
    with pytest.raises(Gemma3VLError, match="--no-auth"):
        check_access(host, [], no_auth=False)
    with pytest.raises(Gemma3VLError, match="--keys-file"):
        check_access(host, [], no_auth=False, keys=Keys([]))


def test_an_open_page_on_a_public_address_is_warned_of(caplog):
    check_access("0.0.0.0", [], no_auth=True)
    assert "open to everybody" in caplog.text


def test_with_logins_nobody_else_sees_the_page():
    app = create_app(ScriptedBackend(), logins=[("anna", "secret")])
    client = TestClient(app, base_url="http://127.0.0.1")
    assert client.get("/config").status_code == 401
    assert client.post("/login", data={"username": "anna", "password": "x"}).status_code == 400
    assert client.post("/login", data={"username": "anna", "password": "secret"}).status_code == 200
    assert client.get("/config").status_code == 200


def test_an_api_without_a_page_decodes_in_workers():
    assert _switch.workers() is None
    create_app(ScriptedBackend(), page=False, api=ApiOptions())
    assert _switch.workers() is not None


def test_where_conversations_cannot_be_kept_the_page_works_without(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with ExitStack() as closing:
        assert _open_store(tmp_path / "file" / "kept", closing) is None
    assert "not kept" in caplog.text


def test_every_browser_gets_a_secret_of_its_own():
    app = create_app(ScriptedBackend())
    cookies = [TestClient(app, base_url="http://127.0.0.1").get("/").cookies for _ in range(2)]
    secrets = [jar["gemma3vl_visitor"] for jar in cookies]
    assert len(set(secrets)) == 2


@pytest.mark.parametrize(
    ("hosts", "logins", "owner", "may", "any_source"),
    [
        (LOOPBACK, [], "browser 1", True, True),
        (("*",), [], "browser 1", False, False),
        (("*",), [("anna", "x"), ("ben", "y")], "user anna", True, False),
        (("*",), [("anna", "x"), ("ben", "y")], "user ben", False, False),
    ],
)
def test_who_sits_here_or_comes_first_changes_models(hosts, logins, owner, may, any_source):
    with ModelManager(lambda source, **options: ScriptedBackend()) as manager:
        shown = _models(manager, hosts, logins).as_values(owner, ENGLISH)
    assert (shown["may_change"], shown["any_source"]) == (may, any_source)


def test_the_operator_says_what_may_be_loaded():
    with ModelManager(lambda source, **options: ScriptedBackend()) as manager:
        models = _models(manager, ("*",), [("anna", "x")], ("demo", "4b-it"))
        assert models.names == ("demo", "4b-it")
        with pytest.raises(ConversationError, match="does not offer"):
            list(models.act("user anna", "use", "27b-it", "auto"))
