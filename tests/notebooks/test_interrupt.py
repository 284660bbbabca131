"""Interrupting a cell of a real kernel stops the model within a step and keeps what it said."""

import time
from collections.abc import Iterator

import pytest

pytestmark = [pytest.mark.notebook, pytest.mark.slow]
CELL_SEC = 120
SETUP = """
import gemma3vl_app as gv
from gemma3vl_app.testing import ScriptedBackend
backend = ScriptedBackend(["word "] * 2000, seconds_per_chunk=0.05)
chat = gv.Chat(backend)
"""
AFTERWARDS = """
print(backend.running, chat.conversation.messages[-1].text.count("word"))
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[tuple]:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(startup_timeout=CELL_SEC)
    client.execute_interactive(SETUP, timeout=CELL_SEC)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


WAYS = {
    "shown as the last line": 'chat.stream("Go on")',
    "shown": 'gv.notebook.show(chat.stream("Go on"))',
    "looped over": 'for chunk in chat.stream("Go on"): print(chunk.text, end="", flush=True)',
    "waited for": 'chat.ask("Go on")',
}


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_stops_the_model_and_keeps_what_it_said(kernel, way):
    manager, client = kernel
    outputs = []
    client.execute(WAYS[way])
    until = time.monotonic() + CELL_SEC
    interrupted = False
    while True:
        message = client.get_iopub_msg(timeout=CELL_SEC)
        outputs.append(message)
        kind, content = message["msg_type"], message["content"]
        assert time.monotonic() < until
        if not interrupted and (kind == "stream" or "display_data" in kind or way == "waited for"):
            time.sleep(1)  # some words
            manager.interrupt_kernel()
            interrupted = True
        if kind == "status" and content["execution_state"] == "idle" and interrupted:
            break
    assert any(each["content"].get("ename") == "KeyboardInterrupt" for each in outputs)
    running, words = read(client)
    assert running == 0
    assert 0 < words < 1000


def read(client) -> list[int]:
    """Return what the next cell sees, at once: is anything running, and what was said?"""
    told = []
    client.execute_interactive(
        AFTERWARDS,
        timeout=CELL_SEC,
        output_hook=lambda message: told.append(message["content"].get("text", "")),
    )
    return [int(word) for word in "".join(told).split()]
