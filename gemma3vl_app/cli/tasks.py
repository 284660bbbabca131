"""`gemma3vl caption`, `ocr`, `compare` and `extract`: tasks with a prompt of their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma3vl_app.cli import exit_codes, load, one_shot
from gemma3vl_app.errors import Gemma3VLError, PictureError
from gemma3vl_app.schemas import read_schema

if TYPE_CHECKING:
    from gemma3vl_app.backends.protocol import Backend
    from gemma3vl_app.pictures import Picture
    from gemma3vl_app.tasks import Reading, TaskRequest
    from gemma3vl_app.tasks.prompts import Detail, Layout


def caption(
    pictures: one_shot.Pictures = None,
    detailed: Annotated[
        bool, typer.Option("--detailed", help="A paragraph in place of a sentence.")
    ] = False,
    model: load.ModelOption = "demo",
    max_new_tokens: one_shot.MaxNewTokens = None,
    seed: one_shot.Seed = None,
    crops: one_shot.Crops = "auto",
    as_json: one_shot.AsJson = False,
    logprobs: one_shot.Logprobs = None,
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    context_tokens: load.ContextTokens = None,
    revision: load.Revision = None,
    adapter: load.Adapters = None,
    draft: load.Draft = None,
) -> None:
    """Say what pictures show; several get a line each, with their name.

    Of several, those that fail are named with the reason, and the exit code is 3 then.

    Example: gemma3vl caption docs/circle.png
    """
    wishes = load.read_wishes(
        weights, device_map, max_memory, context_tokens, revision, adapter, draft
    )
    shot = one_shot.Shot(model, wishes, max_new_tokens, seed, as_json, logprobs)
    paths = one_shot.picture_paths(pictures)
    with load.spinner("Reading the pictures"):
        from gemma3vl_app.tasks.ask import caption_request

        named, failed = _open_each(paths, crops)
        detail: Detail = "detailed" if detailed else "short"
        requests = [(name, caption_request(picture, detail=detail)) for name, picture in named]
    if requests:
        with shot.load() as backend:
            if len(requests) == 1 and not (failed or as_json):
                shot.tell(backend, requests[0][1])
            else:
                failed += _caption_each(shot, backend, requests)
    if failed:
        raise typer.Exit(exit_codes.INCOMPLETE)


def ocr(
    pages: one_shot.Pictures = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Keep headings, lists and tables, as Markdown.")
    ] = False,
    model: load.ModelOption = "demo",
    max_new_tokens: one_shot.MaxNewTokens = None,
    seed: one_shot.Seed = None,
    crops: one_shot.Crops = "auto",
    as_json: one_shot.AsJson = False,
    logprobs: one_shot.Logprobs = None,
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    context_tokens: load.ContextTokens = None,
    revision: load.Revision = None,
    adapter: load.Adapters = None,
    draft: load.Draft = None,
) -> None:
    """Read the text of pages: pictures or PDFs, long ones in parts, line by line.

    Where a part was cut at --max-new-tokens, that is told and the exit code is 3.

    Example: gemma3vl ocr page.png --model 4b-it
    """
    wishes = load.read_wishes(
        weights, device_map, max_memory, context_tokens, revision, adapter, draft
    )
    shot = one_shot.Shot(model, wishes, max_new_tokens, seed, as_json, logprobs)
    paths = one_shot.picture_paths(pages)
    with load.spinner("Reading the pages"):
        from gemma3vl_app.tasks.reading import Reader

        pictures = [picture for _, picture in one_shot.open_pictures(paths, crops)]
    with shot.load() as backend:
        one_shot.note_demo(backend, "reads a few large words, with mistakes")
        layout: Layout = "markdown" if markdown else "plain"
        reader = Reader(backend, pictures, layout=layout, **shot.options(backend))
        one_shot.follow(reader, silent=as_json)
    if as_json:
        _tell_reading_as_json(shot, backend, reader.reading)
    else:
        typer.echo()
    _tell_what_was_cut(reader.reading)


def compare(
    pictures: one_shot.Pictures = None,
    question: Annotated[
        str | None,
        typer.Option(help='What to find out; it may speak of "picture 2".', metavar="TEXT"),
    ] = None,
    model: load.ModelOption = "demo",
    max_new_tokens: one_shot.MaxNewTokens = None,
    seed: one_shot.Seed = None,
    crops: one_shot.Crops = "auto",
    as_json: one_shot.AsJson = False,
    logprobs: one_shot.Logprobs = None,
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    context_tokens: load.ContextTokens = None,
    revision: load.Revision = None,
    adapter: load.Adapters = None,
    draft: load.Draft = None,
) -> None:
    """Say what two or more pictures have in common and how they differ.

    Example: gemma3vl compare before.png after.png --model 4b-it
    """
    wishes = load.read_wishes(
        weights, device_map, max_memory, context_tokens, revision, adapter, draft
    )
    shot = one_shot.Shot(model, wishes, max_new_tokens, seed, as_json, logprobs)
    paths = one_shot.picture_paths(pictures)
    with load.spinner("Reading the pictures"):
        from gemma3vl_app.tasks.ask import compare_request

        opened = [picture for _, picture in one_shot.open_pictures(paths, crops)]
        request = compare_request(opened, question)
    with shot.load() as backend:
        one_shot.note_demo(backend, "hardly compares pictures")
        shot.tell(backend, request)


def extract(
    schema: Annotated[
        Path, typer.Option(help="A file with the JSON schema of the data.", metavar="FILE")
    ],
    pictures: one_shot.Pictures = None,
    instructions: Annotated[
        str | None, typer.Option(help="More about what is wanted.", metavar="TEXT")
    ] = None,
    model: load.ModelOption = "demo",
    max_new_tokens: one_shot.MaxNewTokens = None,
    seed: one_shot.Seed = None,
    crops: one_shot.Crops = "auto",
    as_json: one_shot.AsJson = False,
    logprobs: one_shot.Logprobs = None,
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    context_tokens: load.ContextTokens = None,
    revision: load.Revision = None,
    adapter: load.Adapters = None,
    draft: load.Draft = None,
) -> None:
    """Take data from pictures as a JSON schema says, and print it as one line of JSON.

    Example: gemma3vl extract receipt.jpg --schema receipt.json --model 4b-it
    """
    wishes = load.read_wishes(
        weights, device_map, max_memory, context_tokens, revision, adapter, draft
    )
    shot = one_shot.Shot(model, wishes, max_new_tokens, seed, as_json, logprobs)
    shape = read_schema(schema)
    paths = one_shot.picture_paths(pictures)
    with load.spinner("Reading the pictures"):
        from gemma3vl_app.tasks.extraction import extract_request, read_value

        opened = [picture for _, picture in one_shot.open_pictures(paths, crops)]
        request = extract_request(opened, shape, instructions=instructions)
    with shot.load() as backend:
        one_shot.note_demo(backend, "hardly reads, and the data it gives are guesses")
        with request.stream(backend, shot.options(backend)) as stream:
            one_shot.follow(stream, silent=True)  # half a value is none
    value = read_value(stream.answer, shape)
    if as_json:
        shot.tell_json(backend, stream.answer.text.strip(), [stream.answer], value=value)
    else:
        one_shot.write_json(value)


def _open_each(
    paths: Sequence[Path], crops: one_shot.Crops
) -> tuple[list[tuple[str, Picture]], int]:
    """Open pictures by name, and tell which cannot be; returns their number, too.

    One that is alone raises its `PictureError`: there is nothing else to do.
    """
    found: list[tuple[str, Picture]] = []
    failed = 0
    for path in paths:
        try:
            found += one_shot.open_named(path, crops)
        except PictureError as error:
            if len(paths) == 1:
                raise
            failed += 1
            one_shot.note_error(error)
    return found, failed


def _caption_each(
    shot: one_shot.Shot, backend: Backend, requests: Sequence[tuple[str, TaskRequest]]
) -> int:
    """Caption pictures side by side, a line for each in the order given; return how many failed."""
    from gemma3vl_app.tasks.requests import naming, streams_in_order

    streams = streams_in_order(backend, [request for _, request in requests], shot.options(backend))
    failed = 0
    for (name, _), stream in zip(requests, streams, strict=True):
        try:
            with naming(name):
                one_shot.follow(stream, silent=True)
        except Gemma3VLError as error:
            if len(requests) == 1:
                raise
            failed += 1
            one_shot.note_error(error)
            continue
        words = " ".join(stream.answer.text.split())
        if shot.as_json:
            shot.tell_json(backend, words, [stream.answer], picture=name)
        else:
            one_shot.write(f"{name}: {words}\n")
            sys.stdout.flush()
            one_shot.note_cut(stream.answer, name)
    return failed


def _tell_reading_as_json(shot: one_shot.Shot, backend: Backend, reading: Reading) -> None:
    pages = [
        {"name": page.name, "text": page.text, "lines": page.lines, "complete": page.complete}
        for page in reading.pages
    ]
    shot.tell_json(backend, reading.text, reading.answers, lines=reading.lines, pages=pages)


def _tell_what_was_cut(reading: Reading) -> None:
    """Name the pages that have more text than was read; exit code 3 where there are any."""
    cut = [page.name for page in reading.pages if not page.complete]
    if cut:
        one_shot.note(f"Cut before the end: {', '.join(cut)}. Raise --max-new-tokens.")
        raise typer.Exit(exit_codes.INCOMPLETE)
