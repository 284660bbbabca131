"""`Shown`: something to look at, as HTML for notebooks and as plain text for terminals."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

# What a notebook's theme gives is used (its text colour, through currentColor), so that all of it
# can be read in light and dark.
FAINT = "color-mix(in srgb, currentColor 9%, transparent)"
LINE = "color-mix(in srgb, currentColor 28%, transparent)"
MUTED = "opacity:.75;font-size:.85em"
# Notebooks draw what stands between dollars as mathematics; ours is what people and models said.
# The first class is for MathJax 2 (Colab), the second for MathJax 3 (JupyterLab).
NO_MATH = ("tex2jax_ignore", "mathjax_ignore")


@dataclass(frozen=True)
class Shown:
    """What a notebook shows: `html`, already escaped, and the same as `text` for a terminal."""

    html: str
    text: str

    def bundle(self) -> dict[str, str]:
        """Return both by MIME type."""
        return {"text/html": self._repr_html_(), "text/plain": self.text}

    def _repr_html_(self) -> str:
        return f'<div class="{" ".join(NO_MATH)}">{self.html}</div>'

    def __repr__(self) -> str:
        return self.text


def said(text: str) -> str:
    """Return text of people and models as HTML: line breaks kept, nothing of it acts."""
    return f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{escape(text)}</div>'


def folded(summary: str, html: str) -> str:
    """Return `html` folded away under a line of text; a click opens it."""
    return (
        f'<details style="{MUTED}"><summary style="cursor:pointer">{escape(summary)}</summary>'
        f'<div style="padding:.3em 0 .3em 1.2em">{html}</div></details>'
    )


def table(rows: list[tuple[str, ...]], head: tuple[str, ...] = (), *, numbers: bool = True) -> str:
    """Return a small table; the first column names, the others are `numbers`, or text."""
    others = "text-align:right" if numbers else "text-align:left;white-space:pre-wrap"

    def row(cells: tuple[str, ...], tag: str) -> str:
        styled = (
            f'<{tag} style="padding:.1em .8em .1em 0;vertical-align:top;'
            f'{others if n else "text-align:left"}">{escape(cell)}</{tag}>'
            for n, cell in enumerate(cells)
        )
        return f"<tr>{''.join(styled)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return (
        f'<table style="border-collapse:collapse">{row(head, "th") if head else ""}{body}</table>'
    )
