import random
from dataclasses import replace

import numpy as np
import pytest

from gemma3vl_app.scenes import print_drawing
from gemma3vl_app.scenes.fonts import CHARACTERS, FAMILIES, Face
from gemma3vl_app.scenes.print_drawing import draw_print, draw_with_letters
from gemma3vl_app.scenes.printed import (
    LEAST_CONTRAST,
    LEAST_HEIGHT,
    MOST_LINES,
    WAYS,
    Print,
    brightness,
    random_print,
    random_word,
    readable_pairs,
    tone_gaps,
)
from gemma3vl_app.scenes.scene import COLOURS
from gemma3vl_app.scenes.words import HELD_OUT_WORDS, TRAINED_WORDS, WORDS, made_up_word

pytestmark = pytest.mark.usefixtures("needs_fonts")

PRINT = Print(
    lines=("Open", "at 10:30"),
    face=Face("DejaVu Sans Mono"),
    colour="black",
    background="white",
    surround="white",
    fill="plain",
    way="plain",
    size=0.1,
    spacing=1.8,
    x=0.5,
    y=0.5,
    align="left",
    angle=0.0,
    lean=(0.0, 0.0),
    aspect=1.0,
)


@pytest.fixture
def uncompressed(monkeypatch):
    monkeypatch.setattr(print_drawing, "compressed", lambda picture, rng: picture)


def prints(count: int, **options: bool) -> list[Print]:
    rng = random.Random(5)
    return [random_print(rng, **options) for _ in range(count)]


def levels(shown: Print, seed: int = 1, side: int = 192):
    return np.asarray(draw_print(shown, random.Random(seed), side=side).convert("L")).astype(int)


def test_words_are_short_and_different_and_one_in_twelve_is_held_out():
    assert list(WORDS) == sorted(set(WORDS))
    assert len(WORDS) >= 2_000 and len(HELD_OUT_WORDS) == 200
    assert all(3 <= len(word) <= 9 and word.isalpha() and word.islower() for word in WORDS)
    assert not HELD_OUT_WORDS & set(TRAINED_WORDS)


def test_the_same_seed_gives_the_same_print_and_the_same_picture():
    first, second = (random_print(random.Random(7)) for _ in range(2))
    assert first == second
    one, other = (draw_with_letters(first, random.Random(8)) for _ in range(2))
    assert one[0].tobytes() == other[0].tobytes() and one[1] == other[1]


def test_all_prints_can_be_drawn_with_every_letter_inside_the_picture_in_reading_order():
    rng = random.Random(3)
    for shown in prints(300):
        picture, letters = draw_with_letters(shown, rng)
        assert 160 <= min(picture.size) <= 320
        assert "".join(each.character for each in letters) == "".join(shown.words)
        for each in letters:
            assert 0 <= each.left < each.right <= 1
            assert 0 <= each.top < each.bottom <= 1


def test_everything_there_is_occurs_in_training():
    drawn = prints(1_500)
    assert {c for shown in drawn for word in shown.words for c in word} == set(CHARACTERS)
    assert {shown.colour for shown in drawn} == set(COLOURS)
    assert {shown.background for shown in drawn} == set(COLOURS)
    assert {shown.way for shown in drawn} == set(WAYS)
    assert {len(shown.words) for shown in drawn} == {1, 2, 3, 4}
    assert {len(shown.lines) for shown in drawn} == set(range(1, MOST_LINES + 1))
    assert {shown.face.bold for shown in drawn} == {shown.face.italic for shown in drawn}


def test_held_out_words_and_fonts_come_only_where_they_are_asked_for():
    for held_out in (False, True):
        for shown in prints(500, held_out=held_out):
            assert FAMILIES[shown.face.family].held_out == held_out
            for word in shown.words:
                bare = word.rstrip("!?.").lower()
                if bare.isalpha():
                    assert (bare in HELD_OUT_WORDS) == held_out
    rng = random.Random(0)
    assert {random_word(rng, held_out=True) for _ in range(3_000)} == HELD_OUT_WORDS


def test_letters_are_high_enough_and_as_high_as_stated(uncompressed):
    assert min(shown.size for shown in prints(300)) >= LEAST_HEIGHT > 14 / 192
    for size in (0.1, 0.3):
        dark = levels(replace(PRINT, lines=("H",), size=size)) < 128
        assert dark.any(axis=1).sum() == pytest.approx(size * 192, abs=1.5)


