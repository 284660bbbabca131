"""A fence around the whole text goes, whatever pieces it comes in; everything else stays."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma3vl_app.tasks.fences import Unfencing, unfenced


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("A line\nand another", "A line\nand another"),
        ("```markdown\n# Title\n\nText\n```", "# Title\n\nText"),
        ("\n```\nText\n```\n", "Text"),
        ("```Title\nText", "```Title\nText"),
        ("```md\nText\n```python\ncode\n```\n```", "Text\n```python\ncode\n```"),
        ("```python\ncode\n```", "```python\ncode\n```"),
        ("```markdown\nCut in the mid", "Cut in the mid"),
        ("Text\n```", "Text\n```"),
        ("```markdown\nuse `x` or ```x```", "use `x` or ```x```"),
        ("```\n```", ""),
        ("  \n Text  \n", "Text"),
        ("", ""),
        ("``", "``"),
    ],
)
def test_the_fence_around_the_whole_goes(said, kept):
    assert unfenced(said) == kept
    assert streamed(list(said)) == kept


@given(st.lists(st.text("`\n am", max_size=6), max_size=12))
def test_pieces_make_no_difference(pieces):
    assert streamed(pieces) == unfenced("".join(pieces))


def test_text_is_not_held_back_longer_than_needed():
    unfencing = Unfencing()
    assert unfencing.feed("Hello ") == "Hello"
    assert unfencing.feed("you") == " you"


def test_endless_white_space_takes_no_time():
    started = time.process_time()
    unfenced((" " * 100_000 + "x`") * 20)
    assert time.process_time() - started < 2


def streamed(pieces):
    unfencing = Unfencing()
    return "".join([unfencing.feed(piece) for piece in pieces] + [unfencing.finish()])
