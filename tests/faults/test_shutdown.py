"""`gemma3vl serve` that is told to end while it answers: it answers, refuses the rest, and ends."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil

from tests.api.servers import HAPPENS_WITHIN_SEC
from tests.faults.model_server import body

COLORS = ("red", "green", "blue", "white", "black", "gray", "pink", "brown", "gold", "navy")
AT_WORK = len(COLORS)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_sigterm_under_load_loses_no_answer_and_leaves_nothing_running(tiny):
    port = free_port()
    command = ["serve", "--model", str(tiny), "--no-page", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "gemma3vl_app.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GEMMA3VL_API_KEYS": ""},
    )
    try:
        assert "is ready" in process.stdout.readline()
        address = f"http://127.0.0.1:{port}"
        model = httpx.get(f"{address}/v1/models").json()["data"][0]["id"]

        def ask(number):
            """Return the last two events of an answer."""
            # A picture each, which worker processes decode.
            asked = body(f"Question {number}", picture=COLORS[number], tokens=100, stream=True)
            asked["model"] = model
            with (
                httpx.Client(base_url=address, timeout=HAPPENS_WITHIN_SEC) as client,
                client.stream("POST", "/v1/chat/completions", json=asked) as response,
            ):
                assert response.status_code == 200
                return [line for line in response.iter_lines() if line][-2:]

        with ThreadPoolExecutor(AT_WORK) as pool:
            asked = [pool.submit(ask, number) for number in range(AT_WORK)]
            while (
                f"gemma3vl_open_requests {AT_WORK:.1f}" not in httpx.get(f"{address}/metrics").text
            ):
                assert not any(each.done() for each in asked)
            children = psutil.Process(process.pid).children(recursive=True)
            assert children
            process.send_signal(signal.SIGTERM)
            refused = httpx.post(f"{address}/v1/chat/completions", json=body("Me, too"))
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            for each in asked:
                last, done = each.result(HAPPENS_WITHIN_SEC)
                assert done == "data: [DONE]"
                assert '"finish_reason":"length"' in last or '"finish_reason":"stop"' in last
        assert process.wait(HAPPENS_WITHIN_SEC) == 0
        assert not [child for child in children if child.is_running()]
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
