import random

import numpy as np
import pytest

from gemma3vl_app.finetune.pages import draw_page

pytestmark = pytest.mark.usefixtures("needs_fonts")
SIDE = 224


def test_a_page_has_letters_from_top_to_bottom_all_within_it():
    counts = []
    for seed in range(12):
        page, letters = draw_page(random.Random(seed), SIDE)
        assert page.size == (SIDE, SIDE)
        assert min(each.top for each in letters) > -0.03  # a shadow of rounding
        assert max(each.bottom for each in letters) < 1.03
        assert all(each.top - 0.1 < each.line < each.bottom + 0.1 for each in letters)
        counts.append(len(letters))
    assert np.mean(counts) > 15  # a print has ten


def test_each_letter_of_a_page_is_where_it_is_said_to_be():
    page, letters = draw_page(random.Random(1), SIDE)
    pixels = np.asarray(page).astype(int)
    for each in letters:
        rows = slice(int(each.top * SIDE), int(each.bottom * SIDE) + 1)
        columns = slice(int(each.left * SIDE), int(each.right * SIDE) + 1)
        box = pixels[rows, columns].reshape(-1, 3)
        assert np.ptp(box, axis=0).max() > 40, each  # ink and what is behind it


def test_the_same_seed_draws_the_same_page():
    pages = [draw_page(random.Random(5), 96) for _ in range(2)]
    assert pages[0][0].tobytes() == pages[1][0].tobytes()
    assert pages[0][1] == pages[1][1]
