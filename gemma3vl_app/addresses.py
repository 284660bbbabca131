"""Addresses of servers as the source of a model: "http://host:8000/v1", or several with commas.

Knows their form only; asks no server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from gemma3vl_app.errors import LoadError

_HTTP = re.compile(r"https?://", re.IGNORECASE)
_DEFAULT_PATH = "/v1"
_MAX_SERVERS = 64


@dataclass(frozen=True)
class Address:
    """Where one server speaks OpenAI's protocol: `base` ends in the version, as in ".../v1"."""

    base: str

    @property
    def host(self) -> str:
        """The host and port, which is what people call the server."""
        return urlsplit(self.base).netloc

    @property
    def root(self) -> str:
        """The address without the version: where servers say what they are."""
        return self.base.removesuffix(_DEFAULT_PATH)


@dataclass(frozen=True)
class Servers:
    """Servers of one model; `model` is the name that was chosen behind "#", or ""."""

    addresses: tuple[Address, ...]
    model: str = ""

    @property
    def hosts(self) -> str:
        """All of them, for people."""
        return ", ".join(address.host for address in self.addresses)


def is_address(source: str | Path) -> bool:
    """Return whether `source` names servers, not a model that is loaded here."""
    return isinstance(source, str) and _HTTP.match(source.strip()) is not None


def parse_servers(source: str) -> Servers:
    """Read addresses, separated by commas; "#NAME" behind one of them chooses among its models.

    Raises `LoadError` for what is no such address, and for one that holds a password.
    """
    parts = [_split(part.strip()) for part in source.split(",") if part.strip()]
    if not 0 < len(parts) <= _MAX_SERVERS:
        raise LoadError(f"Give between 1 and {_MAX_SERVERS} addresses of servers, with commas.")
    names = {name for _, name in parts if name}
    if len(names) > 1:
        raise LoadError(
            f"The addresses name {len(names)} models: {', '.join(sorted(names))}. "
            "All servers must serve the same one; name it once."
        )
    return Servers(tuple(dict.fromkeys(address for address, _ in parts)), "".join(names))


def _split(text: str) -> tuple[Address, str]:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises for what is no number
    except ValueError:
        parts = None
    if parts is None or not _HTTP.match(text) or not parts.hostname:
        raise LoadError(
            "An address of a server looks like http://host:8000/v1; check what was given."
        )
    if parts.username is not None or parts.password is not None:
        raise LoadError(
            f"The address of {parts.hostname} holds a name or a password, which logs would show. "
            "Give a key in the environment variable GEMMA3VL_REMOTE_KEY."
        )
    if parts.query:
        raise LoadError(
            f"The address of {parts.hostname} holds a question mark. Leave that part out."
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or _DEFAULT_PATH
    netloc = parts.netloc.lower()
    return Address(f"{parts.scheme.lower()}://{netloc}{path}"), parts.fragment
