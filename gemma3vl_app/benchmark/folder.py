"""A folder of drawn pictures, captioned by `batch`, against asking about one after the other."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from gemma3vl_app.backends.local import LocalBackend, load
from gemma3vl_app.benchmark.result import Result
from gemma3vl_app.folders.batch import batch
from gemma3vl_app.generation import Greedy
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.tasks.prompts import CAPTION

PICTURES = 200
TARGET = 2.5
_SIDE = 1 << 8  # pixels
_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "gray")
_PROMPT = CAPTION["short"].text


def folder() -> list[Result]:
    """Caption 200 drawn pictures with the demo, one by one and as a folder."""
    with tempfile.TemporaryDirectory() as name:
        pictures = draw_folder(Path(name), PICTURES)
        alone_sec = _timed(lambda backend: _one_by_one(backend, pictures))
        together_sec = _timed(lambda backend: _as_a_folder(backend, Path(name)))
    return [
        Result(
            name=f"captions of {PICTURES} pictures in a folder, demo",
            value=PICTURES / together_sec,
            baseline=PICTURES / alone_sec,
            unit="pictures/s",
            baseline_name="asking about one after the other",
            bound="at least",
            target=TARGET,
            details={"together_sec": together_sec, "one_by_one_sec": alone_sec},
        )
    ]


def draw_folder(folder: Path, count: int) -> list[Path]:
    """Draw `count` pictures of one to four coloured shapes on white; the same every time."""
    rng = random.Random(0)
    paths = [folder / f"{number}.png" for number in range(1, count + 1)]
    for path in paths:
        _draw(rng).save(path)
    return paths


def _draw(rng: random.Random) -> Image.Image:
    picture = Image.new("RGB", (_SIDE, _SIDE), "white")
    draw = ImageDraw.Draw(picture)
    cells = rng.sample([(x, y) for x in (0, 1) for y in (0, 1)], rng.randint(1, 4))
    for column, row in cells:
        size = rng.randint(_SIDE // 5, _SIDE // 3)
        left = column * _SIDE // 2 + rng.randint(8, _SIDE // 2 - size - 8)
        top = row * _SIDE // 2 + rng.randint(8, _SIDE // 2 - size - 8)
        box = (left, top, left + size, top + size)
        colour, shape = rng.choice(_COLOURS), rng.choice(("circle", "square", "triangle"))
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "square":
            draw.rectangle(box, fill=colour)
        else:
            corners = (left, box[3], box[2], box[3], (left + box[2]) // 2, top)
            draw.polygon(corners, fill=colour)
    return picture


def _timed(caption: Callable[[LocalBackend], None]) -> float:
    """Return the seconds that `caption` takes on a demo of its own, which knows no picture yet."""
    with load("demo") as backend:
        _ = backend.stream(Conversation().user("Hello."), max_new_tokens=2).answer  # warm-up
        began = time.perf_counter()
        caption(backend)
        return time.perf_counter() - began


def _one_by_one(backend: LocalBackend, pictures: list[Path]) -> None:
    for path in pictures:
        stream = backend.stream(
            Conversation().user(Picture.open(path), _PROMPT),
            sampling=Greedy(),
            max_new_tokens=backend.capabilities.answer_tokens,
            session=path.name,
        )
        assert stream.answer.text


def _as_a_folder(backend: LocalBackend, folder: Path) -> None:
    report = batch(backend, folder, prompt=_PROMPT, out=folder / "captions.jsonl")
    assert not report.failed
