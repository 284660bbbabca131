"""A chat as one HTML page that loads and runs nothing: text is text, pictures are inside."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from gemma3vl_app.export.branches import Branch, others, path_to, side_branches, systems
from gemma3vl_app.export.html_style import STYLE
from gemma3vl_app.export.pictures import encode_shown
from gemma3vl_app.export.wording import (
    contents,
    facts,
    one_line,
    printable,
    speaker,
    summary,
    title,
)
from gemma3vl_app.export.write import Document
from gemma3vl_app.messages import Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.transcript import Generated, Transcript, Turn

CONTENT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
"""


def html_page(transcript: Transcript, folder: str, branches: bool) -> Document:
    """Return the page; `folder` is not used, since the pictures are inside."""
    return Document("\n".join(_Page(transcript, branches).lines()) + "\n")


class _Page:
    """Writes one page; remembers the pictures that it holds, each of which is embedded once."""

    def __init__(self, transcript: Transcript, branches: bool) -> None:
        self._transcript = transcript
        self._shown = path_to(transcript, transcript.head)
        self._branches = side_branches(transcript)
        self._show_branches = branches
        self._system: str | None = None  # the one shown last
        self._turns = 0
        self._pictures: dict[str, str] = {}  # the anchor of each embedded picture, by digest

    def lines(self) -> Iterator[str]:
        turns = [self._transcript.turns[index] for index in self._shown]
        name = title(turns or self._transcript.turns)
        yield HEAD.format(policy=CONTENT_POLICY, title=escape(name), style=STYLE)
        yield f'<body>\n<header>\n<h1 dir="auto">{escape(name)}</h1>'
        yield f"<p>{escape(contents(turns))}</p>\n</header>\n<main>"
        yield from self._turns_with_systems(self._shown, heading="h2")
        yield from self._versions(len(self._shown))
        yield "</main>\n<footer>Exported by gemma3vl. Models make mistakes: check what matters."
        yield "</footer>\n</body>\n</html>"

    def _turns_with_systems(self, path: Sequence[int], heading: str) -> Iterator[str]:
        """Write turns, the system text where it changes, and the versions of shown turns."""
        for at, (index, system) in enumerate(
            zip(path, systems(self._transcript, path), strict=True)
        ):
            if system != self._system:
                self._system = system
                yield _system(system, heading)
            yield from self._turn(self._transcript.turns[index], heading)
            if path is self._shown:
                yield from self._versions(at)

    def _turn(self, turn: Turn, heading: str) -> Iterator[str]:
        self._turns += 1
        anchor = f"turn-{self._turns}"
        yield f'<article class="turn {turn.message.role}" aria-labelledby="{anchor}">'
        yield f'<{heading} id="{anchor}"><bdi>{escape(speaker(turn))}</bdi></{heading}>'
        for is_text, parts in groupby(turn.message.parts, lambda part: isinstance(part, Text)):
            if is_text:
                text = "".join(part.text for part in parts if isinstance(part, Text))
                yield _text(text)
            else:
                yield '<div class="pictures">'
                yield from (self._picture(part) for part in parts if isinstance(part, Picture))
                yield "</div>"
        if turn.generated:
            yield _details(turn)
        yield "</article>"

    def _picture(self, picture: Picture) -> str:
        name = escape(one_line(picture.name) or "picture")
        caption = f"<bdi>{name}</bdi>, {picture.width:,} &times; {picture.height:,}"
        if anchor := self._pictures.get(picture.sha256):
            return f'<div class="again"><a href="#{anchor}">{caption}, shown above</a></div>'
        anchor = f"picture-{len(self._pictures) + 1}"
        self._pictures[picture.sha256] = anchor
        encoded = encode_shown(picture)
        data = base64.b64encode(encoded.data).decode("ascii")
        return (
            f'<figure id="{anchor}"><img alt="{name}" width="{encoded.width}" '
            f'height="{encoded.height}" src="data:image/{encoded.format};base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )

    def _versions(self, position: int) -> Iterator[str]:
        """Say how many other versions there are of a shown turn, or show them."""
        here = [branch for branch in self._branches if branch.position == position]
        if not here:
            return
        line = others(here, position, len(self._shown), self._show_branches)
        if not self._show_branches:
            yield f'<p class="versions again">{line}</p>'
            return
        yield f'<details class="versions"><summary>{line}</summary>'
        for number, branch in enumerate(here, start=1):
            yield f'<section class="branch"><p>{_branch(branch, number, len(here))}</p>'
            before = self._system
            yield from self._turns_with_systems(branch.turns, heading="h3")
            self._system = before
            yield "</section>"
        yield "</details>"


def _system(system: str | None, heading: str) -> str:
    text = _text(system) if system else '<div class="text">No system text from here on.</div>'
    return f'<section class="turn system"><{heading}>System</{heading}>{text}</section>'


def _text(text: str) -> str:
    """Return people's or a model's text as it is; its language is not known (lang="")."""
    return f'<div class="text" dir="auto" lang="">{escape(printable(text))}</div>'


def _details(turn: Turn) -> str:
    tables = "".join(_table(each) for each in turn.generated)
    return f"<details><summary><bdi>{escape(summary(turn))}</bdi></summary>{tables}</details>"


def _table(generated: Generated) -> str:
    rows = (
        f"<dt>{name}</dt><dd><bdi>{escape(value)}</bdi></dd>" for name, value in facts(generated)
    )
    return f"<dl>{''.join(rows)}</dl>"


def _branch(branch: Branch, number: int, count: int) -> str:
    where = f"from message {branch.depth + 1} on"
    return (
        f"Version {number} of {count} not chosen, {where}" if count > 1 else f"Not chosen, {where}"
    )
