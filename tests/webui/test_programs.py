"""Programs that speak gradio's protocol ask a real server."""

import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from gemma3vl_app.errors import EngineError
from gemma3vl_app.server import create_app
from gemma3vl_app.testing import ScriptedBackend


@pytest.fixture(scope="module")
def backend():
    return ScriptedBackend(["A ", "circle."])


@contextmanager
def serving(backend):
    config = uvicorn.Config(
        create_app(backend), port=0, log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)


def asking(address):
    return Client(address, verbose=False, analytics_enabled=False)


@pytest.fixture(scope="module")
def client(backend):
    with serving(backend) as address:
        yield asking(address)


def test_a_program_asks_about_a_picture_and_sees_the_answer_grow(client, backend, tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    job = client.submit("What is it?", [handle_file(tmp_path / "red.png")], api_name="/ask")
    assert job.result(timeout=20) == "A circle."
    assert job.outputs() == ["A ", "A circle."]
    (picture,) = backend.requests[-1].conversation.pictures
    assert (picture.width, picture.height) == (30, 20)


def test_pictures_may_be_left_out_and_nothing_is_reused_between_questions(client, backend):
    for _ in range(2):
        assert client.predict("Hello", api_name="/ask") == "A circle."
    first, second = backend.requests[-2:]
    assert first.session != second.session != ""


@pytest.mark.parametrize("path", ["/etc/passwd", None, 7])
def test_a_program_cannot_name_files_of_the_server(client, backend, path):
    before = len(backend.requests)
    with pytest.raises(AppError, match="sent to this server first"):
        client.predict("What is it?", [{"path": path}], api_name="/ask")
    assert len(backend.requests) == before


def test_no_address_is_fetched_in_place_of_a_file(client, backend):
    before = len(backend.requests)
    file = {"path": "https://example.com/x.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match="send the file itself"):
        client.predict("What is it?", [file], api_name="/ask")
    assert len(backend.requests) == before


def test_a_failure_is_told_in_a_sentence(client, backend, monkeypatch):
    with pytest.raises(AppError, match="Write a question first"):
        client.predict("  ", api_name="/ask")
    monkeypatch.setattr(backend, "_error", EngineError("The engine broke."))
    with pytest.raises(AppError, match="The engine broke"):
        client.predict("Hello", api_name="/ask")


def test_a_program_that_cancels_ends_its_answer(client, backend, monkeypatch):
    monkeypatch.setattr(backend, "_chunks", ["word "] * 1000)
    monkeypatch.setattr(backend, "_seconds_per_chunk", 0.02)
    job = client.submit("Hello", api_name="/ask")
    assert next(iter(job)) == "word "
    assert backend.running == 1
    job.cancel()
    deadline = time.monotonic() + 10
    while backend.running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert backend.running == 0
