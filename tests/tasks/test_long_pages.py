"""Tall pages are cut between lines: none is cut in half, lost or repeated, and order is kept."""

import random
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from gemma3vl_app.pictures import Picture
from gemma3vl_app.tasks.long_pages import PART, TALL, cut_rows, split_page

WORDS = ("going", "jumpy", "Quiet", "line", "ill", "if", ".")
FONT = ImageFont.load_default(16)
STEP = 22  # pixels from a line of this font to the next: a few empty rows lie between


def drawn_page(width=300, height=3000, *, ink="black", paper="white", until=None, seed=0):
    """A page of text, and the rows (first, one past the last) that each line of it covers."""
    words = random.Random(seed)
    page = Image.new("RGB", (width, height), paper)
    draw, lines = ImageDraw.Draw(page), []
    for y in range(8, (until or height) - STEP, STEP):
        text = " ".join(words.choice(WORDS) for _ in range(5))
        draw.text((20, y), text, fill=ink, font=FONT)
        _, top, _, bottom = draw.textbbox((20, y), text, font=FONT)
        lines.append((int(top), int(bottom)))
    return page, lines


def gray(page):
    return np.asarray(page.convert("L"))


@pytest.mark.parametrize(
    "style",
    [
        {},
        {"ink": "white", "paper": "#202028"},
        {"ink": "#606060", "paper": "#f8f4e0"},
        {"width": 200, "height": 6000, "seed": 3},
    ],
    ids=["black on white", "dark", "pale", "very tall"],
)
def test_no_line_of_text_is_cut(style):
    page, lines = drawn_page(**style)
    rows = cut_rows(gray(page))
    assert len(rows) >= page.height / page.width / PART - 1
    for row in rows:
        assert not [line for line in lines if line[0] < row < line[1]], row


def test_borders_and_noise_do_not_hide_the_gaps():
    page, lines = drawn_page()
    without = cut_rows(gray(page))
    draw = ImageDraw.Draw(page)
    draw.line((5, 0, 5, page.height), fill="black", width=3)
    draw.rectangle((280, 0, 299, page.height), fill="navy")
    assert cut_rows(gray(page)) == without
    noise = np.random.default_rng(0).integers(-12, 13, (page.height, page.width, 3))
    noisy = Image.fromarray((np.asarray(page).astype(int) + noise).clip(0, 255).astype(np.uint8))
    for row in cut_rows(gray(noisy)):
        assert not [line for line in lines if line[0] < row < line[1]]


def test_a_gap_of_another_colour_than_the_rest_is_one():
    page = Image.new("RGB", (100, 500), "#203040")
    draw = ImageDraw.Draw(page)
    for y in range(0, 500, 10):
        draw.line((10, y, 90, y + 6), fill="white", width=3)
    draw.rectangle((0, 150, 100, 179), fill="white")
    assert 150 < cut_rows(gray(page))[0] < 180


def test_the_widest_gap_is_taken_so_that_paragraphs_stay_together():
    page = Image.new("RGB", (100, 500), "white")
    draw = ImageDraw.Draw(page)
    for y in (*range(0, 140, 10), *range(170, 500, 10)):
        draw.line((10, y, 90, y + 6), fill="black", width=3)
    first = cut_rows(gray(page))[0]
    assert 140 < first < 170


def test_the_parts_are_the_page_in_order_without_overlap():
    page, _ = drawn_page()
    parts = split_page(Picture.open(page, name="long.png", crops="on"))
    assert np.array_equal(np.concatenate([np.asarray(part.rgb) for part in parts]), page)
    assert [part.name for part in parts] == [
        f"long.png, part {n} of {len(parts)}" for n in range(1, len(parts) + 1)
    ]
    assert {part.crops for part in parts} == {"on"}
    assert max(part.height for part in parts) <= PART * page.width


@pytest.mark.parametrize("size", [(300, 300 * TALL), (1200, 300), (300, 300)])
def test_other_pages_stay_whole(size):
    page = Picture.open(Image.effect_noise(size, 90))
    assert split_page(page) == (page,)


def test_a_gap_below_is_taken_before_something_is_cut():
    page, _ = drawn_page(height=1300, until=250)
    page.paste(Image.effect_noise((300, 400), 90).convert("RGB"), (0, 280))
    ImageDraw.Draw(page).line((0, 800, 300, 1290), fill="black", width=3)
    first = cut_rows(gray(page))[0]
    assert 680 <= first <= 801


def test_a_photo_is_cut_all_the_same_and_its_parts_stay_small():
    rows = cut_rows(np.asarray(Image.effect_noise((100, 1500), 90)))
    edges = [0, *rows, 1500]
    assert all(0 < b - a <= PART * 100 for a, b in pairwise(edges))


def test_parts_with_nothing_on_them_are_left_out():
    page, _ = drawn_page(until=1000)
    whole = Picture.open(page)
    parts = split_page(whole)
    assert sum(part.height for part in parts) < page.height
    assert all(np.asarray(part.rgb).min() < 100 for part in parts)
    empty = Picture.open(Image.new("RGB", (100, 900), "white"))
    assert split_page(empty) == (empty,)


def test_a_line_that_is_no_page_does_not_become_thousands_of_requests():
    stripes = np.zeros((32_768, 1), np.uint8)
    stripes[::2] = 255
    assert len(cut_rows(stripes)) < 150
