"""The chat page's server in a process of its own, forked so that it starts at once, to be killed.

Below gradio it is the page itself: library, open conversations, store. Two routes stand in for the
browser's: one returns when a question has been sent, one when its answer is whole.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gemma3vl_app.api.limits import ApiLimits
from gemma3vl_app.errors import UnknownConversationError
from gemma3vl_app.server import ApiOptions, Server, _open_store, create_app, listen
from gemma3vl_app.testing.scripted import ScriptedBackend

OWNER = "anna"
SECONDS_PER_WORD = 0.005  # so that kills also come in the middle of an answer


class ChatServer:
    """A server that runs; `kill` ends it as a power cut would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listener = listen("127.0.0.1", 0, 1)
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        parent_lives, self._held = os.pipe()  # closed by the system where the parent ends
        self.pid = os.fork()
        if not self.pid:
            os.close(self._held)
            threading.Thread(target=_end_with, args=[parent_lives], daemon=True).start()
            try:
                _serve(folder, listener)
            finally:
                os._exit(1)
        os.close(parent_lives)
        listener.close()

    def client(self) -> httpx.Client:
        """A client; the server's socket takes it from the first moment on."""
        return httpx.Client(base_url=self.address, timeout=60)

    def kill(self) -> None:
        """End it at once, wherever it stands."""
        os.kill(self.pid, signal.SIGKILL)
        os.close(self._held)
        _, status = os.waitpid(self.pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, f"it had ended by itself: {status}"


@contextmanager
def chat_server(folder: Path):
    """Run a server for as long as the block does."""
    server = ChatServer(folder)
    try:
        yield server
    finally:
        server.kill()


def send(client: httpx.Client, id: str | None, text: str) -> dict[str, object]:
    """Ask; returns when the question has been taken, with the conversation's id."""
    response = client.post("/sent", json={"id": id, "text": text})
    response.raise_for_status()
    return response.json()


def answer(client: httpx.Client, id: str) -> dict[str, object]:
    """Wait for the end of a conversation's answer; returns all its texts and the line below."""
    response = client.get(f"/answer/{id}")
    response.raise_for_status()
    return response.json()


def _end_with(parent_lives: int) -> None:
    os.read(parent_lives, 1)
    os._exit(1)


def _serve(folder: Path, listener) -> None:
    backend = ScriptedBackend(seconds_per_chunk=SECONDS_PER_WORD)
    with ExitStack() as closing:
        store = _open_store(folder, closing)
        api = ApiOptions(limits=ApiLimits(requests_per_minute=1_000_000))
        app = create_app(backend, store=store, api=api)
        library = app.state.library

        async def sent(request: Request) -> JSONResponse:
            body = await request.json()
            return JSONResponse(await app.state.api.in_thread(lambda: begin(**body)))

        def begin(id, text):
            opened = library.open(OWNER, id) if id else library.new(OWNER)
            opened.live.begin(lambda chat: chat.stream(text))
            moment = opened.live.moment
            return {"id": opened.id, "line": moment.line, "is_error": moment.is_error}

        def answered(request: Request) -> JSONResponse:
            try:
                opened = library.open(OWNER, request.path_params["id"])
            except UnknownConversationError:
                return JSONResponse({"texts": []})
            *_, moment = opened.live.watch()
            texts = [message.text for message in moment.messages]
            return JSONResponse({"texts": texts, "line": moment.line, "is_error": moment.is_error})

        async def limit(request: Request) -> JSONResponse:
            """Let no file grow beyond so many bytes, as on a disk that is full; -1 ends that."""
            resource.setrlimit(resource.RLIMIT_FSIZE, ((await request.json())["bytes"], -1))
            return JSONResponse({})

        app.router.routes[:0] = [  # before the page, which takes every path
            Route("/sent", sent, methods=["POST"]),
            Route("/answer/{id}", answered),
            Route("/disk", limit, methods=["POST"]),
        ]
        config = uvicorn.Config(app, log_level="critical")
        Server(config, app.state.api).run(sockets=[listener])
