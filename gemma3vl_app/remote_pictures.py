"""Fetch a picture from an address that a stranger names: from hosts the operator allows, no others.

Off unless somebody makes a `RemotePictures`. Such addresses are how servers are made to reach what
only they can reach, and each rule here is one that others have been bypassed for: an address is
taken apart once; its host must be on the list to the letter; every address that the host's name
stands for must be public; the connection goes to the very one that was checked; every redirect
starts at the beginning. This is the only place that fetches what a stranger names (a test holds
the package to that).
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from gemma3vl_app.errors import PictureError
from gemma3vl_app.picture_decoding import PictureLimits, check_bytes, picture_format

CONNECT_SEC, TOTAL_SEC = 5.0, 15.0
MOST_REDIRECTS = 3
_MOST_ADDRESS = 2_048
_PORTS = {"http": 80, "https": 443}
# Letters, digits, "-" and "." only: no name and password, no IPv6, nothing that another reading of
# the same address could take for the end of its host.
_NETLOC = re.compile(r"([a-z0-9-]+(?:\.[a-z0-9-]+)*)(?::([0-9]{1,5}))?")
_REDIRECTS = (301, 302, 303, 307, 308)
# Of the network, of the other side, of a name; a private address is a ValueError.
_FAILURES = (
    *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException),
    *(OSError, TimeoutError, ValueError),
)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class RemotePictures:
    """Fetches pictures from `allowed_domains`, host names in full; "host:port" for another port.

    At most `max_redirects` redirects are followed, each to an allowed host again. Safe to use from
    any thread.
    """

    def __init__(
        self,
        allowed_domains: Iterable[str],
        *,
        limits: PictureLimits | None = None,
        max_redirects: int = MOST_REDIRECTS,
        connect_sec: float = CONNECT_SEC,
        total_sec: float = TOTAL_SEC,
    ) -> None:
        if not 0 <= max_redirects <= MOST_REDIRECTS:
            raise ValueError(f"max_redirects must be 0 to {MOST_REDIRECTS}.")
        self._allowed = frozenset(domain.strip().lower() for domain in allowed_domains)
        if wrong := [domain for domain in self._allowed if not _NETLOC.fullmatch(domain)]:
            raise ValueError(f"'{wrong[0]}' is no host name: write it like images.example.com.")
        self._limits = limits or PictureLimits()
        self._max_redirects = max_redirects
        self._connect_sec, self._total_sec = connect_sec, total_sec
        self._names = ThreadPoolExecutor(4, thread_name_prefix="names")  # starts none by itself
        self._ssl = httpcore.default_ssl_context()

    def fetch(self, url: str) -> bytes:
        """Return the bytes of the picture at `url`, of an accepted format and within the limits.

        Raises `PictureError` for every other outcome; its words say nothing about what else the
        server can or cannot reach.
        """
        deadline = time.monotonic() + self._total_sec
        target = self._checked(url)
        for _ in range(self._max_redirects + 1):
            try:
                found = self._ask(target, deadline)
            except _FAILURES:
                raise _unreachable(target) from None
            if isinstance(found, bytes):
                picture_format(found, target.name)
                return found
            target = self._followed(target, found.location)
        raise PictureError(
            f"The picture at {target.host} is behind more than {self._max_redirects} redirects. "
            "Give the address that it is at."
        )

    # --- which addresses ---

    def _checked(self, url: str) -> _Target:
        """Take an address apart; raises `PictureError` if it may not be fetched."""
        target = _parsed(url)
        if target.allowed_as not in self._allowed:
            raise PictureError(
                "Pictures are not fetched from that host: this server's operator has not allowed "
                "it. Send the picture itself."
            )
        return target

    def _followed(self, target: _Target, location: str) -> _Target:
        try:
            address = urljoin(f"{target.scheme}://{target.allowed_as}{target.path}", location)
        except ValueError:
            raise _not_fetched() from None
        following = self._checked(address)
        if target.scheme == "https" and following.scheme != "https":
            raise PictureError(
                f"The picture at {target.host} is behind a redirect to an unprotected address. "
                "Send the picture itself."
            )
        return following

    # --- fetching ---

    def _ask(self, target: _Target, deadline: float) -> bytes | _Redirect:
        """Send one request, over a connection of its own; no proxy, no cookie, no compression."""
        headers = [
            (b"Host", target.allowed_as.encode()),
            (b"Accept", b"image/*"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"gemma3vl-app"),
            (b"Connection", b"close"),
        ]
        where = httpcore.URL(
            scheme=target.scheme.encode(),
            host=target.host.encode(),
            port=target.port,
            target=target.path.encode(),
        )
        route = _CheckedRoute(self._names, deadline, self._connect_sec)
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self._total_sec)
        with (
            httpcore.ConnectionPool(ssl_context=self._ssl, network_backend=route) as pool,
            pool.stream("GET", where, headers=headers, extensions={"timeout": timeouts}) as answer,
        ):
            return self._read(target, answer)

    def _read(self, target: _Target, answer: httpcore.Response) -> bytes | _Redirect:
        headers = {name.lower(): value for name, value in answer.headers}
        if answer.status in _REDIRECTS and b"location" in headers:
            return _Redirect(headers[b"location"].decode("latin-1"))
        if answer.status != 200:
            raise PictureError(
                f"There is no picture at that address of {target.host} (status {answer.status})."
            )
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise PictureError(
                f"The picture from {target.host} comes compressed once more, which was not asked "
                "for. Send the picture itself."
            )
        check_bytes(int(headers.get(b"content-length", b"0")), target.name, self._limits)
        data = bytearray()
        for piece in answer.iter_stream():
            data += piece
            check_bytes(len(data), target.name, self._limits)
        return bytes(data)


@dataclass(frozen=True)
class _Redirect:
    location: str


@dataclass(frozen=True)
class _Target:
    """An address taken apart: what is checked is what is connected to and asked for."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def allowed_as(self) -> str:
        """How the list, and the host itself, name it."""
        usual = self.port == _PORTS[self.scheme]
        return self.host if usual else f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        """What messages call the picture."""
        return self.path.partition("?")[0].rpartition("/")[2][-80:] or self.host


