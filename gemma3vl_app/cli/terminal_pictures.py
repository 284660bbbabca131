"""Pictures in a terminal: as pixels where it can, as blocks in colour, else as name and size.

What a terminal can is asked of it once, when the first picture is shown. Knows nothing of chats.
The library textual-image encodes sixels; its own renderables are not used, since they ask the
terminal when they are imported, and may take what a person types meanwhile for the reply.
"""

from __future__ import annotations

import base64
import io
import os
import re
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import ControlType, Segment
from rich.style import Style
from rich.text import Text

from gemma3vl_app.pictures import Picture
from gemma3vl_app.plain import plain

MAX_COLUMNS, MAX_ROWS = 40, 12
REPLY_SECONDS = 1.0  # over a slow line; nearly every terminal replies, and at once
Graphics = Literal["kitty", "sixel", "blocks", "none"]
Cell = tuple[int, int]
DEFAULT_CELL: Cell = (10, 20)
_SANE_CELL = range(2, 200)  # pixels

# Three questions in one go. Every terminal answers the last one, so what has not been answered
# by then is not known to it. What a terminal prints of a question it does not know is wiped out.
QUESTION = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[16t\x1b[c\r\x1b[2K"
_KITTY = re.compile(rb"\x1b_Gi=31;([^\x1b]*)\x1b\\")
_CELL = re.compile(rb"\x1b\[6;(\d+);(\d+)t")
_ATTRIBUTES = re.compile(rb"\x1b\[\?([\d;]*)c")
_SIXEL_ATTRIBUTE = b"4"
_OTHER_KEYS = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)  # arrows and the like


@dataclass(frozen=True)
class Terminal:
    """What a terminal can draw; `cell` is a character's width and height in pixels.

    `typed` is what a person typed while it was asked: it belongs to the next line.
    """

    graphics: Graphics
    cell: Cell = DEFAULT_CELL
    typed: str = ""


NO_PICTURES = Terminal("none")


def find_out(console: Console, *, ask: Callable[[], bytes] | None = None) -> Terminal:
    """Return what the terminal behind `console`, stdin and stdout can draw; asks it, if it is one.

    `ask` returns the terminal's reply to `QUESTION`. Whatever goes wrong there means half blocks.
    """
    if not _may_be_asked(console):
        return NO_PICTURES
    blocks: Graphics = "blocks" if console.color_system in ("256", "truecolor") else "none"
    try:
        reply = (ask or ask_terminal)()
    except (OSError, ValueError, ImportError):  # no such control here: not POSIX, or closed
        return Terminal(blocks)
    return read_reply(reply, otherwise=blocks)


def _may_be_asked(console: Console) -> bool:
    """Whether a person sits at both ends and wants decoration."""
    quiet = any(os.environ.get(name) for name in ("NO_COLOR", "CI"))
    odd = os.environ.get("TERM", "") in ("", "dumb", "unknown", "linux")  # prints such questions
    ends = sys.stdin, sys.stdout
    return (
        not quiet
        and not odd
        and console.is_terminal
        and all(end is not None and end.isatty() for end in ends)
    )


def ask_terminal(seconds: float = REPLY_SECONDS) -> bytes:
    """Send `QUESTION` and return all that arrived up to the reply's end, or in `seconds`."""
    import termios
    import tty

    source, target = sys.stdin.fileno(), sys.stdout.fileno()
    before = termios.tcgetattr(source)
    received = b""
    deadline = time.monotonic() + seconds
    try:
        tty.setcbreak(source, termios.TCSANOW)  # replies are no lines, and must not be echoed
        sys.stdout.flush()
        os.write(target, QUESTION)
        while not _ATTRIBUTES.search(received):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([source], [], [], left)[0]:
                break
            piece = os.read(source, 1 << 12)
            if not piece:
                break
            received += piece
    finally:
        termios.tcsetattr(source, termios.TCSANOW, before)
    return received


def read_reply(reply: bytes, *, otherwise: Graphics = "blocks") -> Terminal:
    """Return what a reply to `QUESTION` says; `otherwise` holds where it knows no graphics."""
    kitty, size = _KITTY.search(reply), _CELL.search(reply)
    attributes = _ATTRIBUTES.search(reply)
    graphics = otherwise
    if kitty is not None and kitty[1] == b"OK":
        graphics = "kitty"
    elif attributes is not None and _SIXEL_ATTRIBUTE in attributes[1].split(b";"):
        graphics = "sixel"
    cell = (int(size[2][:6]), int(size[1][:6])) if size else _cell_of_window()
    if cell is None or not all(side in _SANE_CELL for side in cell):
        cell = DEFAULT_CELL
    for known in (_KITTY, _CELL, _ATTRIBUTES, _OTHER_KEYS):
        reply = known.sub(b"", reply)
    typed = reply.decode(errors="ignore").replace("\r", "\n")
    return Terminal(graphics, cell, "".join(c for c in typed if c == "\n" or c.isprintable()))


def _cell_of_window() -> Cell | None:
    """Return a character's size as the system knows it; None where it does not."""
    try:
        import fcntl
        import struct
        import termios

        window = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
        rows, columns, width, height = struct.unpack("4H", window)
        return width // columns, height // rows
    except (ImportError, OSError, ValueError, ZeroDivisionError):
        return None


# --- drawing --------------------------------------------------------------------------------------


def caption(picture: Picture) -> str:
    """Return name and size, such as "circle.png, 640 x 480"."""
    return f"{plain(picture.name)}, {picture.width} x {picture.height}"


def draw(picture: Picture, console: Console, terminal: Terminal) -> None:
    """Print a picture as `terminal` can, in at most `MAX_COLUMNS` by `MAX_ROWS`, and its caption.

    Colours that the console cannot show are replaced by its nearest ones.
    """
    if terminal.graphics != "none":
        console.print(_drawing(picture, console, terminal), end="")
    console.print(Text(caption(picture)), style="dim", soft_wrap=True)


def fit(width: int, height: int, cell: Cell, max_columns: int = MAX_COLUMNS) -> tuple[int, int]:
    """Return the columns and rows that a picture of `width` x `height` pixels takes, at least 1."""
    scale = min(max_columns * cell[0] / width, MAX_ROWS * cell[1] / height)
    columns, rows = round(width * scale / cell[0]), round(height * scale / cell[1])
    return min(max(columns, 1), max_columns), min(max(rows, 1), MAX_ROWS)


def _drawing(picture: Picture, console: Console, terminal: Terminal) -> _Blocks | _Pixels:
    columns, rows = fit(
        picture.width, picture.height, terminal.cell, min(MAX_COLUMNS, console.width)
    )
    if terminal.graphics == "blocks":
        return _Blocks(_resized(picture, columns, 2 * rows))
    image = _resized(picture, columns * terminal.cell[0], rows * terminal.cell[1])
    if terminal.graphics == "kitty":
        return _Pixels(_kitty(image, columns, rows), rows)
    from textual_image._sixel import image_to_sixels  # imports nothing that asks the terminal

    return _Pixels(image_to_sixels(image), rows)


def _resized(picture: Picture, width: int, height: int) -> Image.Image:
    return picture.rgb.resize((width, height), Image.Resampling.BOX)


def _kitty(image: Image.Image, columns: int, rows: int) -> str:
    """Return the escape sequences of kitty's graphics protocol that show `image` at the cursor."""
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    size = 1 << 12  # the protocol's limit of a piece
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    first = f"a=T,f=100,q=2,C=1,c={columns},r={rows},"
    return "".join(
        f"\x1b_G{first if n == 0 else ''}m={int(n < len(pieces) - 1)};{piece}\x1b\\"
        for n, piece in enumerate(pieces)
    )


@dataclass(frozen=True)
class _Blocks:
    """Two pixels a character: the upper one its colour, the lower one its background."""

    image: Image.Image

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pixels = np.asarray(self.image).tolist()
        for upper_row, lower_row in zip(pixels[::2], pixels[1::2], strict=True):
            for upper, lower in zip(upper_row, lower_row, strict=True):
                style = Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))
                yield Segment("▀", style)
            yield Segment.line()


@dataclass(frozen=True)
class _Pixels:
    """Escape sequences that draw at the cursor, in `rows` rows that are made free for them first.

    Terminals leave the cursor in different places after drawing, so its own place is restored.
    """

    sequences: str
    rows: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for _ in range(self.rows):
            yield Segment.line()
        # A control that does nothing keeps rich from counting and cutting the sequences.
        yield Segment(
            f"\x1b7\x1b[{self.rows}A{self.sequences}\x1b8",
            control=[(ControlType.CURSOR_FORWARD, 0)],
        )
