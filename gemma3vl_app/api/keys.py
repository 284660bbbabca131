"""API keys: reading them, comparing them, and refusing everything that comes without one.

Keys come from a file or the environment, never from the command line, where others could see them.
They are kept as hashes only.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from gemma3vl_app.api import failures
from gemma3vl_app.api.failures import RequestError
from gemma3vl_app.errors import Gemma3VLError

ENVIRONMENT = "GEMMA3VL_API_KEYS"
MIN_KEY_CHARS = 16  # shorter ones could be guessed
_KEY = re.compile(rf"[!-~]{{{MIN_KEY_CHARS},200}}")  # what fits into a header, without blanks
_log = logging.getLogger(__name__)


class Keys:
    """The keys that open the API; without any it is open to whoever reaches it."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Take keys of at least 16 visible ASCII characters; raises `Gemma3VLError`."""
        given = list(keys)
        if not all(_KEY.fullmatch(key) for key in given):
            raise Gemma3VLError(
                f"An API key needs {MIN_KEY_CHARS} to 200 visible ASCII characters without "
                'blanks. Make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        self._digests = [_digest(key) for key in dict.fromkeys(given)]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def caller(self, scope: Scope) -> str | None:
        """Return who asks: a name made from the key, or from the address where no key is needed.

        None for a key that is wrong or missing. The name is the salt of caches and what limits
        count by; it says nothing about the key itself, and no client can choose it.
        """
        if not self._digests:
            address = (scope.get("client") or ("",))[0]
            return f"address {address}"
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        digest = _digest(given.strip() if scheme.lower() == "bearer" else "")
        # Each is compared, whichever fits, so that the time tells nothing.
        fits = [secrets.compare_digest(digest, known) for known in self._digests]
        return f"key {digest.hex()[:32]}" if any(fits) else None


def read_keys(file: str | Path | None, environment: str | None) -> Keys:
    """Return the keys of a file (one a line, `#` begins a comment) and of the environment.

    In the environment they are separated by commas or blanks. Raises `Gemma3VLError` for a file
    that cannot be read, or that holds none.
    """
    keys = re.split(r"[,\s]+", environment or "")
    if file is not None:
        in_file = _lines(Path(file))
        if not in_file:
            raise Gemma3VLError("The keys file holds no key. Write one a line.")
        keys += in_file
    return Keys(key for key in keys if key)


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise Gemma3VLError(
            f"The keys file {file.name!r} cannot be read. Check its path and permissions."
        ) from error
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("Others on this machine can read the keys file: chmod 600 %s", file.name)
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _digest(key: str) -> bytes:
    return hashlib.sha256(b"gemma3vl api key " + key.encode("utf-8", "replace")).digest()


class RequireKey:
    """Refuse every request without a key, but for `open_paths`: new routes are closed by default.

    `is_guest` may let a request through that has another right to come in, such as a login.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        open_paths: Iterable[str] = (),
        is_guest: Callable[[HTTPConnection], bool] = lambda _: False,
    ) -> None:
        self.app = app
        self._keys = keys
        self._open_paths = frozenset(open_paths)
        self._is_guest = is_guest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer 401."""
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await failures.response(missing_key())(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _may_pass(self, scope: Scope) -> bool:
        if scope["path"] in self._open_paths or self._keys.caller(scope) is not None:
            return True
        return self._is_guest(HTTPConnection(scope))


def missing_key() -> RequestError:
    """Return what a client is told that brings no key, or a wrong one."""
    return RequestError(
        "A key is needed, and it was missing or wrong. Send it as: Authorization: Bearer KEY "
        "(OpenAI clients: api_key).",
        code="invalid_api_key",
        status=401,
    )
