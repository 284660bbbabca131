"""Chats as training data: JSON lines that trl's SFTTrainer takes for vision-language models.

A line is `{"messages": [{"role": ..., "content": [...]}], "images": [...]}`, where a content is a
list of `{"type": "image"}` and `{"type": "text", "text": ...}`, and `images` the paths of the
pictures in the order of their places.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.export.branches import path_to, systems
from gemma3vl_app.export.pictures import PictureFiles
from gemma3vl_app.export.wording import writable
from gemma3vl_app.export.write import Document
from gemma3vl_app.messages import Message, Text
from gemma3vl_app.transcript import ROOT, Transcript

_BLANK_LINE = "\n\n"  # as in prompts, between messages of one role that follow each other


def training_lines(transcript: Transcript, folder: str, branches: bool) -> Document:
    """Return a line for the conversation shown, or for each branch; `folder` holds the pictures.

    A conversation ends with its last answer. Raises `ConversationError` when none has one.
    """
    pictures = PictureFiles(transcript, folder, exact=True)
    ends = _ends(transcript) if branches else [_last_answer(transcript, transcript.head)]
    lines, cut = [], 0
    for end in ends:
        path = path_to(transcript, end)
        turns = [transcript.turns[index] for index in path]
        if not turns or turns[0].message.role != "user":
            continue
        cut += any(g.finish_reason != "stop" for turn in turns for g in turn.generated[-1:])
        messages = [turn.message for turn in turns]
        lines.append(_line(messages, systems(transcript, path)[-1], pictures))
    if not lines:
        raise ConversationError(
            "No conversation in this chat has a question and its answer, so there is nothing to "
            "learn from. Ask something first."
        )
    return Document("".join(lines), pictures.files, _notes(len(ends) - len(lines), cut))


def _notes(skipped: int, cut: int) -> tuple[str, ...]:
    notes = []
    if skipped:
        notes.append(f"{_count(skipped)} without a question and an answer left out.")
    if cut:
        notes.append(f"{_count(cut)} with an answer that was cut or stopped: look through them.")
    return tuple(notes)


def _count(number: int) -> str:
    return f"{number:,} conversation{'' if number == 1 else 's'}"


# --- which conversations --------------------------------------------------------------------------


def _last_answer(transcript: Transcript, index: int) -> int:
    """Return turn `index` or the last answer before it; `ROOT` where there is none."""
    while index != ROOT and transcript.turns[index].message.role != "assistant":
        index = transcript.turns[index].parent
    return index


def _ends(transcript: Transcript) -> list[int]:
    """Return the last answer of each branch, no conversation being the beginning of another."""
    goes_on: set[int] = set()  # turns that are followed by an answer
    ends = []
    for index in reversed(range(len(transcript.turns))):
        turn = transcript.turns[index]
        has_answer = index in goes_on
        if turn.message.role == "assistant" and not has_answer:
            ends.append(index)
            has_answer = True
        if has_answer:
            goes_on.add(turn.parent)
    if ROOT not in goes_on:
        ends.append(ROOT)
    return ends[::-1]


# --- one conversation -----------------------------------------------------------------------------


def _line(messages: list[Message], system: str | None, pictures: PictureFiles) -> str:
    found: list[dict[str, Any]] = []
    if system:
        found.append({"role": "system", "content": [_text(system)]})
    for role, group in groupby(messages, lambda message: message.role):  # chat templates alternate
        found.append({"role": role, "content": _content(list(group))})
    paths = [pictures.path(picture) for message in messages for picture in message.pictures]
    data = {"messages": found, "images": [writable(path) for path in paths]}
    return json.dumps(data, ensure_ascii=False) + "\n"


def _content(messages: list[Message]) -> list[dict[str, str]]:
    content: list[dict[str, str]] = []
    for message in messages:
        parts = [_text(p.text) if isinstance(p, Text) else {"type": "image"} for p in message.parts]
        if content and parts and content[-1]["type"] == parts[0]["type"] == "text":
            content[-1]["text"] += _BLANK_LINE + parts.pop(0)["text"]
        content += parts
    return content


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": writable(text)}
