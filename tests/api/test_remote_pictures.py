"""Pictures by their addresses: only where the operator has named the host."""

import threading

import openai
import pytest
import uvicorn

from gemma3vl_app.api.keys import Keys
from gemma3vl_app.pictures import Picture
from gemma3vl_app.remote_pictures import RemotePictures
from gemma3vl_app.server import ApiOptions, Server, create_app, listen
from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.api.servers import STARTS_WITHIN_SEC, wait_until
from tests.test_remote_pictures import PICTURE, PUBLIC, Host, Internet


@pytest.fixture
def internet(monkeypatch):
    made = Internet(monkeypatch)
    made.names["pictures.example.com"] = [[PUBLIC]]
    made.names["localhost"] = [["127.0.0.1"]]
    made.hosts[PUBLIC] = Host()
    yield made
    made.hosts[PUBLIC].close()


@pytest.fixture(params=[True, False], ids=["allowed", "not allowed"])
def asked(request, internet):
    """What a client asks about, the server's backend, and whether its host may be asked."""
    backend = ScriptedBackend()
    remote = RemotePictures(["pictures.example.com"]) if request.param else None
    app = create_app(backend, page=False, api=ApiOptions(keys=Keys(), remote_pictures=remote))
    with listen("127.0.0.1", 0, 1) as listener:
        server = Server(uvicorn.Config(app, log_level="warning"), app.state.api)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:

            def ask(url):
                parts = [{"type": "image_url", "image_url": {"url": url}}]
                parts.append({"type": "text", "text": "What is this?"})
                messages = [{"role": "user", "content": parts}]
                return client.chat.completions.create(model="scripted", messages=messages)

            yield ask, backend, request.param
        server.should_exit = True
        thread.join(STARTS_WITHIN_SEC)


def test_a_picture_is_fetched_from_a_host_that_is_named_and_from_no_other(asked, internet):
    ask, backend, is_allowed = asked
    if is_allowed:
        ask("http://pictures.example.com/a.png")
        (picture,) = backend.requests[-1].conversation.pictures
        assert picture.sha256 == Picture.open(PICTURE, crops="off").sha256
        assert len(internet.hosts[PUBLIC].requests) == 1
    else:
        with pytest.raises(openai.BadRequestError, match="not fetched"):
            ask("http://pictures.example.com/a.png")
        assert not internet.hosts[PUBLIC].requests
    for address in ("http://elsewhere.example.com/a.png", "http://169.254.169.254/latest"):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(address)
        assert refused.value.code == "invalid_image_url"
        assert refused.value.param == "messages.0.content.0.image_url.url"
    assert internet.connected == ([PUBLIC] if is_allowed else [])