def _parsed(url: str) -> _Target:
    """Take an address apart; raises `PictureError` where two readers could differ over it."""
    if not isinstance(url, str) or len(url) > _MOST_ADDRESS:
        raise _not_fetched()
    if not url.isascii() or not url.isprintable() or set(url) & set(' \\"<>^`{|}'):
        raise _not_fetched()
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _not_fetched() from None
    netloc = _NETLOC.fullmatch(parts.netloc.lower())
    if parts.scheme not in _PORTS or netloc is None:
        raise _not_fetched()
    port = int(netloc[2]) if netloc[2] else _PORTS[parts.scheme]
    if not 1 <= port <= 65_535:
        raise _not_fetched()
    query = f"?{parts.query}" if parts.query else ""
    return _Target(parts.scheme, netloc[1], port, (parts.path or "/") + query)


def _not_fetched() -> PictureError:
    return PictureError(
        "That is no address that pictures are fetched from; expected one like "
        "https://host.example/picture.jpg. Or send the picture itself."
    )


def _unreachable(target: _Target) -> PictureError:
    return PictureError(
        f"The picture at {target.host} could not be fetched. Check its address, or send the "
        "picture itself."
    )


# --- connections ----------------------------------------------------------------------------------


class _CheckedRoute(httpcore.NetworkBackend):
    """Connects a host's name to an address of its that was checked, all before `deadline`."""

    def __init__(self, names: ThreadPoolExecutor, deadline: float, connect_sec: float) -> None:
        self._names, self._deadline, self._connect_sec = names, deadline, connect_sec

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        """Look `host` up once, check every answer, connect to the first."""
        connect_by = min(self._deadline, time.monotonic() + self._connect_sec)
        # A look-up cannot be interrupted: it goes on alone, and nobody waits for it any longer.
        looking = self._names.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            answers = looking.result(timeout=_left(connect_by))
        finally:
            looking.cancel()  # if it has not begun
        address = _checked_address([str(answer[4][0]) for answer in answers])
        return _Bounded(connect(address, port, _left(connect_by)), self._deadline)


def connect(address: str, port: int, seconds: float) -> httpcore.NetworkStream:
    """Connect to an address of numbers, which nothing looks up again."""
    return httpcore.SyncBackend().connect_tcp(address, port, timeout=seconds)


class _Bounded(httpcore.NetworkStream):
    """A connection that ends at `deadline`, however slowly the other side goes on sending."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        secure = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _Bounded(secure, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout("out of time")
    return seconds


# --- addresses that only this machine, or its network, reaches ------------------------------------

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # how hosts of IPv4 look from a network of IPv6 only
_UNICAST = ipaddress.ip_network("2000::/3")
_NO_HOSTS = (
    ipaddress.ip_network("2002::/16"),  # 6to4 and Teredo: old tunnels into IPv4
    ipaddress.ip_network("2001::/32"),
    ipaddress.ip_network("3fff::/20"),  # for documentation; Python 3.11 does not know it
)


def _checked_address(addresses: Sequence[str]) -> str:
    """Return the first address; raises `ValueError` unless all are public."""
    if not addresses or not all(is_public(address) for address in addresses):
        raise ValueError("a private address")
    return addresses[0]


def is_public(address: str) -> bool:
    """Return whether an address of numbers is one of the public Internet, whatever it wraps."""
    try:
        number: _Address = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(number, ipaddress.IPv6Address):
        if wrapped := number.ipv4_mapped:
            return is_public(str(wrapped))
        if number in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)))
        if number not in _UNICAST or any(number in each for each in _NO_HOSTS):
            return False
    return number.is_global and not (number.is_multicast or number.is_reserved)
