"""One POST request from its first byte to its last: admit, read, answer while the client is there.

A handler gets the body and returns JSON, or server-sent events as they come. Errors end here, in
one place: before the response has begun as a status, later as an event.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from gemma3vl_app.api import failures, progress
from gemma3vl_app.api.choices import Choices
from gemma3vl_app.api.failures import ClientGoneError, RequestError
from gemma3vl_app.api.keys import Keys, missing_key
from gemma3vl_app.api.limits import ApiLimits, Gate, Visit
from gemma3vl_app.api.metrics import Metrics
from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.remote_pictures import RemotePictures

KEEP_ALIVE_SEC = 15.0  # proxies close what is silent for longer, often after a minute
_WORKERS = 4  # decoding pictures of so many requests at once
_log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Event:
    """One server-sent event; `data` is written as JSON, a string as it is."""

    data: dict[str, Any] | str
    name: str | None = None

    def encode(self) -> bytes:
        """Return its bytes; JSON has no line breaks, so one `data` line is enough."""
        data = self.data if isinstance(self.data, str) else encode(self.data)
        name = f"event: {self.name}\n" if self.name else ""
        return f"{name}data: {data}\n\n".encode()


Events = AsyncGenerator[Event | None, None]  # None: nothing came for a while


@dataclass(frozen=True)
class Call:
    """An admitted request, as its handler sees it; `choices` are the streams that answer it.

    The backend is taken once, since the current one may change while the request is answered.
    """

    body: bytes
    backend: Backend
    limits: ApiLimits
    caller: str
    choices: Choices
    metrics: Metrics
    remote_pictures: RemotePictures | None
    in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
    began: float = field(default_factory=time.monotonic)

    @property
    def idle_sec(self) -> float:
        """How long nothing may come before the client, and the model, are looked after."""
        return min(KEEP_ALIVE_SEC, self.limits.stalled_sec)


Handler = Callable[[Call], Awaitable[dict[str, Any] | Events]]


class Api:
    """What all endpoints share: whom they ask, who may come in, how much, and what is counted."""

    def __init__(
        self,
        backend: Callable[[], Backend],
        *,
        keys: Keys,
        limits: ApiLimits,
        remote_pictures: RemotePictures | None = None,
        is_closed_without_keys: bool = False,
    ) -> None:
        """`is_closed_without_keys` says that no keys means nobody, not everybody.

        `remote_pictures` fetches pictures by their addresses; without it none are fetched.
        """
        self.backend = backend
        self.keys = keys
        self.limits = limits
        self.remote_pictures = remote_pictures
        self.gate = Gate(limits)
        self.metrics = Metrics(backend, self.gate)
        self._is_closed = is_closed_without_keys and not keys
        self._threads = ThreadPoolExecutor(_WORKERS, thread_name_prefix="api")

    def caller(self, scope: Scope) -> str:
        """Return who asks; raises `RequestError` (401) for somebody who may not."""
        caller = None if self._is_closed else self.keys.caller(scope)
        if caller is None:
            raise missing_key()
        return caller

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Run what takes the CPU off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class PostEndpoint:
    """An ASGI endpoint that answers POST requests through `handler`."""

    def __init__(self, api: Api, handler: Handler) -> None:
        self._api = api
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sending = _Sending(send, self._api.limits.slow_reader_sec)
        try:
            with self._api.gate.admit(self._api.caller(scope)) as visit:
                body = await read_body(scope, receive, self._api.limits)
                await _while_connected(receive, self._answer(body, visit, sending))
        except ClientGoneError:
            _log.debug("a client left before its answer was complete")
        except Exception as error:  # the one border: everything becomes an OpenAI error
            if sending.begun:  # handlers turn their own errors into events: a defect of this file
                raise
            await failures.response(error)(scope, receive, send)

    async def _answer(self, body: bytes, visit: Visit, sending: _Sending) -> None:
        api, backend = self._api, self._api.backend()

        def check() -> None:
            progress.check(backend, api.limits.stalled_sec)

        check()
        with Choices(check) as choices:
            visit.end_answer = choices.end
            call = Call(
                *(body, backend, api.limits, visit.caller, choices, api.metrics),
                remote_pictures=api.remote_pictures,
                in_thread=api.in_thread,
            )
            result = await self._handler(call)
            if isinstance(result, dict):
                await sending.whole(encode(result).encode("utf-8"))
            else:
                await sending.events(result)


class _Sending:
    """One response on its way; a client that does not read is given up after a while."""

    def __init__(self, send: Send, slow_reader_sec: float) -> None:
        self._send = send
        self._slow_reader_sec = slow_reader_sec
        self.begun = False

    async def whole(self, body: bytes) -> None:
        """Send a complete JSON response."""
        await self._begin([(b"content-type", b"application/json"), _length(body)])
        await self._put({"type": "http.response.body", "body": body})

    async def events(self, events: Events) -> None:
        """Send events as they come; an error becomes the last one."""
        await self._begin(
            [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),  # nginx would keep them back
            ]
        )
        async with aclosing(events):
            async for event in events:
                # The pause is a comment, which clients skip.
                data = b": still working\n\n" if event is None else event.encode()
                await self._put({"type": "http.response.body", "body": data, "more_body": True})
        await self._put({"type": "http.response.body", "body": b""})

    async def _begin(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self._put({"type": "http.response.start", "status": 200, "headers": headers})

    async def _put(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._slow_reader_sec):
                await self._send(message)
        except (TimeoutError, OSError) as error:
            raise ClientGoneError from error


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it when the client leaves (`ClientGoneError`)."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(scope: Scope, receive: Receive, limits: ApiLimits) -> bytes:
    """Return the body of a JSON request, counted while it comes in.

    Raises `RequestError`: 415 for another type, 413 for too much, 408 for too slow.
    """
    headers = Headers(scope=scope)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(
            "The body must be JSON. Send it with: Content-Type: application/json",
            code="unsupported_media_type",
            status=415,
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(
            "Compressed bodies are not accepted. Send it as it is.",
            code="unsupported_content_encoding",
            status=415,
        )
    too_large = RequestError(
        f"The request has more than {limits.body_bytes / (1 << 20):.0f} MiB, the limit. "
        "Send smaller pictures.",
        code="request_too_large",
        status=413,
    )
    stated = headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limits.body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_sec):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                body += message.get("body", b"")
                if len(body) > limits.body_bytes:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise RequestError(
            "The request took too long to arrive.", code="request_timeout", status=408
        ) from error


def encode(value: Any) -> str:
    """Return JSON without blanks; half a character, which no JSON may hold, becomes "?"."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode("utf-8")


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", str(len(body)).encode("ascii")
