"""`launch`: a program's own chat in the browser page, while the program goes on."""

from __future__ import annotations

import secrets
import threading
import time
import webbrowser
from dataclasses import dataclass
from html import escape
from types import TracebackType
from typing import Self

import uvicorn

from gemma3vl_app.chat import Chat
from gemma3vl_app.server import DEFAULT_PORT, PORTS_TRIED, create_app, listen

HOST = "127.0.0.1"
_STARTS_WITHIN_SEC = 60.0


@dataclass(frozen=True)
class Launched:
    """A page that is served from this process, at `address`, until it is closed."""

    address: str
    _server: uvicorn.Server
    _thread: threading.Thread

    def close(self) -> None:
        """Stop serving; the chat stays. Safe to call twice."""
        self._server.should_exit = True
        self._thread.join(timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"The chat is at {self.address}"

    def _repr_html_(self) -> str:
        address = escape(self.address, quote=True)
        return f'The chat is at <a href="{address}" target="_blank" rel="noopener">{address}</a>'


def launch(chat: Chat, *, port: int = DEFAULT_PORT, open_browser: bool = True) -> Launched:
    """Open a conversation in the browser page; what is said there is in `chat` afterwards.

    The page is served to this machine alone, on `port` or the next free one, until it is closed or
    the program ends. Its address has a secret in it: who knows it can go on with the chat, nobody
    else. Raises `Gemma3VLError` where no port is free.
    """
    id = secrets.token_hex(16)
    listener = listen(HOST, port, PORTS_TRIED)
    app = create_app(chat.backend, shared={id: chat})
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), name="page", daemon=True)
    thread.start()
    until = time.monotonic() + _STARTS_WITHIN_SEC
    while not server.started and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.02)
    launched = Launched(f"http://{HOST}:{listener.getsockname()[1]}/?c={id}", server, thread)
    if open_browser:
        webbrowser.open(launched.address)
    return launched
