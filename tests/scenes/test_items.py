"""The examination's items are the same every time, and what is right counts."""

from itertools import islice

import pytest

from gemma3vl_app.scenes.items import KINDS, items
from gemma3vl_app.scenes.scene import HELD_OUT_PAIRS


def test_items_are_the_same_every_time_and_half_of_them_show_an_unseen_pair():
    first, second = (list(islice(items("colour"), 20)) for _ in range(2))
    assert [item.turn for item in first] == [item.turn for item in second]
    assert [item.pictures for item in first] == [item.pictures for item in second]
    unseen = [any(t.pair in HELD_OUT_PAIRS for t in item.scenes[0].things) for item in first]
    assert 5 <= sum(unseen) <= 15


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "read"])
def test_every_kind_has_items_and_the_right_answer_counts(kind: str):
    for item in islice(items(kind), 5):
        assert item.turn.kind == kind
        assert item.right(item.turn.answer)
        assert item.right(item.turn.answer.upper().rstrip("."))
        assert not item.right("Something else.")


def test_one_word_is_read_exactly_or_wrong(needs_fonts):
    for item in islice(items("read"), 5):
        word = item.turn.answer
        assert " " not in word
        assert item.right(f"{word} ")
        assert not item.right(word.swapcase() + "x")


def test_a_description_is_right_when_it_names_each_thing_and_no_other():
    for item in islice(items("describe"), 5):
        pairs = [f"{' '.join(thing.pair)} on the left" for thing in item.scenes[0].things]
        assert item.right("I see a " + " and a ".join(pairs))
        assert not item.right(" and ".join([*pairs, "red heart in the middle"]))
        assert not item.right(" and ".join(pairs[1:]))
