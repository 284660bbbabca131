"""HTTP to one server: JSON questions, and answers as streams of events. Knows nothing of chats."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from gemma3vl_app import __version__
from gemma3vl_app.addresses import Address
from gemma3vl_app.backends.remote.events import TooLargeError, data_of_events
from gemma3vl_app.backends.remote.failures import (
    LATER,
    Unavailable,
    about,
    in_stream,
    refusal,
)
from gemma3vl_app.backends.remote.limits import RemoteLimits
from gemma3vl_app.errors import EngineError, ModelUnavailableError

LARGEST_BODY_BYTES = 16 << 20
LARGEST_REFUSAL_BYTES = 64 << 10
_DONE = "[DONE]"


class Connection:
    """Requests to one server, on the event loop it was made for.

    Redirects are not followed, TLS is verified, proxies of the environment are not used.
    """

    def __init__(self, address: Address, key: str, limits: RemoteLimits) -> None:
        self.address, self.host = address, address.host
        headers = {"user-agent": f"gemma3vl-app/{__version__}"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            follow_redirects=False,
            trust_env=False,
            # The certificates that httpx brings, or those that SSL_CERT_FILE names.
            verify=httpx.create_ssl_context(),
            timeout=httpx.Timeout(limits.silence_sec, connect=limits.connect_sec, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
        )
        self._limits = limits

    async def get(self, path: str, *, below_root: bool = False, timeout_sec: float = 10.0) -> Any:
        """Return the JSON at `path`, below the address or below its root. Raises as `ask` does."""
        base = self.address.root if below_root else self.address.base
        return await self._json("GET", f"{base}{path}", None, timeout_sec)

    async def ask(
        self, path: str, body: Mapping[str, Any], *, below_root: bool = False
    ) -> dict[str, Any]:
        """Return the JSON object that answers `body`.

        Raises `Unavailable` for what may be tried again, and errors for people.
        """
        base = self.address.root if below_root else self.address.base
        found = await self._json("POST", f"{base}{path}", body, self._limits.probe_sec)
        if not isinstance(found, dict):
            raise _no_sense(self.host)
        return found

    @asynccontextmanager
    async def answer(self, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Post `body` and give the events of the answer; leaving early closes the connection.

        Raises `Unavailable` only before the answer has begun. The events end with `{}` where the
        server said that they are complete.
        """
        url = f"{self.address.base}/chat/completions"
        request = self._client.build_request(
            "POST", url, content=_encoded(body), headers={"content-type": "application/json"}
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._not_reached(error) from error
        try:
            if response.status_code != httpx.codes.OK:
                raise refusal(
                    self.host,
                    response.status_code,
                    response.headers,
                    await self._read(response, LARGEST_REFUSAL_BYTES),
                )
            yield self._events(response)
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _events(self, response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        if "json" in response.headers.get("content-type", ""):  # it does not stream
            yield self._parsed((await self._read(response, LARGEST_BODY_BYTES)).decode())
            yield {}
            return
        try:
            async for data in data_of_events(response.aiter_bytes()):
                if data.strip() == _DONE:
                    yield {}
                    return
                yield self._parsed(data)
        except httpx.TimeoutException as error:
            what = f"The {{server}} has been silent for {self._limits.silence_sec:.0f} s."
            advice = "Ask again, or look whether it still works."
            raise about(self.host, EngineError, what, advice, public_do=LATER) from error
        except httpx.HTTPError as error:
            what = "The connection to the {server} broke in the middle of the answer."
            raise about(self.host, EngineError, what, "Ask again.") from error
        except TooLargeError as error:
            raise _no_sense(self.host) from error

    async def _json(
        self, method: str, url: str, body: Mapping[str, Any] | None, timeout_sec: float
    ) -> Any:
        content = None if body is None else _encoded(body)
        headers = {"content-type": "application/json"} if content else {}
        request = self._client.build_request(method, url, content=content, headers=headers)
        try:
            async with asyncio.timeout(timeout_sec):
                response = await self._client.send(request, stream=True)
                try:
                    data = await self._read(response, LARGEST_BODY_BYTES)
                finally:
                    await response.aclose()
        except httpx.HTTPError as error:
            raise self._not_reached(error) from error
        except TimeoutError as error:
            what = f"The {{server}} did not answer within {timeout_sec:.0f} s."
            advice = "Look whether it still works."
            silent = about(self.host, ModelUnavailableError, what, advice, public_do=LATER)
            raise Unavailable(silent, is_down=True) from error
        if response.status_code != httpx.codes.OK:
            raise refusal(self.host, response.status_code, response.headers, data)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _no_sense(self.host) from error

    async def _read(self, response: httpx.Response, limit: int) -> bytes:
        """Return the body; what is beyond `limit` is an error where all of it matters."""
        data = bytearray()
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > limit:
                if limit == LARGEST_REFUSAL_BYTES:
                    break
                raise _no_sense(self.host)
        return bytes(data)

    def _parsed(self, data: str) -> dict[str, Any]:
        try:
            event = json.loads(data)
        except (ValueError, RecursionError) as error:
            if data.lstrip().startswith('{"error"'):  # some put words in without escaping them
                raise in_stream(self.host, None) from error
            raise _no_sense(self.host) from error
        if not isinstance(event, dict):
            raise _no_sense(self.host)
        if event.get("error"):
            raise in_stream(self.host, event["error"])
        return event

    def _not_reached(self, error: httpx.HTTPError) -> Exception:
        """Return what to raise where no answer has begun."""
        if isinstance(error, httpx.ReadTimeout):  # it is at work: asking again would make it worse
            what = f"The {{server}} has not begun to answer in {self._limits.silence_sec:.0f} s."
            advice = "Ask again, or look whether it still works."
            return about(self.host, EngineError, what, advice, public_do=LATER)
        what = f"The {{server}} cannot be reached ({_reason(error)})."
        advice = "Check that it runs, and its address."
        gone = about(self.host, ModelUnavailableError, what, advice, public_do=LATER)
        return Unavailable(gone, is_down=True)


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _reason(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "no answer in time"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "its certificate is not trusted here"
    if isinstance(error, httpx.ConnectError):
        return "no connection"
    return "the connection broke"


def _no_sense(host: str) -> EngineError:
    what = "What the {server} sent is not OpenAI's protocol."
    advice = "Check that its address is that of a model's API; it often ends in /v1."
    return about(host, EngineError, what, advice, public_do=LATER)
