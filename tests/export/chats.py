"""Transcripts as values: an everyday chat with branches, and a hostile one."""

import io

import numpy as np
from PIL import Image

from gemma3vl_app.generation import Sample, Timing, Usage
from gemma3vl_app.messages import Message, Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.transcript import ROOT, Generated, ModelIdentity, Transcript, Turn

DEMO = ModelIdentity(
    name="demo", revision="files:abcd", weights="fp32", arithmetic="float32, cpu, 2 threads"
)


def user(*parts: str | Picture) -> Message:
    return Message("user", tuple(Text(p) if isinstance(p, str) else p for p in parts))


def assistant(text: str) -> Message:
    return Message("assistant", (Text(text),))


def generated(text: str, **changes) -> Generated:
    known = {
        "ids": (1, 2, 3),
        "said_tokens": 3,
        "finish_reason": "stop",
        "model": DEMO,
        "usage": Usage(300, 200, 64, 3),
        "timing": Timing(ttft_sec=0.81, tokens_per_sec=12.3),
    }
    return Generated(**{**known, **changes}, text=text)


def answer(text: str, parent: int, **changes) -> Turn:
    return Turn(assistant(text), parent, (generated(text, **changes),))


def png(colour: str, name: str = "", size: tuple[int, int] = (40, 30)) -> Picture:
    return Picture.open(Image.new("RGB", size, colour), name=name or f"{colour}.png")


def photo(size: tuple[int, int] = (60, 40), name: str = "beach.jpg") -> Picture:
    """A JPEG file with all that cameras and programs write into one: a place, a comment, a text."""
    noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[1] = "SecretPlace"
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", exif=exif, comment=b"SecretComment")
    return Picture.open(file.getvalue(), name=name)


RED, BLUE = png("red"), png("blue")

# user: two pictures
#   demo: "Red." (not chosen)
#   demo: "A red" + " one." (resumed)
#     user: again, with a picture (not chosen)
#       demo: "Yes."
#     user: "Why?"
#       demo: "It is."  <- the chat stands here
EVERYDAY = Transcript(
    (
        Turn(user(RED, BLUE, "Which one is red?\nSay why."), ROOT),
        answer("Red.", 0, system="Answer briefly."),
        Turn(
            assistant("A red one."),
            0,
            (
                generated("A red", sampling=Sample(seed=7), system="Be kind.", max_new_tokens=2),
                generated(" one.", system="Be kind.", finish_reason="length"),
            ),
        ),
        Turn(user(RED, "Is this red?"), 2),
        answer("Yes.", 3, system="Be kind."),
        Turn(user("Why?"), 2),
        answer("It is.", 5, system="Be kind.", stop=("\n",), adapter="poet"),
    ),
    head=6,
    system="Be kind.",
)

ATTACKS = [
    "</script></textarea></style></title><script>alert(1)</script>",
    "<img src=x onerror=alert(2)><svg onload=alert(3)>",
    "<iframe src=http://evil.test></iframe><link rel=stylesheet href=http://evil.test/a.css>",
    "![x](http://evil.test/a.png) [y](javascript:alert(4)) [z]: javascript:alert(5)\n\n[z]",
    "<!-- ",
    "```\n<script>alert(6)</script>",
    "> ```\n<script>alert(7)</script>",
    "- ~~~\n<script>alert(8)</script>",
    "\x1b[2J\x1b]0;title\x07 \x00 \x9b31m",
    "\u202eabc\u2066 \u200f\u05d0",
    "half \ud83d character",
    "''' \"\"\" \\' \\\" \\ {x} {{y}} %s $(z) `id`",
    "x" * 20_000,
    "'); import os; os.abort() #",
    "line\u2028separator\x85 and \r return",
]
NAMES = ["../../x.png", '"><script>alert(9)</script>', "\u202egnp.exe", ".hidden", "a](b)![c", ""]


def hostile() -> Transcript:
    """A chat in which everything that can hold text holds every attack."""
    turns: list[Turn] = []
    for at, text in enumerate(ATTACKS):
        name = NAMES[at % len(NAMES)]
        picture = png(f"#{at:02}8040")
        picture = Picture(picture.data, picture.sha256, name, width=40, height=30)
        model = ModelIdentity(name=text, revision=text, weights=text, arithmetic=text)
        made = generated(
            text, model=model, system=text, stop=(text,), adapter=text, schema={text: text}
        )
        turns.append(Turn(user(text, picture, text), len(turns) - 1))
        turns.append(Turn(assistant(text), len(turns) - 1, (made,)))
    turns.append(answer(ATTACKS[0], 0))
    return Transcript(tuple(turns), head=len(turns) - 2, system=ATTACKS[0])
