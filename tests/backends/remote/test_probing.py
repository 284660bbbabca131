"""What a server is and can is found out when it is loaded."""

import pytest
from starlette.responses import RedirectResponse

from gemma3vl_app.backends.load import load
from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.messages import Conversation
from tests.backends.remote.fake_server import PICTURE_TOKENS

HELLO = Conversation().user("Hello")


@pytest.mark.parametrize(
    ("kind", "server", "context", "logprobs", "schema", "score", "top_k"),
    [
        ("vllm", "vLLM 0.26.0", 4096, True, True, True, 64),
        ("sglang", "SGLang", 2048, True, True, False, 64),
        ("llama.cpp", "llama.cpp", 1536, True, True, False, 64),
        ("ollama", "Ollama 0.33.0", 4096, False, True, False, 0),
        ("transformers", "transformers serve", 8192, False, False, False, 0),
        ("other", "a server that speaks OpenAI's protocol", 8192, False, False, False, 0),
    ],
)
def test_each_kind_of_server_is_known_by_what_it_shows(
    serve, connect, kind, server, context, logprobs, schema, score, top_k
):
    backend = connect(serve(kind))
    about = backend.capabilities
    assert backend.facts.server == server
    assert (about.context_tokens, about.image_tokens) == (context, PICTURE_TOKENS)
    assert (about.logprobs, about.schema, about.score) == (logprobs, schema, score)
    assert about.sampling == Sample(top_k=top_k)
    assert (about.model, backend.plan, backend.adapters) == ("tiny", None, ())
    assert server in about.knows
    assert ("8,192 tokens are assumed" in about.knows) == (context == 8192)


def test_the_address_is_not_told_to_who_uses_the_model(serve, connect):
    server = serve("vllm")
    about = connect(server).capabilities
    assert str(server.port) not in repr(about)


def test_a_server_that_refuses_pictures_takes_none(serve, connect):
    assert not connect(serve("text only")).capabilities.pictures


def test_a_server_that_drops_pictures_takes_none(serve, connect, monkeypatch):
    server = serve()
    monkeypatch.setattr("tests.backends.remote.fake_server.PICTURE_TOKENS", 0)
    assert not connect(server).capabilities.pictures


def test_where_a_server_counts_nothing_a_picture_costs_what_gemma_says(serve, connect):
    assert connect(serve("counts nothing")).capabilities.image_tokens == 256


def test_the_context_can_be_stated_and_made_shorter(serve, connect):
    assert connect(serve(), context_tokens=32768).capabilities.context_tokens == 32768
    assert connect(serve("vllm"), context_tokens=1000).capabilities.context_tokens == 1000
    assert connect(serve("vllm"), context_tokens=99999).capabilities.context_tokens == 4096


def test_one_of_several_models_is_chosen_by_name(serve):
    server = serve("vllm", models=("a/one", "b/two"))
    with load(f"{server.url}#b/two") as backend:
        assert backend.capabilities.model == "b/two"
    with pytest.raises(LoadError, match=r"2 models: a/one, b/two\. .*#NAME"):
        load(server.url)
    with pytest.raises(LoadError, match=r"no model 'c'.*a/one, b/two"):
        load(f"{server.url}#c")


def test_a_model_that_is_called_by_its_path_is_shown_by_its_name(serve, connect):
    server = serve(models=("/home/me/models/gemma-3-4b-it",))
    backend = connect(server)
    assert backend.capabilities.model == "gemma-3-4b-it"
    assert backend.stream(HELLO).answer.text == "Hello"
    assert server.bodies[0]["model"] == "/home/me/models/gemma-3-4b-it"


def test_adapters_are_the_names_of_models_with_a_parent(serve, connect):
    server = serve("vllm")
    server.adapters = ("pirate",)
    backend = connect(server)
    assert backend.adapters == ("pirate",)
    assert backend.stream(HELLO, adapter="pirate", sampling=Greedy()).answer.text == "Hello"
    assert server.bodies[0]["model"] == "pirate"
    with pytest.raises(LoadError, match="--lora-modules"):
        backend.add_adapter("poet", "runs/poet")


def test_the_key_opens_the_server_and_is_never_shown(serve, connect, monkeypatch, caplog):
    server = serve(key="sk-secret")
    with pytest.raises(LoadError, match="GEMMA3VL_REMOTE_KEY"):
        connect(server)
    with pytest.raises(LoadError) as error:
        connect(server, api_key="sk-wrong")
    assert "sk-" not in str(error.value)
    assert connect(server, api_key="sk-secret").stream(HELLO).answer.text == "Hello"
    monkeypatch.setenv("GEMMA3VL_REMOTE_KEY", "sk-secret")
    with load(server.url) as backend:
        assert backend.stream(HELLO).answer.text == "Hello"
        assert "sk-" not in repr(backend.capabilities) + repr(backend.facts)
    assert "sk-" not in caplog.text


def test_no_other_variable_gives_a_key_away(serve, connect, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    server = serve()
    connect(server).stream(HELLO).wait()
    assert "authorization" not in server.headers[0]


def test_a_proxy_of_the_environment_is_not_asked(serve, connect, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert connect(serve()).stream(HELLO).answer.text == "Hello"


def test_a_server_that_is_not_there_is_named(serve):
    with serve() as server:
        host, url = server.host, server.url
    with pytest.raises(LoadError, match=f"{host} cannot be reached"):
        load(url)


def test_what_is_no_model_server_is_told(serve):
    server = serve(models=())
    with pytest.raises(LoadError, match="serves no model"):
        load(server.url)
    with pytest.raises(LoadError, match="does not have that model or address"):
        load(server.url + "/wrong")


def test_a_redirect_is_not_followed(serve):
    server, other = serve(), serve()

    server._server.config.app.routes[0].app = lambda *args: RedirectResponse(
        f"{other.url}/models", 307
    )(*args)
    with pytest.raises(LoadError, match="another address, which is not followed"):
        load(server.url).close()
    assert not other.headers


@pytest.mark.parametrize("wish", [{"weights": "nf4"}, {"draft": "270m-it"}, {"revision": "main"}])
def test_wishes_for_models_that_are_loaded_here_are_refused_by_name(wish):
    with pytest.raises(LoadError, match=f"{next(iter(wish))}: the server at host:1 has placed"):
        load("http://host:1", **wish)


def test_a_key_makes_no_sense_for_a_model_that_is_loaded_here():
    with pytest.raises(LoadError, match="api_key"):
        load("demo", api_key="x")


def test_a_list_of_addresses_is_several_servers(serve):
    one, two = serve(), serve()
    with load([one.url, two.url]) as backend:
        assert backend.stream(HELLO).answer.text == "Hello"
