"""Text from elsewhere cannot command the terminal."""

import unicodedata

import pytest

from gemma3vl_app.plain import plain


@pytest.mark.parametrize("harmless", ["", "Zwei Äpfel, 三つ 🍎\n\tand a tab", "e\u0301 a\u200db"])
def test_ordinary_text_stays_as_it_is(harmless):
    assert plain(harmless) == harmless


@pytest.mark.parametrize(
    "escape",
    ["\x1b[31m", "\x1b]52;c;cm0=\x07", "\x9b2J", "\r", "\b", "\x00", "\u202e", "\u2066", "\udcff"],
)
def test_what_commands_a_terminal_is_replaced_in_place(escape):
    cleaned = plain(f"a{escape}b")
    assert len(cleaned) == len(escape) + 2
    assert cleaned[0] == "a" and cleaned[1] == "\ufffd" and cleaned[-1] == "b"


def test_no_control_character_but_newline_and_tab_comes_through():
    everything = "".join(map(chr, range(0x110000)))
    left = {c for c in plain(everything) if unicodedata.category(c) in ("Cc", "Cs")}
    assert left == {"\n", "\t"}
