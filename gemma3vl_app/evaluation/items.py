"""What is asked in an evaluation: a question about pictures, and the answers that count."""

from __future__ import annotations

from dataclasses import dataclass

from gemma3vl_app.lazy_pictures import LazyPicture

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ALL = "all"  # the row of all kinds together; no kind is called so


@dataclass(frozen=True)
class Item:
    """One question; pictures are opened when it is asked.

    `id` is unique in its data. `answers` are the references, any of which is right; where there are
    `options`, it is the letter of the right one. `kinds` are the groups that it is counted in.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    pictures: tuple[LazyPicture, ...]
    kinds: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def letters(self) -> str:
        """The letters of the options, in order."""
        return LETTERS[: len(self.options)]
