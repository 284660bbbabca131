"""`gemma3vl ask`: one question, answered on stdout as it comes."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma3vl_app import catalog
from gemma3vl_app.cli import load
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Answer, Sample

if TYPE_CHECKING:
    from gemma3vl_app.backends.protocol import Backend
    from gemma3vl_app.stream import Stream


def ask(
    model: Annotated[str, typer.Argument(help=load.MODEL)],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture; repeat it for more.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="How the model should behave.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 1024,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draw the answer at random, always the same way.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole answer as one JSON line at the end.")
    ] = False,
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    context_tokens: load.ContextTokens = None,
    revision: load.Revision = None,
    adapter: load.Adapters = None,
) -> None:
    """Ask one question, about any number of pictures, and print the answer as it comes.

    With one --adapter, the answer is that adapter's.

    Example: gemma3vl ask demo "What color is the circle?" --image circle.png
    """
    wishes = load.read_wishes(weights, device_map, max_memory, context_tokens, revision, adapter)
    if not (question.strip() or image):
        raise ConversationError("The question is empty. Write one, or add a picture.")
    catalog.check_source(model)
    with load.spinner("Reading the question"):
        from gemma3vl_app.messages import Conversation
        from gemma3vl_app.pictures import Picture

        pictures = [Picture.open(path) for path in image or ()]
    conversation = Conversation(system=system).user(*pictures, question)
    names = list(wishes.adapters or ())
    with load.load_backend(model, wishes) as backend:
        stream = backend.stream(
            conversation,
            sampling=None if seed is None else _seeded(backend, seed),
            max_new_tokens=max_new_tokens,
            adapter=names[0] if len(names) == 1 else None,
        )
        with stream:
            answer = _follow(stream, silent=as_json)
    typer.echo(json.dumps(_summary(backend, answer), ensure_ascii=False) if as_json else "")


def _seeded(backend: Backend, seed: int) -> Sample:
    """Return the checkpoint's own sampling with `seed`, or the default one if it is greedy."""
    own = backend.capabilities.sampling
    return dataclasses.replace(own if isinstance(own, Sample) else Sample(), seed=seed)


def _follow(stream: Stream, *, silent: bool) -> Answer:
    """Print the stream's text as it comes; its stages before the first word go to stderr."""
    with load.spinner("Waiting") as status:
        for chunk in stream:
            status.update(str(chunk.status))
            if chunk.text and not silent:
                status.stop()  # it must not draw into the answer
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    return stream.answer


def _summary(backend: Backend, answer: Answer) -> dict[str, object]:
    return {
        "model": backend.capabilities.model,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": dataclasses.asdict(answer.usage),
        "timing": dataclasses.asdict(answer.timing),
    }
