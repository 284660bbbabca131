"""What a chat shows: answers as they come, notes, errors and pictures.

On a terminal all of it is one conversation on stdout. Elsewhere stdout gets the answers and
nothing else; what people are told goes to stderr. Knows nothing of commands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma3vl_app.cli import load
from gemma3vl_app.cli.messages import in_options
from gemma3vl_app.cli.terminal_pictures import NO_PICTURES, Terminal, caption, draw, find_out
from gemma3vl_app.generation import Answer
from gemma3vl_app.pictures import Picture
from gemma3vl_app.plain import plain
from gemma3vl_app.stream import Stream
from gemma3vl_app.wording import describe

DRAWN_AT_ONCE = 4  # of many pictures, such as a document's pages, the others are only named


class Screen:
    """Show a chat to a person, or its answers to a program (`interactive` false)."""

    def __init__(self, *, interactive: bool, pictures: bool = True) -> None:
        self.interactive = interactive
        self._to_terminal = sys.stdout.isatty()
        together = interactive and self._to_terminal
        self.console = Console(highlight=False) if together else load.stderr
        self._terminal: Terminal | None = None if together and pictures else NO_PICTURES
        self._typed = ""

    def note(self, text: str, *, style: str = "dim") -> None:
        """Tell something beside the answers."""
        self.console.print(
            Text(plain(text)), style=style, soft_wrap=not self.console.is_terminal, highlight=False
        )

    def error(self, text: str) -> None:
        """Tell in one line what went wrong."""
        self.note(in_options(" ".join(text.splitlines())), style="red")

    def table(self, rows: Iterable[Iterable[str]]) -> None:
        """Show rows in aligned columns: wrapped on a terminal, whole and unpadded elsewhere."""
        cells = [[plain(cell) for cell in row] for row in rows]
        if not self.console.is_terminal:
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            for row in cells:
                padded = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
                self.note("  ".join(padded).rstrip())
            return
        grid = Table.grid(padding=(0, 2))
        for row in cells:
            grid.add_row(*map(Text, row))
        self.console.print(grid)

    def show(self, pictures: Iterable[Picture]) -> None:
        """Show pictures, the first `DRAWN_AT_ONCE` as the terminal can draw them."""
        for number, picture in enumerate(pictures):
            if number < DRAWN_AT_ONCE:
                draw(picture, self.console, self._drawing())
            else:
                self.note(caption(picture))

    def take_typed(self) -> str:
        """Return, once, what was typed while the terminal was asked about itself."""
        typed, self._typed = self._typed, ""
        return typed

    def follow(self, stream: Stream) -> Answer:
        """Write an answer's text as it comes, and before its first word where it stands."""
        said = ""
        try:
            with stream, self.console.status("waiting") as status:
                for chunk in stream:
                    if chunk.text:
                        status.stop()  # it must not draw into the answer
                        self._write(chunk.text)
                        said = chunk.text
                    elif not said:
                        status.update(describe(chunk.status))
        finally:
            if said and not said.endswith("\n"):
                self._write("\n")
        return stream.answer

    def _write(self, text: str) -> None:
        sys.stdout.write(plain(text) if self._to_terminal else text)
        sys.stdout.flush()

    def _drawing(self) -> Terminal:
        if self._terminal is None:
            self._terminal = find_out(self.console)
            self._typed += self._terminal.typed
        return self._terminal
