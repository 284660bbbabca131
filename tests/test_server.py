"""The server is private by default: own host names only, nothing fetched, nothing told."""

import socket

import pytest
from fastapi.testclient import TestClient

from gemma3vl_app.errors import Gemma3VLError
from gemma3vl_app.server import create_app, serve
from gemma3vl_app.testing.scripted import ScriptedBackend


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
    ],
)
def test_the_file_route_fetches_nothing_and_reads_no_foreign_file(client, path):
    assert client.get(path).status_code in (400, 403, 404)


@pytest.mark.parametrize("path", ["/monitoring", "/monitoring/summary", "/gradio_api/mcp"])
def test_pages_nobody_asked_for_are_off(client, path):
    assert client.get(path).status_code in (403, 404)


def test_what_gradio_would_do_by_itself_is_off(client):
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("run_history")
    assert config["max_file_size"] == 25 * 1000 * 1000 or config["max_file_size"] == 25 << 20
    names = client.get("/gradio_api/info").json()["named_endpoints"]
    assert names == {}


def test_the_browser_may_load_from_this_server_only(client):
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "http:" not in policy and "https:" not in policy and "*" not in policy


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
