"""How the package's values look as the last line of a cell, and in a terminal."""

from __future__ import annotations

from functools import singledispatch
from html import escape

from gemma3vl_app.chat import Chat
from gemma3vl_app.explain import Certainty, Difference, Heat, Layers
from gemma3vl_app.folders.items import BatchReport
from gemma3vl_app.generation import Answer
from gemma3vl_app.messages import Conversation, Message, Text
from gemma3vl_app.notebook import thumbnails
from gemma3vl_app.notebook.explained import (
    shown_certainty,
    shown_difference,
    shown_heat,
    shown_layers,
)
from gemma3vl_app.notebook.plans import shown_plan
from gemma3vl_app.notebook.results import shown_data, shown_page, shown_reading, shown_report
from gemma3vl_app.notebook.shown import FAINT, MUTED, Shown, folded, said, table
from gemma3vl_app.pictures import Picture
from gemma3vl_app.plain import plain
from gemma3vl_app.planning import LoadPlan
from gemma3vl_app.tasks.results import Extraction, PageReading, Reading, TaskResult
from gemma3vl_app.wording import breakdown, summary

WHO = {"user": "You", "assistant": "Model"}
_SMALL = 160  # pixels: a picture inside a conversation


@singledispatch
def shown(value: object) -> Shown:
    """Return how a value of the package is shown; of others, their own text."""
    return Shown(said(str(value)), plain(str(value)))


@shown.register
def _picture(picture: Picture) -> Shown:
    return Shown(thumbnails.of_picture(picture), plain(f"Picture: {thumbnails.label(picture)}"))


@shown.register
def _message(message: Message) -> Shown:
    return Shown(_turn(message), _plain_turn(message))


@shown.register
def _conversation(conversation: Conversation) -> Shown:
    return _talk(conversation)


@shown.register
def _chat(chat: Chat) -> Shown:
    transcript, about = chat.transcript, chat.backend.capabilities
    talk = _talk(transcript.conversation(), f"Chat with {about.title or about.model}")
    path = transcript.path(transcript.head)
    if not path or not path[-1].generated:
        return talk  # nothing that a model wrote is its last word
    last = path[-1].generated[-1]
    answer = Answer(last.text, last.finish_reason, last.usage, last.timing)
    return Shown(talk.html + _cost(answer), f"{talk.text}\n\n({summary(answer)})")


@shown.register
def _answer(answer: Answer) -> Shown:
    return Shown(said(answer.text) + _cost(answer), f"{plain(answer.text)}\n\n({summary(answer)})")


@shown.register
def _plan(plan: LoadPlan) -> Shown:
    return shown_plan(plan)


@shown.register
def _result(result: TaskResult) -> Shown:
    cost, answer = _cost(result.answer), result.answer
    return Shown(said(result.text) + cost, f"{plain(result.text)}\n\n({summary(answer)})")


@shown.register
def _extraction(extraction: Extraction) -> Shown:  # type: ignore[type-arg]  # as singledispatch asks
    data, answer = shown_data(extraction.value), extraction.answer
    return Shown(data.html + _cost(answer), f"{data.text}\n\n({summary(answer)})")


shown.register(Reading, shown_reading)
shown.register(PageReading, shown_page)
shown.register(BatchReport, shown_report)
shown.register(Heat, shown_heat)
shown.register(Certainty, shown_certainty)
shown.register(Layers, shown_layers)
shown.register(Difference, shown_difference)


# --- parts ---


def _talk(conversation: Conversation, title: str = "") -> Shown:
    system = conversation.system
    html = [f'<div style="{MUTED}">{escape(title)}</div>'] if title else []
    text = [title] if title else []
    if system:
        html.append(_box("System", said(system)))
        text.append(f"System: {plain(system)}")
    html += [_turn(message) for message in conversation.messages]
    text += [_plain_turn(message) for message in conversation.messages]
    if not conversation.messages:
        html.append(said("Nothing has been said yet."))
        text.append("Nothing has been said yet.")
    return Shown("".join(html), "\n".join(text))


def _turn(message: Message) -> str:
    parts = (
        said(part.text) if isinstance(part, Text) else thumbnails.of_picture(part, side=_SMALL)
        for part in message.parts
    )
    return _box(WHO[message.role], "".join(parts), filled=message.role == "user")


def _box(who: str, html: str, *, filled: bool = False) -> str:
    background = f"background:{FAINT};" if filled else ""
    return (
        f'<div style="{background}border-radius:.5em;padding:.4em .7em;margin:.3em 0">'
        f'<div style="{MUTED}">{who}</div>{html}</div>'
    )


def _plain_turn(message: Message) -> str:
    parts = (
        part.text if isinstance(part, Text) else f"[{thumbnails.label(part)}] "
        for part in message.parts
    )
    return f"{WHO[message.role]}: {plain(''.join(parts))}"


def _cost(answer: Answer) -> str:
    """Return usage and timing, folded away below one line."""
    usage = answer.usage
    rows: list[tuple[str, ...]] = [
        ("tokens in the prompt", f"{usage.prompt_tokens:,}"),
        ("  of them cached", f"{usage.cached_tokens:,}"),
        ("  of them pictures", f"{usage.image_tokens:,}"),
        ("tokens written", f"{usage.completion_tokens:,}"),
        ("time", breakdown(answer) or "none to speak of"),
    ]
    return folded(summary(answer), table(rows))
