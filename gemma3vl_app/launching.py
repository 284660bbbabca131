"""`launch`: a program's own chat in the browser page, while the program goes on.

One server per model serves all chats that are launched with it.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
import webbrowser
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from types import TracebackType
from typing import Self

import uvicorn

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import Gemma3VLError
from gemma3vl_app.server import DEFAULT_PORT, PORTS_TRIED, create_app, listen
from gemma3vl_app.webui.library import Library

HOST = "127.0.0.1"
_STARTS_WITHIN_SEC = 60.0


@dataclass(frozen=True, eq=False)
class Launched:
    """A chat that is served from this process, at `address`, until it is closed."""

    address: str
    _chat: Chat
    _id: str
    _server: _Server

    def close(self) -> None:
        """Serve the chat no longer; it stays, with what was said. Safe to call twice."""
        with _starting:
            self._server.remove(self)

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
    else. Launched again, a chat keeps its address, and another one of the same model is served
    beside it. Raises `Gemma3VLError` where no port is free.
    """
    with _starting:
        servers = (s for s in _servers if s.serves(chat.backend, port))
        server = next(servers, None) or _Server(chat.backend, port)
        launched = server.add(chat)
    if open_browser:
        _open_browser(launched.address)
    return launched


class _Server:
    """The page of one model, with all chats of this program that are launched with it."""

    def __init__(self, backend: Backend, port: int) -> None:
        """Begin to listen on `port`, or the next free one."""
        self._backend, self._asked_port = backend, port
        self._launched: list[Launched] = []
        listener = listen(HOST, port, PORTS_TRIED)
        self._port = listener.getsockname()[1]
        app = create_app(backend)
        self._library: Library = app.state.library
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._uvicorn.run, args=([listener],), name="page", daemon=True
        )
        self._thread.start()
        try:
            self._wait_until_it_serves()
        except BaseException:  # an interrupt, too: nobody could close it later
            self._end()
            raise
        _servers.append(self)

    def serves(self, backend: Backend, port: int) -> bool:
        """Return whether a chat with this model, wanted on this port, is to be served here."""
        wanted = self._backend is backend and port in (self._asked_port, self._port)
        return wanted and self._thread.is_alive()

    def add(self, chat: Chat) -> Launched:
        """Serve a chat, too; one that is served already keeps its address."""
        launched = next((each for each in self._launched if each._chat is chat), None)
        if launched is None:
            id = secrets.token_hex(16)
            launched = Launched(f"http://{HOST}:{self._port}/?c={id}", chat, id, self)
            self._launched.append(launched)
        self._library.share(launched._id, chat)
        return launched

    def remove(self, launched: Launched) -> None:
        """Serve a chat no longer; without any, end."""
        if launched not in self._launched:
            return
        self._launched.remove(launched)
        self._library.unshare(launched._id)
        if not self._launched:
            _servers.remove(self)
            self._end()

    def _wait_until_it_serves(self) -> None:
        until = time.monotonic() + _STARTS_WITHIN_SEC
        while not self._uvicorn.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise Gemma3VLError("The page's server did not start; the log says why.")
            time.sleep(0.02)

    def _end(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(timeout=10)


_starting = threading.Lock()  # guards which servers there are, and which chats they serve
_servers: list[_Server] = []


def _open_browser(address: str) -> None:
    """Show an address where there is a screen to show it on; nothing waits for that or fails."""
    on_a_screen = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # else xdg-open complains at length
    if sys.platform != "linux" or any(map(os.environ.get, on_a_screen)):
        threading.Thread(target=_show, args=(address,), name="browser", daemon=True).start()


def _show(address: str) -> None:
    with suppress(webbrowser.Error, OSError):
        browser = webbrowser.get()
        if type(browser) is webbrowser.GenericBrowser and "BROWSER" not in os.environ:
            return  # a text browser: it would take the program's own terminal
        browser.open(address)