@pytest.mark.parametrize(
    "way",
    [
        PRINT,
        replace(PRINT, angle=0.15, align="center"),
        replace(PRINT, lean=(0.2, -0.15), x=0.45, y=0.55),
        replace(PRINT, face=Face("DejaVu Sans Mono", bold=True), angle=-0.1, lean=(0.1, 0.2)),
        replace(PRINT, colour="yellow", background="blue", surround="red", way="sign", angle=0.1),
        replace(PRINT, way="hard", aspect=1.3),
    ],
    ids=["straight", "turned", "leaning", "bold", "sign", "hard"],
)
def test_without_a_letter_only_its_box_is_empty(way: Print, uncompressed):
    side = 320
    _, letters = draw_with_letters(way, random.Random(1), side=side)
    whole = levels(way, side=side)
    high, wide = whole.shape
    loose = 3 + 20 * abs(way.angle)  # pixels: the box around a turned box
    number = 0
    for row, line in enumerate(way.lines):
        for at, character in enumerate(line):
            if character == " ":
                continue
            # In a font of equal widths, nothing else moves.
            lines = list(way.lines)
            lines[row] = f"{line[:at]} {line[at + 1 :]}"
            gone = np.abs(levels(replace(way, lines=tuple(lines)), side=side) - whole) > 40
            rows, columns = np.flatnonzero(gone.any(axis=1)), np.flatnonzero(gone.any(axis=0))
            box = letters[number]
            assert box.character == character
            assert columns[0] == pytest.approx(box.left * wide, abs=loose)
            assert columns[-1] + 1 == pytest.approx(box.right * wide, abs=loose)
            assert rows[0] == pytest.approx(box.top * high, abs=loose)
            assert rows[-1] + 1 == pytest.approx(box.bottom * high, abs=loose)
            number += 1
    assert number == len(letters)


def test_text_stands_out_from_what_is_behind_it(uncompressed):
    for shown in prints(200):
        if shown.fill == "noisy":
            continue
        picture, letters = draw_with_letters(shown, random.Random(2), side=320)
        pixels = np.asarray(picture.convert("L")).astype(int)
        high, wide = pixels.shape
        spans = []
        for each in letters:
            top, bottom = round(each.top * high), round(each.bottom * high) + 1
            part = pixels[max(0, top) : bottom, max(0, round(each.left * wide)) :]
            part = part[:, : round((each.right - each.left) * wide) + 1]
            spans.append(part.max() - part.min())
        # Thin strokes between two pixels are not quite of the text's tone.
        assert max(spans) > 0.9 * LEAST_CONTRAST


def test_colours_that_are_hard_to_read_are_never_together():
    pairs = readable_pairs()
    for text, behind in (("yellow", "white"), ("blue", "black"), ("red", "red"), ("gray", "green")):
        assert (text, behind) not in pairs
    assert all(max(tone_gaps(*pair)) > LEAST_CONTRAST for pair in pairs)
    assert brightness((255, 255, 255)) == pytest.approx(255)


def test_a_print_whose_colours_are_the_same_can_still_be_drawn():
    assert draw_print(replace(PRINT, colour="white"), random.Random(1), side=96).size == (96, 96)


def test_lines_are_set_to_the_side_asked_for(uncompressed):
    lefts = {}
    for align in ("left", "center", "right"):
        _, letters = draw_with_letters(replace(PRINT, align=align), random.Random(1), side=192)
        lefts[align] = letters[0].left
    assert lefts["left"] < lefts["center"] < lefts["right"]


def test_letters_of_leaning_text_grow_smaller_to_one_side_and_turned_text_falls(uncompressed):
    level = replace(PRINT, lines=("HHHHHHHH",))
    _, letters = draw_with_letters(replace(level, lean=(0.3, 0.0)), random.Random(1), side=192)
    heights = [each.bottom - each.top for each in letters]
    assert heights == sorted(heights, reverse=True) and heights[0] > 1.1 * heights[-1]
    _, letters = draw_with_letters(replace(level, angle=0.15), random.Random(1), side=192)
    assert letters[-1].top > letters[0].top + 0.05


def test_made_up_words_are_many_and_never_those_held_out():
    rng = random.Random(0)
    words = {made_up_word(rng) for _ in range(3_000)}
    assert len(words) > 2_500
    assert all(3 <= len(word) <= 10 and word.isalpha() and word.islower() for word in words)
    assert not words & HELD_OUT_WORDS
