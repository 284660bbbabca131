"""What models are asked when they are compared: drawn pictures and short conversations.

The built-in ones are made in code and always the same. People may give questions and pictures of
their own. Knows nothing of models but whether one sees and how far its sliding layers look back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from gemma3vl_app.errors import VerificationError
from gemma3vl_app.folders.find import find_pictures
from gemma3vl_app.messages import Conversation, Message, Text
from gemma3vl_app.pictures import Crops, Picture

MOST_PROMPTS = 64
MOST_FILE_BYTES = 1 << 20
QUESTION = "Describe this picture."
CROPS: tuple[Crops, ...] = ("off", "on")
COLOURS = ("red", "green", "blue", "orange", "black")
LINE = "{}. There is a red barn behind the old mill by the river.\n"
LINE_TOKENS = 12  # at least; what a line takes is not counted exactly


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a question, and what the report calls it."""

    name: str
    conversation: Conversation

    @property
    def crops(self) -> str:
        """The crop mode: "on" where a picture of it may be cropped, "off" otherwise."""
        on = any(picture.crops == "on" for picture in self.conversation.pictures)
        return "on" if on else "off"


def built_in(*, sees: bool, window_tokens: int) -> tuple[Prompt, ...]:
    """Return the fixed prompts: without, with one and with two pictures, crops off and on.

    The last one is longer than `window_tokens`. Those with pictures are left out for a model that
    does not see.
    """
    asked = Conversation().user("Name three colours of the rainbow.")
    turns = (
        Conversation(system="Answer briefly.")
        .user("What is the capital of France?")
        .assistant("Paris.")
        .user("And which river flows through it?")
    )
    long = "".join(LINE.format(number) for number in range(1, window_tokens // LINE_TOKENS + 8))
    past = (f"Here is a list.\n{long}", "What stands behind the mill?")
    prompts = [Prompt("words alone", asked), Prompt("three turns", turns)]
    if not sees:
        return (*prompts, Prompt("past the window", Conversation().user("".join(past))))
    square, wide = drawn_picture(1, 320, 320), drawn_picture(2, 900, 450)
    one = Conversation().user(square, "Which shapes do you see?")
    later = one.assistant("Some shapes.").user(wide, "And what is in this one?")
    both = Conversation().user("First ", square, " then ", wide, "Which has more red in it?")
    cropped = Conversation().user(wide.with_crops("on"), "What is on the left?")
    return (
        *prompts,
        Prompt("one picture", one),
        Prompt("a second picture later", later),
        Prompt("two pictures", both),
        Prompt("with crops", cropped),
        Prompt("past the window", Conversation().user(square, *past)),
    )


def drawn_picture(seed: int, width: int, height: int) -> Picture:
    """Return a drawing of six shapes on white, crops off; the same `seed` gives the same pixels."""
    rng = np.random.default_rng(seed)
    drawing = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(drawing)
    side = min(width, height) // 4
    for number in range(6):
        x, y = (int(rng.integers(0, room - side)) for room in (width, height))
        shape = pen.ellipse if number % 2 else pen.rectangle
        shape((x, y, x + side, y + side), fill=COLOURS[int(rng.integers(len(COLOURS)))])
    return Picture.open(drawing, name=f"drawn {seed}", crops="off")


def own_prompts(file: str | Path | None, folder: str | Path | None) -> tuple[Prompt, ...]:
    """Return a person's own prompts: each line of `file`, each picture of `folder`, or both.

    A line is a question, or a JSON list of texts, which are turns of user and model. With both,
    each line is asked about each picture, which stands before its first text; every picture is
    asked about with crops off, and on. Nothing where neither is given. Raises `VerificationError`
    and `PictureError`.
    """
    if file is None and folder is None:
        return ()
    turns = [[QUESTION]] if file is None else list(_lines(Path(file)))
    if folder is None:
        prompts = [Prompt(_short(texts), _conversation(texts)) for texts in turns]
    else:
        found = find_pictures(folder)
        _check_number(len(found.names) * len(CROPS) * len(turns))  # before any is opened
        prompts = [
            Prompt(
                f"{name}, crops {crops}" + (f": {_short(texts)}" if file else ""),
                _conversation(texts, picture.with_crops(crops)),
            )
            for name, picture in ((each, Picture.open(found.path(each))) for each in found.names)
            for crops in CROPS
            for texts in turns
        ]
    _check_number(len(prompts))
    return tuple(prompts)


def _check_number(prompts: int) -> None:
    if prompts > MOST_PROMPTS:
        raise VerificationError(
            f"{prompts} prompts are too many to compare: at most {MOST_PROMPTS}. "
            "Use fewer lines or pictures."
        )


def _lines(file: Path) -> Iterator[list[str]]:
    """Yield the turns of each line; raises `VerificationError`."""
    try:
        if file.stat().st_size > MOST_FILE_BYTES:
            raise VerificationError(f"'{file.name}' is larger than 1 MiB; use fewer prompts.")
        text = file.read_text(encoding="utf-8-sig")  # some editors write a mark first
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise VerificationError(f"'{file.name}' cannot be read ({reason}).") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise VerificationError(f"'{file.name}' holds no prompt; write one a line.")
    for number, line in lines:
        yield _turns(line.strip(), f"Line {number} of '{file.name}'")


def _turns(line: str, where: str) -> list[str]:
    if not line.startswith("["):
        return [line]
    try:
        turns = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{where} begins like a JSON list and is none.") from error
    if not all(isinstance(each, str) and each for each in turns) or len(turns) % 2 == 0:
        raise VerificationError(
            f"{where} must be a list of texts in turns, of which the first and the last are the "
            "user's."
        )
    return list(turns)


def _conversation(texts: Sequence[str], picture: Picture | None = None) -> Conversation:
    parts: list[Text | Picture] = [Text(texts[0])]
    if picture is not None:
        parts.insert(0, picture)
    later = (
        Message("user" if number % 2 == 0 else "assistant", (Text(text),))
        for number, text in enumerate(texts)
        if number
    )
    return Conversation((Message("user", tuple(parts)), *later))


def _short(texts: Sequence[str]) -> str:
    text = " ".join(texts[-1].split())
    return text if len(text) <= 40 else f"{text[:39]}…"
