"""Server-sent events out of bytes, however these are cut. Knows nothing of what the events say."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator

LARGEST_EVENT_BYTES = 4 << 20

# Bytes, not text: a character may be cut between two pieces, and JSON may hold U+2028 or U+0085,
# which `str.splitlines` takes for the end of a line.
_LINE = re.compile(rb"(.*?)(\r\n|\n|\r)", re.DOTALL)


class TooLargeError(ValueError):
    """An event is longer than anything a server has to say."""


async def data_of_events(pieces: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Yield the data of each event; comments, names, ids and empty events are passed over.

    The last event counts even where the line that ends it is missing. Raises `TooLargeError`.
    """
    rest = b""
    data: list[bytes] = []
    async for piece in pieces:
        rest += piece
        end = 0
        for line in _LINE.finditer(rest):
            if line[2] == b"\r" and line.end() == len(rest):
                break  # its "\n" may be on its way
            end = line.end()
            if line[1]:
                data += _data_of(line[1])
            elif data:
                yield _text(data)
                data = []
        rest = rest[end:]
        if len(rest) + sum(map(len, data)) > LARGEST_EVENT_BYTES:
            raise TooLargeError
    data += _data_of(rest.rstrip(b"\r"))
    if data:
        yield _text(data)


def _data_of(line: bytes) -> list[bytes]:
    name, _, value = line.partition(b":")
    return [value.removeprefix(b" ")] if name == b"data" and value else []


def _text(lines: list[bytes]) -> str:
    return b"\n".join(lines).decode("utf-8", errors="replace")
