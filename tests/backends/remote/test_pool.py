"""Several servers of one model: the least busy one, a conversation's own one, one that works."""

import threading

import pytest

from gemma3vl_app.backends.remote.pool import Pool, Server
from gemma3vl_app.errors import EngineError, LoadError
from gemma3vl_app.messages import Conversation
from tests.backends.remote.fake_server import DONE, FakeServer, delta, ended, fails

END = (ended(), DONE)


def ask(number: int) -> Conversation:
    return Conversation().user(f"Question {number}")


def wait_until(backend, host: str, *, is_down: bool) -> None:
    """Wait for a look at the servers to find out; each look asks a server over HTTP."""
    (server,) = (each for each in backend._pool.servers if each.host == host)
    done = threading.Event()
    while server.is_down is not is_down:
        done.wait(0.01)


def test_requests_go_to_the_least_busy_server(serve, connect):
    one, two = serve(), serve()
    backend = connect(one, two)
    go_on = threading.Event()
    for server in (one, two):
        server.script += [lambda _, s=server: s.raw([], until=go_on, then=END)] * 3
    streams = []
    for number in range(6):
        streams.append(backend.stream(ask(number)))
        while len(one.bodies) + len(two.bodies) <= number:
            go_on.wait(0.005)
    assert (len(one.bodies), len(two.bodies)) == (3, 3)
    go_on.set()
    for stream in streams:
        stream.wait()


def test_a_conversation_stays_with_its_server(serve, connect):
    one, two = serve(), serve()
    backend = connect(one, two)
    talk = ask(1)
    go_on = threading.Event()
    one.script.append(lambda _: one.raw([], until=go_on, then=END))
    busy = backend.stream(ask(2))  # goes to the first
    one.wait_for_requests(1)
    answer = backend.stream(talk, session="me").answer  # so this goes to the second
    go_on.set()
    busy.wait()
    for _ in range(3):  # nobody is busy now: a new conversation would go to the first
        talk = talk.assistant(answer.text).user("And?")
        answer = backend.stream(talk, session="me").answer
    assert (len(one.bodies), len(two.bodies)) == (1, 4)


def test_a_server_that_fails_is_left_out_and_taken_back(serve, connect):
    one, two = serve(), serve()
    backend = connect(one, two)
    one.broken = True
    for number in range(4):
        assert backend.stream(ask(number)).answer.text == f"Question {number}"
    wait_until(backend, one.host, is_down=True)
    before = len(one.bodies)
    backend.stream(ask(9)).wait()
    assert len(one.bodies) == before
    one.broken = False
    wait_until(backend, one.host, is_down=False)


def test_where_one_is_busy_the_other_is_asked_at_once(serve, connect):
    one, two = serve(), serve()
    backend = connect(one, two)
    one.script.append(fails(429, None, retry_after="3600"))
    two.script.append(lambda _: two.raw([delta("mine"), ended(), DONE]))
    assert backend.stream(ask(1)).answer.text == "mine"


def test_where_all_are_down_it_says_so(serve, connect):
    one, two = serve(), serve()
    backend = connect(one, two)
    one.broken = two.broken = True
    with pytest.raises(EngineError, match="is not ready"):
        _ = backend.stream(ask(1)).answer


def test_a_server_that_was_down_at_first_comes_in_later(connect, serve):
    with serve() as gone:
        port = gone.port
    one = serve()
    later = type("Later", (), {"url": f"http://127.0.0.1:{port}/v1", "forget": lambda _: None})()
    backend = connect(one, later)
    assert backend.stream(ask(1)).answer.text == "Question 1"
    wait_until(backend, f"127.0.0.1:{port}", is_down=True)
    with FakeServer(port=port):
        wait_until(backend, f"127.0.0.1:{port}", is_down=False)


def test_servers_of_different_models_are_refused(serve, connect):
    with pytest.raises(LoadError, match="different models: tiny, other"):
        connect(serve(), serve(models=("other",)))


def test_what_all_servers_can_is_what_the_model_can(serve, connect):
    backend = connect(serve("vllm"), serve("transformers"))
    about = backend.capabilities
    assert (about.context_tokens, about.logprobs, about.schema) == (4096, False, False)
    assert about.sampling.top_k == 0
    assert "2 servers" in about.knows


def test_the_busiest_is_never_chosen_and_a_home_only_while_it_works():
    servers = [Server(connection=None) for _ in range(3)]
    pool = Pool(servers)
    servers[0].running, servers[1].running = 2, 1
    with pool.asking("home") as chosen:
        assert chosen is servers[2]
        servers[2].running = 9
    with pool.asking("home") as chosen:
        assert chosen is servers[2]  # its own, busy as it is
    servers[2].is_down = True
    with pool.asking("home") as chosen:
        assert chosen is servers[1]
    with pool.asking("other", tried=[servers[1]]) as chosen:
        assert chosen is servers[0]
    with pool.asking("other", tried=servers) as chosen:
        assert chosen in servers


def test_homes_are_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr("gemma3vl_app.backends.remote.pool.REMEMBERED_HOMES", 2)
    pool = Pool([Server(connection=None)])
    for home in "abc":
        with pool.asking(home):
            pass
    assert list(pool._homes) == ["b", "c"]
