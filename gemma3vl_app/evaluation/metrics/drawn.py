"""Questions about drawn scenes: right or wrong, as the demo is examined."""

from __future__ import annotations

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.metric import Metric, mean_of
from gemma3vl_app.scenes.items import is_right


def right(item: Item, answer: str) -> float:
    """Return 1 where the answer says what the drawn scene shows, else 0."""
    return float(any(is_right(item.kinds[0], answer, wanted) for wanted in item.answers))


SCENE_ACCURACY = Metric(
    name="accuracy",
    about="the answer says what was drawn; a description names each thing and no other",
    parts=mean_of(right),
)
