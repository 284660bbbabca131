"""Whether maps of where an answer comes from fall on the thing that was asked about.

`make demo-maps` asks the demo for the colour of one thing in each of a hundred fresh scenes, maps
the answer by each method, and writes docs/explain.json and the table of docs/explain.md. A map that
knew nothing would score 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from gemma3vl_app import explain
from gemma3vl_app.backends.local import load
from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.explain import Heat
from gemma3vl_app.finetune.demo_files import read_state
from gemma3vl_app.generation import Answer, Box, Greedy
from gemma3vl_app.loading.demo import DATA
from gemma3vl_app.messages import Conversation
from gemma3vl_app.scenes.items import Item, items
from gemma3vl_app.scenes.scene import Thing

logger = logging.getLogger(__name__)

SCENES = 100
TARGET = ("occlusion", 2.0)  # mean heat inside the thing's box over that outside
RESULTS, PAGE = Path("docs/explain.json"), Path("docs/explain.md")
TABLE = re.compile(r"(<!-- maps: begin[^\n]*-->\n).*(<!-- maps: end -->)", re.DOTALL)

Method = Callable[[Backend, Conversation, Answer], Heat]
METHODS: dict[str, Method] = {
    "attention": explain.attention,
    "attention rollout": lambda *asked: explain.attention(*asked, rollout=True),
    "saliency": explain.saliency,
    "saliency to the pixels": lambda *asked: explain.saliency(*asked, through_tower=True),
    "occlusion": explain.occlusion,
}


@dataclass(frozen=True)
class MapScore:
    """How far one method's maps fall on the thing that was asked about.

    `ratio` is the mean heat inside the thing's box over the mean outside, heat of each scene scaled
    to its strongest point; `median` that of single scenes; `share` of the scenes where it is 2.
    """

    method: str
    scenes: int
    ratio: float
    median: float
    share: float
    seconds_a_map: float


def asked_about(count: int) -> Iterator[tuple[Item, Thing]]:
    """Yield held-out scenes of at least two things with a question for one thing's colour."""
    found = (
        (item, thing)
        for item in items("colour")
        if len(item.scenes[0].things) > 1
        for thing in _meant(item)
    )
    return islice(found, count)


def _meant(item: Item) -> list[Thing]:
    """Return the thing that a question for a colour means; nothing where more than one could be."""
    question, colour = item.turn.question, item.turn.answer.lower().rstrip(".")
    shapes = [thing for thing in item.scenes[0].things if thing.shape in question]
    return shapes if len(shapes) == 1 and shapes[0].colour == colour else []


def box_of(item: Item, thing: Thing) -> Box:
    """Return the square around a thing, in pixels of its picture."""
    picture = item.pictures[0]
    reach = thing.radius * min(picture.width, picture.height)
    x, y = thing.x * picture.width, thing.y * picture.height
    edges = (x - reach, y - reach, x + reach, y + reach)
    limits = (picture.width, picture.height, picture.width, picture.height)
    left, top, right, bottom = (
        round(min(max(edge, 0), limit)) for edge, limit in zip(edges, limits, strict=True)
    )
    return left, top, right, bottom


def score(backend: Backend, method: str, count: int = SCENES) -> MapScore:
    """Return how far one method's maps fall on what was asked about."""
    inside, outside, seconds = [], [], 0.0
    for item, thing in asked_about(count):
        talk = Conversation().user(*item.pictures, item.turn.question)
        answer = backend.stream(talk, sampling=Greedy()).answer
        began = time.perf_counter()
        heat = METHODS[method](backend, talk, answer)
        seconds += time.perf_counter() - began
        within, without = heat.inside_and_outside(box_of(item, thing))
        strongest = float(np.abs(heat.grid()).max()) or 1.0
        inside.append(within / strongest)
        outside.append(without / strongest)
    ratios = [i / max(o, 1e-12) for i, o in zip(inside, outside, strict=True)]
    return MapScore(
        method,
        len(ratios),
        round(sum(inside) / sum(outside), 2),
        round(statistics.median(ratios), 2),
        round(sum(ratio >= 2 for ratio in ratios) / len(ratios), 3),
        round(seconds / len(ratios), 2),
    )


def table(scores: list[MapScore]) -> str:
    """Return the scores as a Markdown table."""
    lines = [
        "| method | inside / outside | median scene | scenes with 2 or more | seconds a map |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {each.method} | {each.ratio:.1f} | {each.median:.1f} | {each.share:.0%} of "
        f"{each.scenes} | {each.seconds_a_map:.1f} |"
        for each in scores
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Score every method on the shipped demo and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--method", choices=list(METHODS), action="append", help="this one only")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    scores = []
    with load("demo") as backend:
        for method in options.method or METHODS:
            scores.append(score(backend, method, options.scenes))
            logger.info("%s", scores[-1])
    if options.method or options.scenes != SCENES:
        return  # a look, not the result
    name, target = TARGET
    met = all(each.ratio >= target for each in scores if each.method == name)
    report = {
        "weights": read_state(DATA)["sha256"],
        "target": {"method": name, "ratio": target, "met": met},
        "scores": list(map(asdict, scores)),
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda m: m[1] + table(scores) + m[2], page), encoding="utf-8")


if __name__ == "__main__":
    main()
