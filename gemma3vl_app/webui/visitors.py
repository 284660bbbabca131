"""Whose conversations a browser sees: a secret that only that browser has.

A cookie, made by the server when a browser first comes. Scripts cannot read it, other sites cannot
send it along, and nobody can guess it. Where people log in, their name takes its place.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from http.cookies import SimpleCookie

from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "gemma3vl_visitor"
KEPT_SEC = 400 * 24 * 3600  # what browsers allow at most
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")  # 256 bits


def visitor_of(cookies: dict[str, str]) -> str | None:
    """Return the secret that a browser has brought, or None where it is none of ours."""
    value = cookies.get(COOKIE, "")
    return value if _SECRET.fullmatch(value) else None


def owner_of(username: str | None, cookies: dict[str, str]) -> str:
    """Return whose conversations a request may see: a login name's, or those of a browser.

    The secret itself is not kept: who reads the database cannot take a browser's place. Without
    either, nobody else's and for this once only.
    """
    if username:
        return f"user {username}"
    secret = visitor_of(cookies) or secrets.token_urlsafe(32)
    return f"browser {hashlib.sha256(secret.encode()).hexdigest()[:32]}"


class RememberVisitors:
    """Give each browser its secret, with the first page that it gets.

    The request itself already carries it, so that the page that is answered sees whose it is. Paths
    that `but_not` names are no part of the page.
    """

    def __init__(
        self, app: ASGIApp, *, but_not: Callable[[str], bool] = lambda path: False
    ) -> None:
        self.app = app
        self._but_not = but_not

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, with a cookie."""
        is_page = scope["type"] == "http" and not self._but_not(scope["path"])
        if not is_page or visitor_of(_cookies(scope)) is not None:
            await self.app(scope, receive, send)
            return
        secret = secrets.token_urlsafe(32)
        cookie = _cookie(secret, is_secure=scope.get("scheme") == "https")

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"set-cookie", cookie.encode("ascii")),
                ]
            await send(message)

        brought = (b"cookie", f"{COOKIE}={secret}".encode("ascii"))
        marked = {**scope, "headers": [*scope["headers"], brought]}
        await self.app(marked, receive, send_with_cookie)


def _cookies(scope: Scope) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name == b"cookie":
            found |= cookie_parser(value.decode("latin-1"))
    return found


def _cookie(secret: str, *, is_secure: bool) -> str:
    """Return the header's value.

    Over https it may come along inside a frame of another site, as Spaces are shown, but belongs to
    that site's frame alone (`Partitioned`); on this machine there is no https, and no frame.
    """
    cookie: SimpleCookie = SimpleCookie()
    cookie[COOKIE] = secret
    morsel = cookie[COOKIE]
    morsel["path"], morsel["max-age"], morsel["httponly"] = "/", KEPT_SEC, True
    morsel["samesite"] = "None" if is_secure else "Lax"
    morsel["secure"] = is_secure
    return morsel.OutputString() + ("; Partitioned" if is_secure else "")
