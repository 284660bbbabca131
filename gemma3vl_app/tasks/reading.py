"""Reading text from pages: pictures or PDFs, long ones in parts, several side by side, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Unpack

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.generation import Answer, Chunk
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Crops, Picture, PictureSource
from gemma3vl_app.stream import Stream
from gemma3vl_app.tasks import prompts
from gemma3vl_app.tasks.fences import Unfencing
from gemma3vl_app.tasks.long_pages import split_page
from gemma3vl_app.tasks.requests import (
    TaskOptions,
    TaskRequest,
    naming,
    open_pictures,
    streams_in_order,
)
from gemma3vl_app.tasks.results import PAGE_BREAK, PART_BREAK, PageReading, Reading

ANSWER_FACTOR = 4  # a full page has more words than an answer usually has


def read_text(
    backend: Backend,
    page: PictureSource | Iterable[PictureSource],
    *,
    layout: prompts.Layout = "plain",
    crops: Crops = "auto",
    **options: Unpack[TaskOptions],
) -> Reading:
    """Read the text of a page, of a PDF, or of several of them, line by line.

    Very tall pages are read in parts, which never cut a line. `options` are those of
    `Backend.stream`; `max_new_tokens` is per part. Raises `PictureError` for a bad picture, and
    what a page failed with, its name before it.
    """
    reader = Reader(backend, open_pictures(page, crops), layout=layout, **options)
    for _ in reader:
        pass
    return reader.reading


@dataclass(frozen=True)
class PageRequest:
    """What is asked to read one page: a request for each of its parts, top to bottom."""

    name: str
    parts: tuple[TaskRequest, ...]


def read_request(page: Picture, *, layout: prompts.Layout = "plain") -> PageRequest:
    """Return what is asked to read a page."""
    if layout not in prompts.READ:
        raise ConversationError(f"layout is {layout!r}; it must be 'plain' or 'markdown'.")
    prompt = prompts.READ[layout].text
    parts = (
        TaskRequest(Conversation().user(part, prompt), answer_factor=ANSWER_FACTOR)
        for part in split_page(page)
    )
    return PageRequest(page.name, tuple(parts))


class Reader:
    """Iterate over the text of pages as it is read; `reading` is all of it, at the end.

    The chunks' texts, joined, are `reading.text`. Parts are asked side by side and told in order.
    """

    def __init__(
        self,
        backend: Backend,
        pages: Iterable[Picture],
        *,
        layout: prompts.Layout = "plain",
        **options: Unpack[TaskOptions],
    ) -> None:
        requests = [read_request(page, layout=layout) for page in pages]
        if not requests:
            raise ConversationError("There is no page to read. Give a picture or a PDF.")
        self._pages: list[PageReading] = []
        self._asked = len(requests)
        self._chunks = self._read(backend, requests, options)

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    @property
    def reading(self) -> Reading:
        """What was read; raises `EngineError` until every page has been."""
        if len(self._pages) < self._asked:
            raise EngineError("The pages have not been read to their end. Iterate to it first.")
        return Reading(tuple(self._pages))

    def _read(
        self, backend: Backend, pages: list[PageRequest], options: TaskOptions
    ) -> Iterator[Chunk]:
        requests = (part for page in pages for part in page.parts)
        streams = streams_in_order(backend, requests, options)
        try:
            for page in pages:
                if self._pages:
                    yield Chunk(text=PAGE_BREAK)
                with naming(page.name):
                    answers: list[Answer] = []
                    for _ in page.parts:
                        if answers:
                            yield Chunk(text=PART_BREAK)
                        stream = next(streams)
                        yield from _without_fence(stream)
                        answers.append(stream.answer)
                self._pages.append(PageReading(page.name, tuple(answers)))
        finally:
            streams.close()


def _without_fence(stream: Stream) -> Iterator[Chunk]:
    unfencing = Unfencing()
    for chunk in stream:
        yield Chunk(unfencing.feed(chunk.text), chunk.tokens, chunk.status)
    yield Chunk(text=unfencing.finish())
