"""A chat as Markdown: a heading for each turn, and its pictures in a folder beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from gemma3vl_app.export.branches import others, path_to, side_branches, systems
from gemma3vl_app.export.markdown_text import escape_line, harmless
from gemma3vl_app.export.pictures import PictureFiles
from gemma3vl_app.export.wording import contents, speaker, summary, title
from gemma3vl_app.export.write import Document
from gemma3vl_app.messages import Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.transcript import Transcript, Turn


def markdown(transcript: Transcript, folder: str, branches: bool) -> Document:
    """Return the page; its pictures lie in `folder`."""
    pictures = PictureFiles(transcript, folder, exact=False)
    paragraphs = [*_page(transcript, pictures, branches)]
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    return Document(text + "\n", pictures.files)


def _page(transcript: Transcript, pictures: PictureFiles, branches: bool) -> Iterator[str]:
    shown = path_to(transcript, transcript.head)
    side = side_branches(transcript)
    turns = [transcript.turns[index] for index in shown]
    yield f"# {escape_line(title(turns or transcript.turns))}"
    yield _small(contents(turns))
    system: str | None = None
    for at, (index, holds) in enumerate(zip(shown, systems(transcript, shown), strict=True)):
        if holds != system:
            yield from _system(holds, "##")
            system = holds
        yield from _turn(transcript.turns[index], pictures, "##")
        yield _small(others(side, at, len(shown), branches))
    yield _small(others(side, len(shown), len(shown), branches))
    if branches and side:
        yield "## Versions not chosen"
        for branch in side:
            yield f"### From message {branch.depth + 1} on"
            before = systems(transcript, branch.turns)
            for index, holds in zip(branch.turns, before, strict=True):
                if holds != system:
                    yield from _system(holds, "####")
                    system = holds
                yield from _turn(transcript.turns[index], pictures, "####")


def _turn(turn: Turn, pictures: PictureFiles, heading: str) -> Iterator[str]:
    yield f"{heading} {escape_line(speaker(turn))}"
    for is_text, parts in groupby(turn.message.parts, lambda part: isinstance(part, Text)):
        if is_text:
            yield harmless("".join(part.text for part in parts if isinstance(part, Text)))
        else:
            yield "\n".join(_picture(part, pictures) for part in parts if isinstance(part, Picture))
    if turn.generated:
        yield _small(summary(turn))


def _picture(picture: Picture, pictures: PictureFiles) -> str:
    return f"![{escape_line(picture.name) or 'picture'}]({pictures.link(picture)})"


def _system(system: str | None, heading: str) -> Sequence[str]:
    return [f"{heading} System", harmless(system or "") or _small("None from here on.")]


def _small(line: str) -> str:
    return f"*{escape_line(line)}*" if line else ""
