"""The web server: page, API and health check in one FastAPI app, private to this machine.

Everything a hosted page would have to switch off is off here: no share link, no telemetry, no
history in the browser, no monitoring page, no MCP, no request to any other host. Knows nothing of
models.
"""

from __future__ import annotations

import gc
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import anyio.to_thread
import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.routes import App as GradioApp
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from gemma3vl_app.api import routes
from gemma3vl_app.api.keys import Keys, RequireKey
from gemma3vl_app.api.limits import ApiLimits
from gemma3vl_app.api.metrics import CountRequests
from gemma3vl_app.api.serving import Api
from gemma3vl_app.backends.protocol import Backend, ReportsActivity
from gemma3vl_app.connections import allow_many, uvicorn_config
from gemma3vl_app.errors import EngineError, Gemma3VLError, StoreError
from gemma3vl_app.manager import ModelManager
from gemma3vl_app.picture_workers import decode_in_workers
from gemma3vl_app.remote_pictures import RemotePictures
from gemma3vl_app.shield import Shield
from gemma3vl_app.store import ConversationStore
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.models import Models
from gemma3vl_app.webui.page import build_page, css, i18n, theme
from gemma3vl_app.webui.quiet_gradio import keep_gradio_quiet
from gemma3vl_app.webui.visitors import RememberVisitors, owner_of

DEFAULT_PORT = 7860
HEALTH = "/healthz"
PORTS_TRIED = 20
UPLOAD_LIMIT = "25mb"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
Login = tuple[str, str]  # name and password

# Each open page that waits for an answer holds a thread; the usual 40 would be gone on a busy day,
# and with them "stop" and uploads.
THREADS = 200
_LOOK_SEC = 0.2  # how often a server that ends looks whether it is to end at once

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ApiOptions:
    """That the API is served, too: who may use it, how much, and what is fetched for them."""

    keys: Keys = field(default_factory=Keys)
    limits: ApiLimits = field(default_factory=ApiLimits)
    remote_pictures: RemotePictures | None = None


