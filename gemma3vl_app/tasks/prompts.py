"""The table of prompts: what each task says to the model, and why it says it so.

Gemma 3 likes to open with "Here is ..." or "Okay, let's ...", to offer several versions, and to set
headings and bold type. Most of the wording is there to get the thing itself instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Detail = Literal["short", "detailed"]
Layout = Literal["plain", "markdown"]


@dataclass(frozen=True)
class Prompt:
    """What is said to the model, and the reason for saying it so."""

    text: str
    reason: str


CAPTION: dict[Detail, Prompt] = {
    "short": Prompt(
        "Describe this picture in one sentence.",
        "Asked for a caption, the model offers several to choose from; asked to describe, it "
        "writes paragraphs. One sentence holds it to one.",
    ),
    "detailed": Prompt(
        "Describe this picture in detail in one paragraph: what is in it, what it looks like and "
        "where it is. Begin directly with the description.",
        "One paragraph keeps headings and lists away. The three things to tell keep it with what "
        "can be seen, away from moods. The last sentence drops the introduction.",
    ),
}

READ: dict[Layout, Prompt] = {
    "plain": Prompt(
        "Write down all the text in this picture exactly as it stands, line by line, in reading "
        "order. Do not correct, translate or describe anything. Answer with the text only.",
        '"Write down" rather than "read", which may bring a summary. "Line by line" keeps the '
        "page's lines. Spelling mistakes and other languages stay as they are.",
    ),
    "markdown": Prompt(
        "Write down all the text in this picture exactly as it stands, in reading order, as "
        "Markdown. Use headings, lists and tables only where the picture shows them. Do not "
        "correct, translate or describe anything. Answer with the Markdown only, without a code "
        "fence around it.",
        "Told to write Markdown, the model sets headings where the page has none; the second "
        "sentence ties them to the page. A fence around the whole is still common; it is taken off "
        "(see fences).",
    ),
}

COMPARE = Prompt(
    "Compare these pictures. Say in a few sentences what they have in common and how they differ. "
    "Call them by their numbers. Begin directly with the comparison.",
    "Without it, each picture is described on its own, one after the other. Their numbers stand "
    "before the pictures: crops are pictures too, and only labels say which belongs to which.",
)

EXTRACT = Prompt(
    "Give the data asked for by this JSON schema, as it can be seen in the picture. Copy numbers, "
    "dates and names as they stand. Where something cannot be seen, answer null if the schema "
    "allows it. Answer with the JSON only.\n\n{schema}",
    "While it answers, the schema is enforced, but the model does not see what enforces it: it has "
    "to be told the fields and their descriptions, or it fills them with what comes first.",
)
PICTURE_LABEL = "Picture {number}:"
