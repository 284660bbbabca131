"""What tasks return: each holds the answer it came from, and as a string it is its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from gemma3vl_app.generation import Answer
from gemma3vl_app.tasks.fences import unfenced

T = TypeVar("T")
PART_BREAK, PAGE_BREAK = "\n", "\n\n"


@dataclass(frozen=True)
class TaskResult:
    """A text, and the answer it was taken from."""

    answer: Answer

    @property
    def text(self) -> str:
        """The answer's text, without white space around it."""
        return self.answer.text.strip()

    @property
    def complete(self) -> bool:
        """Whether the model came to its end: false where `max_new_tokens` cut the answer."""
        return self.answer.finish_reason == "stop"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Caption(TaskResult):
    """What a picture shows, in words."""


@dataclass(frozen=True)
class Reply(TaskResult):
    """The answer to a question about pictures."""


@dataclass(frozen=True)
class Comparison(TaskResult):
    """What pictures have in common, and how they differ."""


@dataclass(frozen=True)
class Extraction(TaskResult, Generic[T]):
    """Data taken from pictures: `value` is what the JSON in `answer` says."""

    value: T


@dataclass(frozen=True)
class PageReading:
    """The text of one page; a long page was read in several parts, each with its answer."""

    name: str
    answers: tuple[Answer, ...]

    @property
    def text(self) -> str:
        """The parts' texts, one below the other."""
        return PART_BREAK.join(unfenced(answer.text) for answer in self.answers)

    @property
    def lines(self) -> tuple[str, ...]:
        """The page's lines in reading order, without empty ones."""
        return tuple(line for line in self.text.splitlines() if line.strip())

    @property
    def complete(self) -> bool:
        """Whether no part was cut."""
        return all(answer.finish_reason == "stop" for answer in self.answers)


@dataclass(frozen=True)
class Reading:
    """The text of pages, in the order they were given."""

    pages: tuple[PageReading, ...]

    @property
    def text(self) -> str:
        """The pages' texts, with an empty line between two pages."""
        return PAGE_BREAK.join(page.text for page in self.pages)

    @property
    def lines(self) -> tuple[str, ...]:
        """All lines in reading order, without empty ones."""
        return tuple(line for page in self.pages for line in page.lines)

    @property
    def complete(self) -> bool:
        """Whether no part of any page was cut at `max_new_tokens`."""
        return all(page.complete for page in self.pages)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Every answer, in reading order."""
        return tuple(answer for page in self.pages for answer in page.answers)

    def __str__(self) -> str:
        return self.text
