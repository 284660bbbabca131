"""Pictures in a terminal: what is drawn where, and that asking the terminal costs nobody a key."""

import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from gemma3vl_app.cli import terminal_pictures
from gemma3vl_app.cli.terminal_pictures import (
    DEFAULT_CELL,
    MAX_ROWS,
    NO_PICTURES,
    Terminal,
    caption,
    draw,
    find_out,
    fit,
    read_reply,
)
from gemma3vl_app.pictures import Picture
from tests.cli.pty_process import PtyProcess

ANSWERS = b"\x1b[?62;1;22c"
WITH_SIXEL = b"\x1b[6;16;8t\x1b[?62;4;22c"
WITH_KITTY = b"\x1b_Gi=31;OK\x1b\\\x1b[6;18;9t\x1b[?62c"


def picture(width=64, height=48, name="circle.png"):
    """Red above, blue below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, :, 0] = 255
    pixels[height // 2 :, :, 2] = 255
    return Picture.open(pixels, name=name)


def drawn(terminal, *, shown=None, width=100, colours="truecolor"):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=colours, width=width)
    draw(shown or picture(), console, terminal)
    return file.getvalue()


# --- drawing ---


def test_where_nothing_can_be_drawn_name_and_size_are_shown():
    file = io.StringIO()
    draw(picture(), Console(file=file), NO_PICTURES)
    assert file.getvalue() == "circle.png, 64 x 48\n"


def test_a_name_cannot_command_the_terminal_or_mark_up():
    shown = picture(name="[red]\x1b[2Jx")
    assert drawn(NO_PICTURES, shown=shown, colours=None).strip("\n") == "[red] [2Jx, 64 x 48"
    bad = Picture("", "", "\x1b[2Jx", width=1, height=1)  # read from elsewhere, not cleaned
    assert "\x1b" not in caption(bad)


def test_blocks_show_two_rows_of_pixels_a_line_in_their_colours():
    out = drawn(Terminal("blocks"))
    *lines, last = out.rstrip("\n").split("\n")
    columns, rows = fit(64, 48, DEFAULT_CELL)
    assert len(lines) == rows == MAX_ROWS
    assert [line.count("▀") for line in lines] == [columns] * rows
    assert "38;2;255;0;0;48;2;255;0;0" in lines[0]
    assert "38;2;0;0;255;48;2;0;0;255" in lines[-1]
    assert "circle.png, 64 x 48" in last


def test_fewer_colours_are_used_where_there_are_fewer():
    out = drawn(Terminal("blocks"), colours="256")
    assert "38;5;" in out and "38;2;" not in out


@pytest.mark.parametrize(
    ("size", "cell", "expected"),
    [
        ((640, 480), (10, 20), (32, 12)),  # 320 x 240 pixels: as high as allowed
        ((2000, 100), (10, 20), (40, 1)),  # as wide as allowed
        ((100, 2000), (10, 20), (1, 12)),
        ((30000, 1), (10, 20), (40, 1)),
        ((1, 30000), (10, 20), (1, 12)),
        ((512, 512), (8, 16), (24, 12)),
        ((512, 512), (10, 10), (12, 12)),  # square cells
    ],
)
def test_a_picture_keeps_its_shape_within_bounds(size, cell, expected):
    assert fit(*size, cell) == expected


def test_a_narrow_window_is_not_overflown():
    lines = drawn(Terminal("blocks"), width=10).split("\n")
    assert [line.count("▀") for line in lines if "▀" in line] == [10] * 4  # made smaller, not cut


def test_sixels_are_drawn_into_rows_made_free_for_them():
    out = drawn(Terminal("sixel", (8, 16)))
    columns, rows = fit(64, 48, (8, 16))
    assert out.startswith("\n" * rows + f"\x1b7\x1b[{rows}A\x1bP")
    assert f'"1;1;{columns * 8};{rows * 16}' in out  # raster attributes: the size in pixels
    assert "\x1b\\\x1b8" in out
    assert "circle.png, 64 x 48" in out
    assert not re.search("[^\x1b\n\x20-\x7e]", out)


def test_sixels_have_the_pictures_colours():
    out = drawn(Terminal("sixel", (8, 16)))
    assert {"2;100;0;0", "2;0;0;100"} <= set(re.findall(r"#\d+;(2;\d+;\d+;\d+)", out))


def test_kitty_gets_a_png_in_pieces_it_accepts():
    import base64

    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    out = drawn(Terminal("kitty"), shown=Picture.open(noise, name="noise.png"))
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", out)
    columns, rows = fit(128, 96, DEFAULT_CELL)
    assert pieces[0][0] == f"a=T,f=100,q=2,C=1,c={columns},r={rows},m=1"
    assert [options for options, _ in pieces[1:]] == ["m=1"] * (len(pieces) - 2) + ["m=0"]
    assert max(len(data) for _, data in pieces) <= 4096
    with Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in pieces)))) as image:
        assert image.size == (columns * DEFAULT_CELL[0], rows * DEFAULT_CELL[1])


# --- what the terminal says ---


@pytest.mark.parametrize(
    ("reply", "graphics", "cell"),
    [
        (WITH_KITTY, "kitty", (9, 18)),
        (WITH_SIXEL, "sixel", (8, 16)),
        (ANSWERS, "blocks", DEFAULT_CELL),
        (b"", "blocks", DEFAULT_CELL),  # it does not answer
        (b"\x1b_Gi=31;ENOTSUPPORTED\x1b\\" + ANSWERS, "blocks", DEFAULT_CELL),
        (b"\x1b[6;0;0t" + WITH_SIXEL[9:], "sixel", DEFAULT_CELL),
        (b"\x1b[6;999999999999;1t" + ANSWERS, "blocks", DEFAULT_CELL),
        (b"\x1b[?64;14;24c", "blocks", DEFAULT_CELL),  # a 4 within other numbers is none
        (b"\xff\xfe\x1b", "blocks", DEFAULT_CELL),
    ],
)
def test_a_reply_says_what_can_be_drawn(reply, graphics, cell):
    found = read_reply(reply)
    assert (found.graphics, found.cell, found.typed) == (graphics, cell, "")


@pytest.mark.parametrize(
    "reply",
    [
        b"What is" + WITH_SIXEL + b" th\xc3\xads?\r",
        b"What\x1b[A is\x1b[6;16;8t th\xc3\xads?\x1b[?62;4;22c\n",
        b"What is th\xc3\xads?\n" + WITH_SIXEL,
    ],
)
def test_what_is_typed_meanwhile_is_kept(reply):
    found = read_reply(reply)
    assert (found.graphics, found.typed) == ("sixel", "What is thís?\n")


# --- whether to ask at all ---


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def people(monkeypatch):
    """A person at a terminal with colours."""
    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(terminal_pictures, "sys", SimpleNamespace(stdin=Tty(), stdout=Tty()))
    return Console(file=Tty(), color_system="truecolor")


def never():
    raise AssertionError("the terminal was asked")


def test_a_terminal_is_asked_what_it_can(people):
    assert find_out(people, ask=lambda: WITH_SIXEL) == Terminal("sixel", (8, 16))
    assert find_out(people, ask=lambda: ANSWERS).graphics == "blocks"


@pytest.mark.parametrize(
    ("name", "value"),
    [("NO_COLOR", "1"), ("CI", "true"), ("TERM", "dumb"), ("TERM", ""), ("TERM", "linux")],
)
def test_who_wants_no_decoration_is_not_asked(people, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert find_out(people, ask=never) == NO_PICTURES


@pytest.mark.parametrize("end", ["stdin", "stdout"])
def test_a_pipe_is_not_asked(people, monkeypatch, end):
    monkeypatch.setattr(terminal_pictures.sys, end, io.StringIO())
    assert find_out(people, ask=never) == NO_PICTURES


@pytest.mark.parametrize("error", [OSError("no such control"), ValueError("closed file")])
def test_a_terminal_that_cannot_be_asked_gets_blocks(people, error):
    def ask():
        raise error

    assert find_out(people, ask=ask) == Terminal("blocks")


def test_sixteen_colours_are_too_few_for_blocks(people):
    console = Console(file=Tty(), color_system="standard")
    assert find_out(console, ask=lambda: ANSWERS).graphics == "none"
    assert find_out(console, ask=lambda: WITH_SIXEL).graphics == "sixel"


# --- a real terminal ---

ASKS = """
import sys, termios, time
from rich.console import Console
from gemma3vl_app.cli.terminal_pictures import find_out
print("ready", flush=True)
time.sleep(0.5)
before = termios.tcgetattr(0)
found = find_out(Console())
assert termios.tcgetattr(0) == before
print("found", found.graphics, found.cell, repr(found.typed), "end", flush=True)
print("line", repr(sys.stdin.readline()), flush=True)
"""


def test_a_reply_is_neither_echoed_nor_left_behind_and_typed_keys_are_kept(tmp_path):
    with PtyProcess(ASKS, cwd=tmp_path) as terminal:
        terminal.wait_for("ready")
        terminal.press("ab")  # before it is asked, and without Enter
        terminal.wait_for("\x1b[c")
        terminal.press("c" + WITH_SIXEL.decode())
        terminal.wait_for("found sixel (8, 16) 'abc' end")
        terminal.press("next\n")
        terminal.wait_for("line 'next\\n'")
        assert terminal.ends_with() == 0
        assert "62;4;22c" not in terminal.screen


def test_a_terminal_that_does_not_reply_holds_nobody_up(tmp_path):
    with PtyProcess(ASKS, cwd=tmp_path) as terminal:
        terminal.wait_for("\x1b[c")
        terminal.wait_for(f"found blocks {DEFAULT_CELL} '' end", seconds=5)
