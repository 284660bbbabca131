"""The web server: the chat page and a health check in one FastAPI app, private to this machine.

Everything a hosted page would have to switch off is off here: no share link, no telemetry, no
history in the browser, no monitoring page, no MCP, no request to any other host. Knows nothing of
models.
"""

from __future__ import annotations

import gc
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import Gemma3VLError, StoreError
from gemma3vl_app.manager import ModelManager
from gemma3vl_app.store import ConversationStore
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.models import Models
from gemma3vl_app.webui.page import build_page, css, i18n, theme
from gemma3vl_app.webui.quiet_gradio import keep_gradio_quiet
from gemma3vl_app.webui.visitors import RememberVisitors, owner_of

DEFAULT_PORT = 7860
PORTS_TRIED = 20
UPLOAD_LIMIT = "25mb"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
Login = tuple[str, str]  # name and password

# The page may load from itself only. Gradio's page is made of inline scripts and styles, and makes
# functions of the scripts of its own components, so these stay allowed; text of people and models
# never becomes markup, and nothing can be fetched from elsewhere.
CONTENT_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
        "form-action 'self'",
        "base-uri 'self'",
        "object-src 'none'",
    )
)
SAFETY_HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

# Gradio's routes for files (there are two) stream what an address of another host gives.
_FOREIGN_FILE = re.compile(r"/file[=/]\s*[a-z][a-z0-9+.-]*:/", re.IGNORECASE)
# Each open page that waits for an answer holds a thread; the usual 40 would be gone on a busy day,
# and with them "stop" and uploads.
THREADS = 200

_log = logging.getLogger(__name__)


def create_app(
    backend: Backend,
    *,
    hosts: Sequence[str] = LOOPBACK,
    store: ConversationStore | None = None,
    logins: Sequence[Login] = (),
    manager: ModelManager | None = None,
    offered: Sequence[str] = (),
) -> FastAPI:
    """Return the app for `backend`: the page at `/`, `{"status": "ok"}` at `/healthz`.

    Conversations are kept in `store`; without one, as long as the process runs. With `logins`, the
    page is for them alone, and each has conversations of their own. With a `manager`, models can be
    changed: on this machine by everybody, else by the first of `logins`; to those `offered`, the
    catalog's without any. Only requests that name one of `hosts` are answered, so that no other
    site can reach a server on this machine through the browser; `"*"` answers all. What the page
    shows is in `app.state.library`: a chat that is shared there goes on at `/?c=ID`.
    """
    uploads = keep_gradio_quiet()
    desk = Desk.set_up(
        (lambda: manager.current or backend) if manager else (lambda: backend),
        uploads,
        store,
        _models(manager, hosts, logins, offered) if manager else None,
    )
    app = FastAPI(
        title="gemma3vl_app",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_with_threads,
    )
    app.state.library = desk.library

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    gr.mount_gradio_app(
        app,
        build_page(desk),
        path="/",
        auth=list(logins) or None,
        **_page_options(),
    )
    app.add_middleware(RememberVisitors)
    app.add_middleware(_Shield)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    return app


def launch(backend: Backend, *, host: str, port: int) -> None:
    """Serve the page by gradio's own server until interrupted.

    For ZeroGPU, which starts with `Blocks.launch`. Everybody who reaches `host` may come in, and
    conversations last as long as the process. There is no health check.
    """
    page = build_page(Desk.set_up(lambda: backend, keep_gradio_quiet()))
    page.launch(
        server_name=host,
        server_port=port,
        quiet=True,
        share=False,
        app_kwargs={
            "middleware": [Middleware(_Shield), Middleware(RememberVisitors)],
            "docs_url": None,
            "redoc_url": None,
        },
        **_page_options(),
    )


def _page_options() -> dict[str, Any]:
    """Return how gradio serves the page, whoever starts it: private, and quiet."""
    return {
        "theme": theme(),
        "css": css(),
        "i18n": i18n(),
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "pwa": False,
        "ssr_mode": False,
        "show_error": False,
        "max_file_size": UPLOAD_LIMIT,
        "allowed_paths": [],
    }


