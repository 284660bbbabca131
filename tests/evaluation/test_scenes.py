"""The demo is really asked about drawn scenes."""

import pytest

import gemma3vl_app as gv
from gemma3vl_app.scenes.items import KINDS


@pytest.mark.slow
def test_the_demo_knows_drawn_colours_and_places():
    """One question of each of the first kinds; it has those asserted right in 97 of 100."""
    asked = KINDS[: KINDS.index("where") + 1]
    with gv.load("demo") as demo:
        done = gv.evaluate(demo, "scenes", limit=len(asked))
    right = {score.kind: score.value for score in done.scores if score.kind != "all"}
    assert not done.failed and list(right) == sorted(asked)
    assert right["colour"] == right["where"] == 1.0
    assert done.about["model"]["name"] == "demo" and done.about["tokens"]["image_tokens"] > 0