def create_app(
    backend: Backend,
    *,
    hosts: Sequence[str] = LOOPBACK,
    store: ConversationStore | None = None,
    logins: Sequence[Login] = (),
    manager: ModelManager | None = None,
    offered: Sequence[str] = (),
    page: bool = True,
    api: ApiOptions | None = None,
) -> FastAPI:
    """Return the app for `backend`: the page at `/`, `{"status": "ok"}` at `/healthz`.

    Conversations are kept in `store`; without one, as long as the process runs. With `logins`, the
    page is for them alone, and each has conversations of their own. With a `manager`, models can be
    changed: on this machine by everybody, else by the first of `logins`; to those `offered`, the
    catalog's without any. Only requests that name one of `hosts` are answered, so that no other
    site can reach a server on this machine through the browser; `"*"` answers all. What the page
    shows is in `app.state.library`: a chat that is shared there goes on at `/?c=ID`.
    `app.state.backend()` is what answers next.

    With `api`, programs talk to the model at `/v1`; the API is then `app.state.api`. Once it has
    keys, nothing but `/healthz` is open without one; logins open the page. Logins without keys
    close the API.
    """

    def current() -> Backend:
        return (manager.current if manager else None) or backend

    app = FastAPI(
        title="gemma3vl_app",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_with_threads,
    )

    @app.api_route(HEALTH, methods=["GET", "HEAD"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    served: Api | None = None
    if api is not None:
        decode_in_workers()  # as the page does: strangers send pictures
        served = Api(
            current,
            keys=api.keys,
            limits=api.limits,
            remote_pictures=api.remote_pictures,
            is_closed_without_keys=bool(logins),
        )
        routes.add_routes(app, served)
    app.state.api, app.state.backend = served, current
    if page:
        models = _models(manager, hosts, logins, offered) if manager else None
        desk = Desk.set_up(current, keep_gradio_quiet(), store, models)
        app.state.library = desk.library
        gr.mount_gradio_app(
            app, build_page(desk), path="/", auth=list(logins) or None, **_page_options()
        )
        app.add_middleware(RememberVisitors, but_not=routes.is_api_path)
    if served is not None:
        if served.keys:
            is_guest = _login_check(app) if page and logins else _nobody
            app.add_middleware(
                RequireKey, keys=served.keys, open_paths=(HEALTH,), is_guest=is_guest
            )
        app.add_middleware(CountRequests, metrics=served.metrics, paths=routes.PATHS)
    app.add_middleware(Shield)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    return app


# What a browser needs in order to show the login.
_LOGIN_PATHS = ("/", "/login", "/login/", "/theme.css", "/favicon.ico", "/manifest.json")
_LOGIN_FOLDERS = ("/assets/", "/static/", "/svelte/")


def _login_check(app: FastAPI) -> Callable[[HTTPConnection], bool]:
    """Return what tells whether somebody logged in asks for a part of the page, or may log in.

    Gradio leaves several of its routes open to those who have not, such as the one that cancels.
    """
    pages = (route.app for route in app.routes if isinstance(route, Mount))
    page = next(each for each in pages if isinstance(each, GradioApp))

    def may_pass(connection: HTTPConnection) -> bool:
        path = connection.scope["path"]
        if routes.is_api_path(path):
            return False
        if path in _LOGIN_PATHS or path.startswith(_LOGIN_FOLDERS):
            return True
        names = (f"access-token-{page.cookie_id}", f"access-token-unsecure-{page.cookie_id}")
        return any(connection.cookies.get(name) in page.tokens for name in names)

    return may_pass


def _nobody(connection: HTTPConnection) -> bool:
    return False


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
            "middleware": [Middleware(Shield), Middleware(RememberVisitors)],
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
    page: bool = True,
    api: ApiOptions | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the page until interrupted; `on_ready` is told the address.

    When `port` is taken, raises `Gemma3VLError`, or with `find_port` takes the next free one. A
    `host` other than this machine's own needs `logins`, keys of the `api`, or `no_auth` that says
    that everybody may come in. Conversations are kept in the folder `conversations`; without one,
    as long as the process runs. With a `manager` and what is `offered`, see `create_app`. With an
    `api`, its running answers have `ApiLimits.finish_sec` to end once the server is to.

    Raises `EngineError` where the model's engine has ended by a defect: the process is to end then,
    since what is wrong with it, or with its GPU, would be wrong with another model in it, too.
    """
    check_access(host, logins, no_auth=no_auth, keys=api.keys if api else None)
    listener = listen(host, port, PORTS_TRIED if find_port else 1)
    with listener, ExitStack() as closing:
        store = _open_store(conversations, closing)
        hosts = LOOPBACK if is_own(host) else ("*",)
        app = create_app(
            backend,
            hosts=hosts,
            store=store,
            logins=logins,
            manager=manager,
            offered=offered,
            page=page,
            api=api,
        )
        config = uvicorn_config(app)
        if on_ready is not None:
            on_ready(f"http://{host}:{listener.getsockname()[1]}")
        _set_aside_what_stays()
        allow_many()
        server = Server(config, app.state.api, app.state.backend)
        server.run(sockets=[listener])
    if server.engine_failed:
        raise EngineError(
            "The model's engine has ended by a defect, and the server with it. What is in the log "
            "before this says why. Start it again; docs/reliability.md says what does so by itself."
        )


class Server(uvicorn.Server):
    """A uvicorn that lets the API's answers end before it does.

    From the signal on, readiness and new requests get 503, on connections that are still taken, so
    that whoever asks knows why. A second Ctrl-C ends it at once. It also ends, and says so in
    `engine_failed`, once the engine of the model that answers has ended by a defect.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        api: Api | None,
        backend: Callable[[], Backend] | None = None,
    ) -> None:
        super().__init__(config)
        self._api, self._backend = api, backend
        self.engine_failed = False

    async def on_tick(self, counter: int) -> bool:
        """Look after the engine ten times a second, whether somebody asks or not."""
        backend = self._backend() if self._backend else None
        if isinstance(backend, ReportsActivity) and backend.activity.failed:
            self.engine_failed = self.should_exit = True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal: no request is admitted from now on."""
        if self._api is not None:
            self._api.gate.close()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the API's answers, end those that take too long, then close everything."""
        if self._api is not None:
            await self._finish_answers(self._api)
        await super().shutdown(sockets)

    async def _finish_answers(self, api: Api) -> None:
        api.gate.close()  # also where no signal ended the server
        until = time.monotonic() + api.limits.finish_sec
        while not (self.force_exit or time.monotonic() > until):
            if await api.gate.wait_until_empty(_LOOK_SEC):
                return
        api.gate.end_answers()
        await api.gate.wait_until_empty(_LOOK_SEC)


def is_own(host: str) -> bool:
    """Return whether only this machine reaches that address."""
    return host in ("127.0.0.1", "localhost", "::1")


def check_access(
    host: str, logins: Sequence[Login], *, no_auth: bool, keys: Keys | None = None
) -> None:
    """Raise `Gemma3VLError` where strangers could come in and nobody has said that they may.

    `keys` are those of the API, None where it is not served.
    """
    if is_own(host) or logins or keys:
        return
    if not no_auth:
        what, advice = (
            ("page", "Give a login with --auth NAME:PASSWORD")
            if keys is None
            else ("model", "Set API keys with GEMMA3VL_API_KEYS or --keys-file")
        )
        raise Gemma3VLError(
            f"On {host} everybody who can reach this machine could use the {what}. {advice}, "
            "or say --no-auth if that is what you want."
        )
    what = "page is" if keys is None else "page and the API are"
    _log.warning("The %s open to everybody who can reach %s, without a login.", what, host)


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
    if app.state.api is not None:
        app.state.api.close()
