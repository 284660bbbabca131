"""What goes wrong at a server, as errors for people; what may be tried again is told apart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from gemma3vl_app.errors import (
    BusyError,
    ContextLengthError,
    ConversationError,
    EngineError,
    Gemma3VLError,
)
from gemma3vl_app.plain import plain

KEY_VARIABLE = "GEMMA3VL_REMOTE_KEY"
_TOLD_CHARS = 300
_BUSY, _DOWN = (429,), (502, 503, 504)
# As vLLM, SGLang, llama.cpp and OpenAI say that a prompt is too long.
_TOO_LONG = re.compile(
    r"context.{0,12}(length|size|window)|maximum (input|prompt|model) length|too long|"
    r"exceed_context_size|longer than the (model|maximum)",
    re.IGNORECASE,
)


class Unavailable(Exception):
    """A server did not answer, and nothing of an answer came back: it may be asked again.

    `is_down` says that others should not be sent there either, `after_sec` how long it wants to be
    left alone.
    """

    def __init__(
        self, error: Gemma3VLError, *, is_down: bool, after_sec: float | None = None
    ) -> None:
        super().__init__(str(error))
        self.error, self.is_down, self.after_sec = error, is_down, after_sec


def refusal(host: str, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
    """Return what to raise for an answer that is none: an `Unavailable`, or an error for people."""
    said = told(body)
    after_sec = _retry_after_sec(headers.get("retry-after", ""))
    if status in _BUSY:
        wait = f" It asks to wait {after_sec:.0f} s." if after_sec else ""
        busy = BusyError(f"The server at {host} has too much to do.{wait} Try again later.")
        return Unavailable(busy, is_down=False, after_sec=after_sec)
    if status in _DOWN:
        down = EngineError(
            f"The server at {host} is not ready (HTTP {status}). It may still be loading its "
            "model; try again in a while."
        )
        return Unavailable(down, is_down=True, after_sec=after_sec)
    if status in (401, 403):
        return EngineError(
            f"The server at {host} does not let us in (HTTP {status}). Put its key into the "
            f"environment variable {KEY_VARIABLE}."
        )
    if 300 <= status < 400:
        return EngineError(
            f"The server at {host} sends us to another address, which is not followed. "
            "Give the address where the model is."
        )
    if status == 404:
        return EngineError(
            f"The server at {host} does not have that model or address{said}. Load it again, and "
            "check that its address ends in /v1."
        )
    if status == 413:
        return ConversationError(
            f"The conversation is too large for the server at {host}. "
            "Use fewer or smaller pictures."
        )
    if 400 <= status < 500:
        if _TOO_LONG.search(said):
            return ContextLengthError(
                f"The conversation does not fit into the context of the server at {host}{said}. "
                "Begin a new one, or take pictures out."
            )
        return ConversationError(
            f"The server at {host} refuses this request{said}. Change the option that it names."
        )
    return EngineError(
        f"The server at {host} failed (HTTP {status}). Its own log says why; ask again."
    )


def in_stream(host: str, error: object) -> Gemma3VLError:
    """Return the error for one that a server reports in the middle of an answer."""
    said = told(json.dumps({"error": error}).encode())
    if _TOO_LONG.search(said):
        return ContextLengthError(
            f"The answer of the server at {host} does not fit into its context{said}. "
            "Begin a new conversation, or take pictures out."
        )
    return EngineError(f"The server at {host} failed while it was answering{said}. Ask again.")


def told(body: bytes) -> str:
    """Return ": " and a server's own words, made fit to show, or "" where it has none."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if isinstance(data, dict):
        data = data.get("error", data.get("detail", data.get("message")))
    if isinstance(data, dict):
        data = data.get("message")
    if isinstance(data, list) and data and isinstance(data[0], dict):  # FastAPI's own checks
        data = data[0].get("msg")
    if not isinstance(data, str) or not data.strip():
        return ""
    line = " ".join(plain(data).split())
    cut = line if len(line) <= _TOLD_CHARS else f"{line[:_TOLD_CHARS]}…"
    return f": {cut.rstrip('.')}"


def _retry_after_sec(text: str) -> float | None:
    """Return seconds from a Retry-After header, which holds seconds or a date."""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max(0.0, (at - datetime.now(UTC)).total_seconds()) if at.tzinfo else None
