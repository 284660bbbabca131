"""Real servers for tests: uvicorn in a thread; and a backend whose answers a test writes."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from gemma3vl_app.api.keys import Keys
from gemma3vl_app.api.limits import ApiLimits
from gemma3vl_app.connections import uvicorn_config
from gemma3vl_app.generation import Answer, Chunk, Token
from gemma3vl_app.server import ApiOptions, Server, create_app, listen
from gemma3vl_app.stream import Stream
from gemma3vl_app.testing.scripted import Request, ScriptedBackend

STARTS_WITHIN_SEC = 60
HAPPENS_WITHIN_SEC = 60  # what a test waits for, on a busy machine
KEY, OTHER_KEY = "key-of-anna-0123456789", "key-of-ben-0123456789"


class Served:
    """A server that runs: its address, its app, and uvicorn's own object."""

    def __init__(self, server: Server, port: int, app) -> None:
        self.server, self.port, self.app = server, port, app
        self.address = f"http://127.0.0.1:{port}"


@contextmanager
def served(backend, *, keys=(), page=False, logins=(), **limits) -> Iterator[Served]:
    """Serve the API on a free port for as long as the block runs."""
    options = ApiOptions(keys=Keys(keys), limits=ApiLimits(**limits))
    app = create_app(backend, page=page, logins=logins, api=options)
    with listen("127.0.0.1", 0, 1) as listener:
        server = Server(uvicorn_config(app), app.state.api)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield Served(server, listener.getsockname()[1], app)
        finally:
            server.force_exit = app.state.api.gate.open_requests > 0  # nobody waits for answers
            server.should_exit = True
            thread.join(STARTS_WITHIN_SEC)


def wait_until(happened) -> None:
    """Wait for what no event tells, such as uvicorn's having started."""
    end = time.monotonic() + HAPPENS_WITHIN_SEC
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class HeldBackend(ScriptedBackend):
    """Its answers are written by the test: `say` and `finish` go to the stream begun last."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.cancelled = threading.Event(), threading.Event()
        self.streams: list[Stream] = []

    def stream(self, conversation, **options):
        self._check(conversation, options.get("max_new_tokens", 1), options.get("adapter"))
        stream = Stream(on_cancel=self._cancel)
        names = ("sampling", "max_new_tokens", "stop", "logprobs", "schema", "adapter", "session")
        self.requests.append(Request(conversation, **{n: options.get(n) for n in names}))
        self.streams.append(stream)
        self.began.set()
        return stream

    def say(self, text: str) -> None:
        self.streams[-1].put(Chunk(text=text, tokens=(Token(1, text),)))

    def finish(self, text: str = "", reason="stop") -> None:
        self.streams[-1].finish(Answer(text, reason))

    def _cancel(self) -> None:
        """Do as an engine does: the stream ends, marked."""
        self.cancelled.set()
        for stream in self.streams:
            if stream.cancelled:
                stream.finish(Answer("", "cancelled"))


def picture_url(color: str = "red", size: int = 32) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def chat_body(text="Hello dear reader", **fields):
    """The smallest body of a chat completion, and more."""
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **fields}
