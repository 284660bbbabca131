"""What goes wrong at a server, as errors for people; what may be tried again is told apart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from gemma3vl_app.errors import (
    BusyError,
    ContextLengthError,
    ConversationError,
    EngineError,
    Gemma3VLError,
    ModelUnavailableError,
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

Error = TypeVar("Error", bound=Gemma3VLError)
# What people are told who use a server that they cannot see, where only its operator can do more.
LATER = "Try again later, or tell whoever runs this; the log says more."


def about(
    host: str, kind: type[Error], what: str, do: str, *, public_do: str = "", said: str = ""
) -> Error:
    """Return an error about the server at `host`: what happened, and what to do.

    `what` calls it "{server}" and its own words "{said}". Those whom an API or a page over it
    serves are told neither its address nor these, and `public_do` where `do` is not for them.
    """
    full = what.format(server=f"server at {host}", said=said)
    public = what.format(server="model's server", said="")
    return kind(f"{full} {do}", public=f"{public} {public_do or do}")


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
        what = f"The {{server}} has too much to do.{wait}"
        busy = about(host, BusyError, what, "Try again later.")
        return Unavailable(busy, is_down=False, after_sec=after_sec)
    if status in _DOWN:
        what = f"The {{server}} is not ready (HTTP {status})."
        advice = "It may still be loading its model; try again in a while."
        down = about(host, ModelUnavailableError, what, advice)
        return Unavailable(down, is_down=True, after_sec=after_sec)
    if 400 <= status < 500 and status not in (401, 403, 404):
        return _request_refused(host, status, said)
    if status in (401, 403):
        what = f"The {{server}} does not let us in (HTTP {status})."
        advice = f"Put its key into the environment variable {KEY_VARIABLE}."
    elif 300 <= status < 400:
        what = "The {server} sends us to another address, which is not followed."
        advice = "Give the address where the model is."
    elif status == 404:
        what = "The {server} does not have that model or address{said}."
        advice = "Load it again, and check that its address ends in /v1."
    else:
        what = f"The {{server}} failed (HTTP {status})."
        advice = "Its own log says why; ask again."
    return about(host, EngineError, what, advice, public_do=LATER, said=said)


def _request_refused(host: str, status: int, said: str) -> ConversationError:
    """Return the error for a request that could be changed so that it is answered."""
    if status == 413:
        what = "The conversation is too large for the {server}."
        return about(host, ConversationError, what, "Use fewer or smaller pictures.")
    if _TOO_LONG.search(said):
        what = "The conversation does not fit into the context of the {server}{said}."
        advice = "Begin a new one, or take pictures out."
        return about(host, ContextLengthError, what, advice, said=said)
    what = "The {server} refuses this request{said}."
    return about(
        *(host, ConversationError, what, "Change the option that it names."),
        public_do="Leave out what is unusual in it, or tell whoever runs this; the log says more.",
        said=said,
    )


def in_stream(host: str, error: object) -> Gemma3VLError:
    """Return the error for one that a server reports in the middle of an answer."""
    said = told(json.dumps({"error": error}).encode())
    if _TOO_LONG.search(said):
        what = "The answer of the {server} does not fit into its context{said}."
        advice = "Begin a new conversation, or take pictures out."
        return about(host, ContextLengthError, what, advice, said=said)
    what = "The {server} failed while it was answering{said}."
    return about(host, EngineError, what, "Ask again.", said=said)


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
