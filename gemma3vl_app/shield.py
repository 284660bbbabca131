"""What every response of the server carries, and what is refused before anybody looks at it.

A browser that shows another site's page may not make this server do anything.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemma3vl_app.api import failures
from gemma3vl_app.api.failures import RequestError

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


class Shield:
    """Add the safety headers; refuse what other sites ask for through a visitor's browser.

    And gradio's route that fetches addresses of other hosts.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
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
            error = RequestError("Another site's page asks.", code="foreign", status=refused)
            await failures.response(error)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)


def _is_foreign(scope: Scope) -> bool:
    """Return whether a browser says that another site's page asks; programs say nothing."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
