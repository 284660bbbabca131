"""`gemma3vl ask`: one question, answered on stdout as it comes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma3vl_app import catalog
from gemma3vl_app.cli import load, one_shot
from gemma3vl_app.errors import ConversationError, PictureError
from gemma3vl_app.generation import Greedy

if TYPE_CHECKING:
    from gemma3vl_app.messages import Conversation


def ask(
    model: load.ModelArgument,
    question: Annotated[
        str | None,
        typer.Argument(help="What to ask; - is stdin.", metavar="QUESTION", show_default=False),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image", help="A picture or a PDF; repeat it for more; - is stdin.", metavar="FILE"
        ),
    ] = None,
    system: one_shot.System = None,
    max_new_tokens: one_shot.MaxNewTokens = 1024,
    greedy: one_shot.GreedyFlag = False,
    seed: one_shot.Seed = None,
    temperature: one_shot.Temperature = None,
    top_k: one_shot.TopK = None,
    top_p: one_shot.TopP = None,
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
    disk_cache: load.DiskCache = None,
) -> None:
    """Ask one question, about any number of pictures, and print the answer as it comes.

    A picture that is piped in belongs to the question; a text goes behind it, or is the question
    where there is none. A question without a MODEL is for the demo. With one --adapter, the answer
    is that adapter's.

    Example: gemma3vl ask demo "What color is the circle?" --image docs/circle.png
    """
    one_shot.check_logprobs(logprobs, as_json=as_json)
    given = {"seed": seed, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    draw = {name: wish for name, wish in given.items() if wish is not None}
    one_shot.check_sampling(draw, greedy=greedy)
    wishes = load.read_wishes(
        *(weights, device_map, max_memory, context_tokens, revision, adapter, draft, disk_cache)
    )
    model, question = _model_and_question(model, question)
    _check_question(question, image or ())
    catalog.check_source(model, servers=True)
    with load.spinner("Reading the question"):
        conversation = _conversation(system, question, image or (), crops)
    with load.load_backend(model, wishes) as backend:
        stream = backend.stream(
            conversation,
            sampling=Greedy() if greedy else one_shot.drawing(backend, draw) if draw else None,
            max_new_tokens=max_new_tokens or backend.capabilities.answer_tokens,
            logprobs=logprobs,
            adapter=one_shot.only_adapter(wishes),
        )
        with stream:
            one_shot.follow(stream, silent=as_json)
    answer = stream.answer
    if as_json:
        one_shot.write_json(one_shot.summary(backend, answer.text, [answer], logprobs=logprobs))
    else:
        typer.echo()
        one_shot.note_cut(answer)


def _model_and_question(first: str, second: str | None) -> tuple[str, str]:
    """Return what was given, or the demo and its question: no model's name has spaces."""
    if second is None and len(first.split()) > 1 and not os.path.exists(first):
        return "demo", first
    return first, second or ""


def _check_question(question: str, images: Sequence[Path]) -> None:
    """Refuse what can be seen to be wrong at once, before anything heavy is imported."""
    if question == "-" and one_shot.STDIN in images:
        raise typer.BadParameter("stdin is the question or a picture, not both.")
    if not (question.strip() or images or one_shot.is_piped()):
        raise ConversationError("The question is empty. Write one, or add a picture.")


def _conversation(
    system: str | None, question: str, images: Sequence[Path], crops: one_shot.Crops
) -> Conversation:
    """Return the question with its pictures, and with what is piped in."""
    from gemma3vl_app.messages import Conversation

    pictures = [picture for _, picture in one_shot.open_pictures(images, crops)]
    if one_shot.STDIN in images:
        return Conversation(system=system).user(*pictures, question)
    piped = one_shot.read_piped(crops, needed=question == "-")
    if question == "-":
        if not piped.text:
            raise PictureError(
                "What came on stdin is a picture; - stands for a question. Write it."
            )
        question = ""
    texts = [text for text in (question, piped.text) if text.strip()]
    pictures += piped.pictures
    if not (texts or pictures):
        raise ConversationError("The question is empty. Write one, or add a picture.")
    return Conversation(system=system).user(*pictures, "\n\n".join(texts))