def _models(
    manager: ModelManager,
    hosts: Sequence[str],
    logins: Sequence[Login],
    offered: Sequence[str] = (),
) -> Models:
    """Say who may change models: whoever sits here, or the first who may log in."""
    is_local = tuple(hosts) == LOOPBACK and not logins
    operator = owner_of(logins[0][0], {}) if logins else ""
    return Models(
        manager,
        names=tuple(offered),
        may_change=lambda owner: is_local or owner == operator,
        any_source=is_local,
    )


def serve(
    backend: Backend,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    find_port: bool = False,
    logins: Sequence[Login] = (),
    no_auth: bool = False,
    conversations: str | Path | None = None,
    manager: ModelManager | None = None,
    offered: Sequence[str] = (),
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the page until interrupted; `on_ready` is told the address.

    When `port` is taken, raises `Gemma3VLError`, or with `find_port` takes the next free one. A
    `host` other than this machine's own needs `logins`, or `no_auth` that says that everybody may
    come in. Conversations are kept in the folder `conversations`; without one, as long as the
    process runs. With a `manager` and what is `offered`, see `create_app`.
    """
    check_access(host, logins, no_auth=no_auth)
    listener = listen(host, port, PORTS_TRIED if find_port else 1)
    with listener, ExitStack() as closing:
        store = _open_store(conversations, closing)
        hosts = LOOPBACK if is_own(host) else ("*",)
        app = create_app(
            backend, hosts=hosts, store=store, logins=logins, manager=manager, offered=offered
        )
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
        if on_ready is not None:
            on_ready(f"http://{host}:{listener.getsockname()[1]}")
        _set_aside_what_stays()
        uvicorn.Server(config).run(sockets=[listener])


def is_own(host: str) -> bool:
    """Return whether only this machine reaches that address."""
    return host in ("127.0.0.1", "localhost", "::1")


def check_access(host: str, logins: Sequence[Login], *, no_auth: bool) -> None:
    """Raise `Gemma3VLError` where strangers could come in and nobody has said that they may."""
    if is_own(host) or logins:
        return
    if not no_auth:
        raise Gemma3VLError(
            f"On {host} everybody who can reach this machine could use the page. Give a login with "
            "--auth NAME:PASSWORD, or say --no-auth if that is what you want."
        )
    _log.warning("The page is open to everybody who can reach %s: it has no login.", host)


def _open_store(folder: str | Path | None, closing: ExitStack) -> ConversationStore | None:
    """Open the conversations; where that fails, the page works without, and the log says why."""
    if folder is None:
        return None
    try:
        return closing.enter_context(ConversationStore(folder))
    except StoreError as error:
        _log.warning("Conversations are not kept: %s", error)
        return None


def check_port(host: str, port: int, *, find_port: bool = False) -> None:
    """Raise `Gemma3VLError` if `serve` could not listen there now."""
    listen(host, port, PORTS_TRIED if find_port else 1).close()


def listen(host: str, port: int, tries: int) -> socket.socket:
    """Bind the first free port of `tries` from `port` on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, port + tries):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen()
            return listener
        except (OSError, OverflowError):
            listener.close()
    last = f" to {port + tries - 1}" if tries > 1 else ""
    raise Gemma3VLError(
        f"Port {port}{last} on {host} cannot be used: another program has it, or it is not "
        "allowed. Choose another with --port."
    )


def _set_aside_what_stays() -> None:
    """Let Python no longer look through all that was imported for what has become unused.

    It does so now and then, and every answer stands still meanwhile. What a model that is let go
    leaves behind is found all the same: `engine.memory.give_back` looks everywhere.
    """
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def _with_threads(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


class _Shield:
    """Add the safety headers; refuse what other sites ask for through a visitor's browser.

    And gradio's route that fetches addresses of other hosts.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *SAFETY_HEADERS]
            await send(message)

        refused = 404 if _FOREIGN_FILE.search(scope["path"]) else 0
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and _is_foreign(scope):
            refused = 403
        if refused:
            start = {"type": "http.response.start", "status": refused, "headers": []}
            await send_with_headers(start)
            await send({"type": "http.response.body", "body": b""})
            return
        await self.app(scope, receive, send_with_headers)


def _is_foreign(scope: Scope) -> bool:
    """Return whether a browser says that another site's page asks; programs say nothing."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
