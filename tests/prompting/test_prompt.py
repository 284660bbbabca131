"""Shared prefixes: ids and pictures both count, and a picture is never cut."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma3vl_app.prompting import ImageInput, PreparedPrompt, common_prefix, extended

SOFT, SPAN = 9, 3


def prompt(text):
    """Build a prompt from a word: a capital letter is a picture, its key the letter."""
    ids, images = [], []
    for letter in text:
        if letter.isupper():
            start = len(ids)
            ids += [SOFT] * SPAN
            images.append(ImageInput(letter.encode(), None, None, start, len(ids)))
        ids.append(ord(letter.lower()) if letter.islower() else 0)  # a 0 keeps pictures apart
    return PreparedPrompt(np.array(ids, dtype=np.int64), tuple(images))


def slow_prefix(a, b):
    """Token by token: a token inside a picture counts as (key, position)."""

    def marked(p):
        tokens = [(int(id), None) for id in p.ids]
        for image in p.images:
            for place in range(image.start, image.stop):
                tokens[place] = (SOFT, (image.key, place - image.start))
        return tokens

    length = 0
    for x, y in zip(marked(a), marked(b), strict=False):
        if x != y:
            break
        length += 1
    for start, stop in a.image_spans:
        if start < length < stop:
            return start
    return length


@given(a=st.text("abAB", max_size=8), b=st.text("abAB", max_size=8))
@settings(deadline=None)
def test_the_shared_prefix_is_what_counting_token_by_token_gives(a, b):
    a, b = prompt(a), prompt(b)
    assert common_prefix(a.key, b.key) == common_prefix(b.key, a.key) == slow_prefix(a, b)


def test_equal_ids_with_another_picture_end_before_the_picture():
    assert common_prefix(prompt("abAcd").key, prompt("abBcd").key) == 2
    assert common_prefix(prompt("aAbAc").key, prompt("aAbBc").key) == 1 + SPAN + 1 + 1


def test_a_prompt_cut_inside_a_picture_falls_back_to_its_start():
    whole = prompt("abAc")
    cut = PreparedPrompt(whole.ids[:4].copy(), whole.images)
    assert common_prefix(whole.key, cut.key) == common_prefix(cut.key, whole.key) == 2


def test_empty_and_equal_prompts():
    assert common_prefix(prompt("").key, prompt("a").key) == 0
    assert common_prefix(prompt("aAb").key, prompt("aAb").key) == len(prompt("aAb"))


def test_an_extended_prompt_keeps_its_pictures_and_shares_all_of_the_first():
    first = prompt("aAb")
    longer = extended(first, [50, SOFT, 51])
    assert longer.ids.tolist() == [*first.ids.tolist(), 50, SOFT, 51]
    assert longer.image_spans == first.image_spans
    assert longer.token_types.tolist() == [*first.token_types.tolist(), 0, 0, 0]
    assert common_prefix(first.key, longer.key) == len(first)


def test_token_types_spans_and_counts_agree():
    made = prompt("aAbB")
    assert made.token_types.tolist() == [0, 1, 1, 1, 0, 0, 1, 1, 1, 0]
    assert made.image_spans == ((1, 4), (6, 9))
    assert made.image_keys == (b"A", b"B")
    assert made.image_tokens == 6


def test_a_prompt_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        prompt("ab").ids[0] = 1


def test_fifty_long_snapshots_are_compared_in_a_moment():
    ids = np.random.default_rng(0).integers(0, 262_144, 131_072)
    mine = PreparedPrompt(ids)
    snapshots = [PreparedPrompt(ids.copy()) for _ in range(50)]
    started = time.perf_counter()
    assert {common_prefix(mine.key, other.key) for other in snapshots} == {131_072}
    assert time.perf_counter() - started < 0.25  # about 3 ms on an idle core
