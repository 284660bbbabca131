"""Maps of the real demo's answers fall on what was asked about; docs/explain.md has all of them."""

import json

import pytest

import gemma3vl_app as gv
from gemma3vl_app.finetune import demo_maps
from gemma3vl_app.finetune.demo_files import read_state
from gemma3vl_app.loading.demo import DATA


@pytest.fixture(scope="module")
def demo(base_270m):
    with gv.load("demo") as backend:
        yield backend


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "scenes"),
    [("attention", 6), ("saliency", 4), ("saliency to the pixels", 3), ("occlusion", 2)],
)
def test_mean_heat_in_the_things_box_is_twice_that_outside(demo, method, scenes):
    assert demo_maps.score(demo, method, scenes).ratio >= 2


def test_the_scenes_ask_for_one_thing_among_several_and_its_box_lies_in_the_picture():
    for item, thing in demo_maps.asked_about(30):
        assert len(item.scenes[0].things) > 1
        assert thing.shape in item.turn.question and thing.colour in item.turn.answer.lower()
        left, top, right, bottom = demo_maps.box_of(item, thing)
        picture = item.pictures[0]
        assert 0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height


def test_the_figures_in_the_docs_are_of_the_shipped_weights_and_meet_the_target():
    report = json.loads(demo_maps.RESULTS.read_text(encoding="utf-8"))
    assert report["weights"] == read_state(DATA)["sha256"]
    assert report["target"]["met"]
    (occlusion,) = (each for each in report["scores"] if each["method"] == "occlusion")
    assert occlusion["scenes"] == demo_maps.SCENES and occlusion["ratio"] >= 2
    page = demo_maps.PAGE.read_text(encoding="utf-8")
    scores = [demo_maps.MapScore(**each) for each in report["scores"]]
    assert demo_maps.table(scores) in page
