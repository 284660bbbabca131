import itertools
import math
import random

import numpy as np
import pytest

from gemma3vl_app.scenes.drawing import TONES, draw, outline
from gemma3vl_app.scenes.scene import (
    COLOURS,
    HELD_OUT_PAIRS,
    MOST_THINGS,
    SHAPES,
    STYLES,
    Scene,
    Thing,
    random_scene,
)


def scenes(count: int, **options: bool) -> list[Scene]:
    rng = random.Random(5)
    return [random_scene(rng, **options) for _ in range(count)]


def test_the_same_seed_gives_the_same_scene_and_the_same_picture():
    first, second = (random_scene(random.Random(7)) for _ in range(2))
    assert first == second
    one, other = (np.asarray(draw(first, random.Random(8))) for _ in range(2))
    assert (one == other).all()


def test_there_are_one_to_six_things_and_every_shape_colour_and_style_occurs():
    drawn = scenes(600)
    assert {len(scene.things) for scene in drawn} == set(range(1, MOST_THINGS + 1))
    assert {thing.shape for scene in drawn for thing in scene.things} == set(SHAPES)
    assert {thing.colour for scene in drawn for thing in scene.things} == set(COLOURS)
    assert {scene.style for scene in drawn} == set(STYLES)


def test_things_neither_touch_nor_leave_the_picture():
    for scene in scenes(200):
        wide, high = max(1.0, scene.aspect), 1 / min(1.0, scene.aspect)
        for one, other in itertools.combinations(scene.things, 2):
            distance = math.hypot((one.x - other.x) * wide, (one.y - other.y) * high)
            assert distance > one.radius + other.radius
        for thing in scene.things:
            assert thing.radius / wide < thing.x < 1 - thing.radius / wide
            assert thing.radius / high < thing.y < 1 - thing.radius / high


def test_held_out_pairs_come_only_where_they_are_asked_for():
    assert {shape for _, shape in HELD_OUT_PAIRS} == set(SHAPES)
    trained = {thing.pair for scene in scenes(400) for thing in scene.things}
    assert not trained & HELD_OUT_PAIRS
    for scene in scenes(100, held_out=True):
        assert any(thing.pair in HELD_OUT_PAIRS for thing in scene.things)


def test_no_thing_has_the_colour_of_its_background():
    for scene in scenes(300):
        assert scene.background not in {thing.colour for thing in scene.things}


def test_the_place_of_a_thing_is_the_ninth_its_centre_lies_in():
    def at(x: float, y: float) -> str:
        return Thing("star", "red", "small", False, x, y, 0.1, 0).place

    assert at(0.1, 0.1) == "at the top left"
    assert at(0.5, 0.5) == "in the middle"
    assert at(0.9, 0.4) == "on the right"
    assert at(0.5, 0.99) == "at the bottom"


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_fill_their_radius(shape: str):
    radius = np.hypot(*outline(shape).T).max()
    assert 0.85 < radius <= 1.25


@pytest.mark.parametrize("style", STYLES)
def test_a_thing_has_a_tone_of_its_colour_where_it_is(style):
    thing = Thing("circle", "red", "large", False, 0.5, 0.5, 0.25, 0.0)
    scene = Scene((thing,), "white", "plain", style, 1.0)
    pixels = np.asarray(draw(scene, random.Random(2), side=200)).astype(int)
    nearest = min(np.abs(pixels[100, 100] - tone).max() for tone in TONES["red"])
    assert nearest < 50  # shading and JPEG included
    assert (pixels[5, 5] > 230).all()


def test_a_wide_scene_gives_a_wide_picture():
    scene = Scene((), "white", "plain", "plain", 4 / 3)
    assert draw(scene, random.Random(0), side=90).size == (120, 90)
