"""A stand-in that can be looked into: it says what it is told, and keeps what it was asked."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from gemma3vl_app.backends.protocol import Capabilities
from gemma3vl_app.generation import Alternative, Answer
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.traces import (
    Attention,
    Distributions,
    LogitLens,
    Occlusion,
    Place,
    Saliency,
    TracedAttention,
    TracedDistributions,
    TracedLayers,
    TracedOcclusion,
    TracedSaliency,
    TracedToken,
)

SIDE = 2  # cells of a map: 4 soft tokens a picture
WORDS = ("A", " red", " circle", " and", " a", " red", " square", ".")
ABOUT = Capabilities(model="stand-in", knows="", context_tokens=100, image_tokens=4, weights="fp32")


@dataclass
class StandIn:
    """Attends to soft token i with weight (i + 1) / 100; hiding counts the hidden pixels."""

    asked: list = field(default_factory=list)
    options: list = field(default_factory=list)
    capabilities: Capabilities = ABOUT
    spread: float = 0.0  # shifts its expectations, for two that differ

    def answer_tokens(self, conversation, answer, *, adapter=None, session=""):
        text = answer if isinstance(answer, str) else answer.text
        if text == "".join(WORDS):
            return tuple(TracedToken(n, word) for n, word in enumerate(WORDS))
        return (TracedToken(0, text),) if text else ()

    def trace(self, conversation, answer, asked, *, adapter=None, session="", progress=None):
        self.asked.append((conversation, answer, asked))
        self.options.append((adapter, session))
        tokens = self.answer_tokens(conversation, answer)
        places = []
        for number, picture in enumerate(conversation.pictures):
            boxes = [None]
            if picture.crops == "on":
                half = picture.width // 2
                boxes += [(0, 0, half, picture.height), (half, 0, picture.width, picture.height)]
            for box in boxes:
                start = 2 + len(places) * 6
                places.append(Place(number, box, start, start + 4))
        said = {"tokens": tokens, "places": tuple(places)}
        match asked:
            case Attention(tokens=chosen):
                row = np.zeros(100, dtype=np.float32)
                for place in places:
                    row[place.start : place.stop] = np.arange(1, 5) / 100
                return TracedAttention(**said, weights=np.stack([row] * len(chosen)), layers=(5,))
            case Saliency():
                cells = np.array([1, -2, 3, -4], dtype=np.float32)
                pixels = np.ones((8, 8), dtype=np.float32)
                return TracedSaliency(
                    **said,
                    soft_tokens=(cells,) * len(places),
                    pixels=(pixels,) * len(places) if asked.through_tower else (),
                )
            case Occlusion(tokens=chosen, regions=regions):
                lost = [[-float(self.lost(box))] * len(chosen) for box in regions]
                return TracedOcclusion(
                    **said, shown=np.zeros(len(chosen)), hidden=np.array(lost, dtype=np.float32)
                )
            case Distributions():
                rows = len(tokens) + 1
                logits = np.arange(6) * (1 + self.spread) * np.ones((rows, 1))
                whole = logits - np.log(np.exp(logits).sum(1, keepdims=True))
                best = tuple(Alternative(5 - n, f"w{5 - n}", whole[0, 5 - n]) for n in range(2))
                return TracedDistributions(
                    **said,
                    logprobs=np.full(len(tokens), -0.5, dtype=np.float32),
                    entropies=np.full(rows, 0.7, dtype=np.float32),
                    alternatives=(best,) * rows,
                    whole=whole.astype(np.float32),
                )
            case LogitLens(tokens=chosen):
                best = tuple(Alternative(n, tokens[n].text, -0.1) for n in chosen)
                return TracedLayers(
                    **said,
                    likeliest=(best, best),
                    logprobs=np.full((2, len(chosen)), -0.1, dtype=np.float32),
                    kinds=("sliding", "global"),
                )

    def lost(self, box):
        """Nats lost when a box is hidden: what it covers of the top left quarter of 100 x 100."""
        return max(0, min(box[2], 50) - box[0]) * max(0, min(box[3], 50) - box[1]) / 2500


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def picture() -> Picture:
    return Picture.open(np.full((100, 100, 3), 200, dtype=np.uint8), name="grey.png", crops="off")


@pytest.fixture
def talk(picture) -> Conversation:
    return Conversation().user(picture, "Describe the picture.")


@pytest.fixture
def answer() -> Answer:
    return Answer("".join(WORDS), "stop")
