"""An answer that grows below the cell, and stops when the cell is interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator

from gemma3vl_app.notebook.displays import shown
from gemma3vl_app.notebook.jupyter import in_jupyter, output
from gemma3vl_app.notebook.shown import MUTED, Shown, said
from gemma3vl_app.plain import plain
from gemma3vl_app.stream import Stream
from gemma3vl_app.wording import describe, sentence, summary

SECONDS_BETWEEN_LOOKS = 0.1  # ten a second read as flowing text; more only makes a page busy


def show(stream: Stream) -> None:
    """Show an answer while it is written; it is in `stream.answer` afterwards.

    One output is replaced in place, so that nothing flickers. Interrupting the cell stops the
    model at its next step; what it has said stays, here and in the `Chat`.
    """
    with stream:  # an interrupt ends it, wherever it comes
        if in_jupyter():
            _grow(stream)
        else:
            _print(stream)


def growing(stream: Stream) -> Iterator[tuple[str, str]]:
    """Yield what has been said so far and where the request stands, not too often to be drawn."""
    text, looked = "", 0.0
    try:
        for chunk in stream:
            text += chunk.text
            if time.monotonic() - looked >= SECONDS_BETWEEN_LOOKS:
                yield text, f"{sentence(describe(chunk.status))} …"
                looked = time.monotonic()
    except Exception:
        yield text, ""  # what was said before it failed
        raise


def _grow(stream: Stream) -> None:
    text = ""
    update = output(_growing("", "Sent …"))
    try:
        for text, line in growing(stream):
            update(_growing(text, line))
    except KeyboardInterrupt:
        stream.cancel()
        update(shown(stream.answer))  # there within a step
        raise
    except BaseException:
        update(Shown(said(text), plain(text)))
        raise
    update(shown(stream.answer))


def _growing(text: str, line: str) -> Shown:
    """Return an answer in the making, as high as the finished one: nothing jumps at its end."""
    return Shown(f'{said(text)}<div style="{MUTED}">{line}</div>', f"{plain(text)}\n\n({line})")


def _print(stream: Stream) -> None:
    try:
        for chunk in stream:
            print(plain(chunk.text), end="", flush=True)
    finally:
        print()
    print(f"({summary(stream.answer)})")
