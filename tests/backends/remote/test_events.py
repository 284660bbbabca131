"""Events come out whole, however their bytes are cut."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma3vl_app.backends.remote import events
from gemma3vl_app.backends.remote.events import TooLargeError, data_of_events


def read(*pieces: bytes) -> list[str]:
    async def give():
        for piece in pieces:
            yield piece

    async def collect():
        return [data async for data in data_of_events(give())]

    return asyncio.run(collect())


STREAM = (
    ": a comment\n\nevent: message\nid: 3\ndata: {“é”: “日本”}\n\n"
    "data: one\r\ndata: two\r\n\r\ndata:no blank\r\rretry: 5\n\ndata: \u2028 \x85 stay\n\n"
).encode()
SAYS = ["{“é”: “日本”}", "one\ntwo", "no blank", "\u2028 \x85 stay"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_the_same_events_come_out_wherever_the_bytes_are_cut(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(edges)]
    assert read(*pieces) == SAYS


def test_the_last_event_counts_without_its_blank_line():
    assert read(b"data: [DONE]") == ["[DONE]"]
    assert read(b"data: a\n\ndata: [DONE]\n") == ["a", "[DONE]"]


def test_comments_and_events_without_data_are_passed_over():
    assert read(b": ping\n\n", b":\n\n", b"event: ping\n\n", b"data:\n\n") == []


def test_an_event_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(events, "LARGEST_EVENT_BYTES", 100)
    with pytest.raises(TooLargeError):
        read(b"data: ", *[b"x" * 30] * 5)
    with pytest.raises(TooLargeError):
        read(*[b"data: xxxxxxxxxxxxx\n"] * 10)
