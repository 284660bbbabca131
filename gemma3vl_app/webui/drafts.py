"""What a person is about to send: its pictures, and what they would cost.

Files become pictures once, when they are put into the box; PDFs become their pages. Knows nothing
of gradio or HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma3vl_app.errors import PictureError, public_text
from gemma3vl_app.generation import Box, Preview
from gemma3vl_app.pictures import Picture
from gemma3vl_app.webui.shown_pictures import ShownPictures

MOST_PICTURES = 20  # in one turn
_SQUASHED = 1.5  # sides that differ by more are told: the tower sees a square


@dataclass(frozen=True)
class Item:
    """A picture in the box: its `file`, size in pixels, tokens, and the crops that come with it."""

    file: str
    name: str
    width: int
    height: int
    tokens: int
    crops: tuple[Box, ...] = ()

    @property
    def is_squashed(self) -> bool:
        """Whether the model will see it so much distorted that it matters."""
        longer, shorter = max(self.width, self.height), min(self.width, self.height)
        return not self.crops and longer > _SQUASHED * shorter


@dataclass(frozen=True)
class Weighed:
    """What a draft would cost: `used_tokens` of `context_tokens`, this conversation included.

    `error` says in a sentence which file could not be taken; the others are there. Where nothing
    could be weighed at all, `items` is None: they are what they were.
    """

    items: tuple[Item, ...] | None = ()
    used_tokens: int = 0
    context_tokens: int = 0
    error: str = ""


class DraftPictures:
    """The pictures of one tab's box, by the path of their file: each is decoded once."""

    def __init__(self, shown: ShownPictures) -> None:
        self._shown = shown
        self._known: dict[str, Picture] = {}

    def put_back(self, pictures: Sequence[Picture], conversation: str) -> tuple[str, ...]:
        """Take pictures that come back from a message; returns their files."""
        files = tuple(self._shown.path(conversation, picture) for picture in pictures)
        self._known |= dict(zip(files, pictures, strict=True))
        return files

    def open(self, files: Sequence[str], conversation: str) -> list[tuple[str, Picture]]:
        """Return each picture with its file; the pages of a PDF are written as files of their own.

        Raises `PictureError` for what is no picture, and for too many.
        """
        opened: list[tuple[str, Picture]] = []
        for file in files:
            opened += self._open_file(file, conversation)
            _refuse_too_many(len(opened))
        self._known = dict(opened)
        return opened

    def open_what_can_be(
        self, files: Sequence[str], conversation: str
    ) -> tuple[list[tuple[str, Picture]], str]:
        """Return what `open` does, without the files that cannot be taken, and why the last."""
        opened: list[tuple[str, Picture]] = []
        error = ""
        for file in files:
            try:
                more = self._open_file(file, conversation)
                _refuse_too_many(len(opened) + len(more))
                opened += more
            except PictureError as refused:
                error = public_text(refused)
        self._known = dict(opened)
        return opened, error

    def _open_file(self, file: str, conversation: str) -> list[tuple[str, Picture]]:
        if file in self._known:
            return [(file, self._known[file])]
        if Path(file).suffix.lower() == ".pdf":
            pages = Picture.pages(file, name=Path(file).name)
            _refuse_too_many(len(pages))
            return list(zip(self.put_back(pages, conversation), pages, strict=True))
        return [(file, Picture.open(file, name=Path(file).name))]


def _refuse_too_many(count: int) -> None:
    if count > MOST_PICTURES:
        raise PictureError(
            f"A message takes up to {MOST_PICTURES} pictures; these are {count}. Send some of them "
            "with the next one."
        )


def items_of(
    opened: Sequence[tuple[str, Picture]], preview: Preview, image_tokens: int
) -> tuple[Item, ...]:
    """Return what the box shows; `preview` is of a conversation that ends with these pictures."""
    crops = preview.crops[len(preview.crops) - len(opened) :]
    return tuple(
        Item(
            file,
            picture.name,
            picture.width,
            picture.height,
            image_tokens * (1 + len(boxes)),
            boxes,
        )
        for (file, picture), boxes in zip(opened, crops, strict=True)
    )
