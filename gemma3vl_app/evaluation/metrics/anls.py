"""ANLS: the average normalised Levenshtein similarity of DocVQA (Biten et al. 2019)."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.metric import Metric, mean_of

THRESHOLD = 0.5  # an answer that differs in half of its characters or more scores nothing


def anls(item: Item, answer: str) -> float:
    """Return the similarity to the nearest reference, 0 to 1, or 0 from `THRESHOLD` on."""
    return max(_similarity(_plain(answer), _plain(wanted)) for wanted in item.answers)


def _similarity(answer: str, wanted: str) -> float:
    distance = Levenshtein.normalized_distance(answer, wanted)
    return 1 - distance if distance < THRESHOLD else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


ANLS = Metric(
    name="anls",
    about="1 - edit distance / longer length to the nearest reference, 0 from half on",
    parts=mean_of(anls),
)
