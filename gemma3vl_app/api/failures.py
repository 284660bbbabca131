"""The one place where an error becomes what an API client is told: status, words and headers.

A client gets our own words, never a path, an address or a traceback. What is unexpected goes to the
log, and the client is told only that it happened.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from gemma3vl_app.errors import (
    BusyError,
    ContextLengthError,
    ConversationError,
    EngineError,
    Gemma3VLError,
    MemoryLimitError,
    ModelUnavailableError,
    PictureError,
    public_text,
)

INVALID = "invalid_request_error"
SERVER = "server_error"
MODEL_RETRY_SEC = 5  # a model that is changed, or a server that is started anew, takes a while
RETRY_SEC = 1  # answers end all the time; a client that waits longer only leaves places empty
_log = logging.getLogger(__name__)


class RequestError(Gemma3VLError):
    """A request that cannot be answered as it is: `param` names the field, `code` the reason."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        retry_sec: int | None = None,
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status, self.retry_sec = param, code, status, retry_sec


class ClientGoneError(Exception):
    """The client closed its connection: nobody is there to be told anything."""


@dataclass(frozen=True)
class Failure:
    """What a client is told of an error."""

    status: int
    message: str
    type: str = INVALID
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


def describe(error: BaseException) -> Failure:
    """Return what a client is told of `error`; logs it where it is a defect of ours."""
    said = public_text(error) if isinstance(error, Gemma3VLError) else ""
    match error:
        case RequestError():
            kind = SERVER if error.status >= 500 else INVALID
            if error.status == 401:
                kind = "authentication_error"
            if error.status == 429:
                kind = "rate_limit_error"
            headers = _headers(error.status, error.retry_sec)
            return Failure(error.status, said, kind, error.param, error.code, headers)
        case ContextLengthError():
            return Failure(400, said, param="messages", code="context_length_exceeded")
        case PictureError():
            return Failure(400, said, param="messages", code="invalid_image")
        case ConversationError():
            return Failure(400, said)
        case BusyError():
            headers = _headers(503, RETRY_SEC)
            return Failure(503, said, SERVER, code="overloaded", headers=headers)
        case MemoryLimitError():
            headers = _headers(503, RETRY_SEC)
            return Failure(503, said, SERVER, code="out_of_memory", headers=headers)
        case ModelUnavailableError():
            headers = _headers(503, MODEL_RETRY_SEC)
            return Failure(503, said, SERVER, code="model_unavailable", headers=headers)
        case EngineError():
            return Failure(500, said, SERVER, code="engine_error")
        case HTTPException():
            return Failure(error.status_code, "This request cannot be answered.")
        case _:
            _log.error("an API request failed unexpectedly", exc_info=error)
            message = "Something went wrong inside the server; its log has the details."
            return Failure(500, message, SERVER, code="internal_error")


def response(error: BaseException) -> Response:
    """Return the whole response that tells a client of `error`."""
    failure = describe(error)
    return Response(
        json.dumps(failure.body),
        status_code=failure.status,
        headers=dict(failure.headers),
        media_type="application/json",
    )


def _headers(status: int, retry_sec: int | None) -> dict[str, str]:
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if retry_sec is not None:
        headers["Retry-After"] = str(retry_sec)
    return headers
