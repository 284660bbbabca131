"""Text of people and models inside Markdown: its formatting stays, what could do harm does not.

No HTML, picture or link definition of such a text takes effect, its links lead to web addresses
only, its headings (but those in lists and quotes) stand below the document's, and its code blocks
end where the text ends. That holds for renderers that follow CommonMark, with HTML allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gemma3vl_app.export.wording import one_line, printable

_LIST_MARKS = r"[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*"
_FENCE = re.compile(
    rf"(?P<before>{_LIST_MARKS})(?:(?P<ticks>`{{3,}})(?P<info>[^`]*)|(?P<waves>~{{3,}})(?P<info2>.*))"
)
_TICKS = re.compile("`+")
_HEADING = re.compile(r"( {0,3})(#{1,6})(?=[ \t]|$)")
_UNDERLINE = re.compile(r"( {0,3})(=+|-+)[ \t]*")
_LINK = re.compile(r"\]\((?!https?://)", re.IGNORECASE)
_TEXT_HEADINGS_FROM = 3  # those of turns are on the second level


def escape_line(text: str) -> str:
    """Return `text` as one line in which nothing is markup, for headings, captions and names."""
    return re.sub(r"([\\`*_\[\]<>|~&$!#])", r"\\\1", one_line(text))


def harmless(text: str) -> str:
    """Return a text of several lines as Markdown that keeps its own formatting; see the module."""
    lines: list[str] = []
    for is_code, block in _blocks(printable(text).split("\n")):
        lines += ["", *block, ""] if is_code else _prose(block)
    return "\n".join(lines).strip("\n")


# --- code blocks ----------------------------------------------------------------------------------


def _blocks(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Split lines into prose and code, the latter in fences that its content cannot close."""
    prose: list[str] = []
    at = 0
    while at < len(lines):
        opening = _FENCE.fullmatch(lines[at])
        at += 1
        if opening is None:
            prose.append(lines[at - 1])
            continue
        if opening["before"].strip():
            prose.append(opening["before"])  # the list item that the code is in
        mark = opening["ticks"] or opening["waves"]
        closing = re.compile(rf"[ \t]*{mark[0]}{{{len(mark)},}}[ \t]*")
        code = []
        while at < len(lines) and not closing.fullmatch(lines[at]):
            code.append(lines[at])
            at += 1
        at += 1  # past the closing fence
        yield False, prose
        prose = []
        yield True, _fenced(code, opening["info"] or opening["info2"] or "", opening["before"])
    yield False, prose


def _fenced(code: list[str], info: str, before: str) -> list[str]:
    """Return a code block at the left margin, where only its own fence ends it."""
    runs = (len(run) for line in code for run in re.findall("`+", line))
    fence = "`" * max(3, 1 + max(runs, default=0))
    language = re.match(r"\s*([\w+#.-]{0,30})", info, re.ASCII)
    indented = re.compile(f" {{0,{len(before)}}}")
    return [
        fence + (language[1] if language else ""),
        *(indented.sub("", line, count=1) for line in code),
        fence,
    ]


# --- prose ----------------------------------------------------------------------------------------


def _prose(lines: list[str]) -> list[str]:
    found: list[str] = []
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip(" \t"):
            paragraph.append(line)
            continue
        found += [*_paragraph(paragraph), ""]
        paragraph = []
    return found[:-1]


def _paragraph(lines: list[str]) -> Iterator[str]:
    """Escape lines that stand together; each but the last ends in a line break."""
    spans = [_code_spans(line) for line in lines]
    # Only where every line closes its own code spans do all renderers agree on what is code; and
    # the cells of a table cut code in two.
    sure = all(spans) and not any("|" in line for line in lines)
    for at, (line, pieces) in enumerate(zip(lines, spans, strict=True)):
        pieces = pieces if sure and pieces else [line]
        text = "".join(_escape(piece) if k % 2 == 0 else piece for k, piece in enumerate(pieces))
        text = _HEADING.sub(_lower, text, count=1) if _HEADING.match(text) else text
        if underline := _UNDERLINE.fullmatch(text):
            if at and underline[2].startswith("---"):
                yield ""  # a rule, as it would be after an empty line, not a heading
            elif at:
                text = f"{underline[1]}\\{underline[2]}"
        yield text.rstrip(" \t") + ("  " if at + 1 < len(lines) else "")


def _code_spans(line: str) -> list[str] | None:
    """Split a line into text, code, text, code, ...; None where a span does not end in the line."""
    if "\\`" in line:
        return None
    pieces, at = [], 0
    while opening := _TICKS.search(line, at):
        closing = re.compile(rf"(?<!`){opening[0]}(?!`)").search(line, opening.end())
        if closing is None:
            return None
        pieces += [line[at : opening.start()], line[opening.start() : closing.end()]]
        at = closing.end()
    return [*pieces, line[at:]]


def _escape(text: str) -> str:
    text = text.replace("<", "&lt;").replace("![", "!\\[").replace("]:", "]\\:")
    return _LINK.sub(r"]\\(", text)


def _lower(heading: re.Match[str]) -> str:
    level = min(6, len(heading[2]) + _TEXT_HEADINGS_FROM - 1)
    return heading[1] + "#" * level
