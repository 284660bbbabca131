"""`gemma3vl serve` whose engine dies: it ends with an error, so that it can be started again."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.api.servers import HAPPENS_WITHIN_SEC
from tests.faults.model_server import body

# The engine's own loop fails once somebody asks for 77 tokens.
SERVE = """
import sys
from gemma3vl_app import cli
from gemma3vl_app.engine.engine import Engine

admit = Engine._admit

def admit_or_die(engine):
    if any(each.request.max_new_tokens == 77 for each in engine._waiting):
        raise RuntimeError("the device is lost")
    admit(engine)

Engine._admit = admit_or_die
sys.argv = ["gemma3vl", *sys.argv[1:]]
cli.main()
"""


@pytest.fixture
def server(tiny, tmp_path):
    command = ["serve", "--model", str(tiny), "--no-page", "--port", "17980", "--find-port"]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", SERVE, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GEMMA3VL_API_KEYS": "", "TMPDIR": str(tmp_path)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_server_whose_engine_dies_ends_and_says_so(server):
    ready = server.stdout.readline()
    address = ready.split()[-1]

    def ask(tokens):
        asked = body("Hello", picture="red", tokens=tokens) | {"model": model}
        return client.post("/v1/chat/completions", json=asked)

    with (
        httpx.Client(base_url=address, timeout=HAPPENS_WITHIN_SEC) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        model = client.get("/v1/models").json()["data"][0]["id"]
        assert ask(3).status_code == 200
        children = psutil.Process(server.pid).children(recursive=True)
        assert children  # the picture was decoded in one
        long = pool.submit(ask, 2000)
        while "gemma3vl_engine_running 1.0" not in client.get("/metrics").text:
            assert not long.done()
        refused = pool.submit(ask, 77)
        for reply in (long.result(HAPPENS_WITHIN_SEC), refused.result(HAPPENS_WITHIN_SEC)):
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_unavailable")
            assert reply.headers["retry-after"] == "5"
    assert server.wait(HAPPENS_WITHIN_SEC) == 1  # not 0: a supervisor starts it again
    said = server.stderr.read()
    assert "the device is lost" in said
    assert (
        "The model's engine has ended by a defect, and the server with it." in said.splitlines()[-1]
    )
    assert not [child for child in children if child.is_running()]
