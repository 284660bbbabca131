"""Base64 of pictures is decoded in pieces, and just as strictly as in one."""

import base64
import binascii
import random

import pytest

from gemma3vl_app.api import pictures


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(pictures, "_PIECE_CHARS", 10)  # no multiple of four


@pytest.mark.parametrize("size", range(40))
def test_pieces_join_to_the_whole_with_and_without_line_breaks(size):
    data = random.Random(size).randbytes(size)
    text = base64.b64encode(data).decode()
    assert pictures._decoded(text) == data
    assert pictures._decoded(base64.encodebytes(data).decode()) == data
    assert pictures._decoded(" \n".join(text)) == data


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AAA",
        "AAAA" * 9 + "AAA",
        "AA==" + "AAAA" * 9,
        "AAAA" * 2 + "AA==" + "AAAA",
        "AAAA" * 4 + "AA=" + "\n" * 30,
        "AAAA" * 5 + "A-_A",
        "AAAA" * 5 + "é===",
        "====",
    ],
)
def test_what_is_damaged_is_refused_wherever_it_is(text):
    with pytest.raises((binascii.Error, ValueError)):
        pictures._decoded(text)
