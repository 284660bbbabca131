"""What followed the last tokens before: found without reading the text again."""

import time
from types import SimpleNamespace

import numpy as np

from gemma3vl_app.engine.speculation.lookup import Grams, Lookup
from gemma3vl_app.prompting.prompt import ImageInput, PreparedPrompt


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def running(prompt: PreparedPrompt, *generated: int) -> SimpleNamespace:
    """As much of a sequence as a lookup sees; the real one can be a key, too."""

    class Running(SimpleNamespace):
        __hash__ = object.__hash__

    return Running(request=SimpleNamespace(prompt=prompt), generated=list(generated))


def test_what_followed_the_longest_match_is_guessed():
    text = ids(9, 1, 2, 3, 50, 51, 8, 1, 2, 3, 60, 61, 9, 1, 2, 3)
    assert Grams(text).after_match(2) == [50, 51]  # 9 1 2 3 is longer than 1 2 3


def test_of_equal_matches_the_newest_counts():
    assert Grams(ids(1, 2, 3, 50, 7, 1, 2, 3, 60, 8, 1, 2, 3)).after_match(1) == [60]


def test_fewer_than_three_tokens_that_match_mean_nothing():
    assert Grams(ids(5, 2, 3, 50, 7, 2, 3)).after_match(4) == []
    assert Grams(ids(1, 2)).after_match(4) == []
    assert Grams(ids()).after_match(4) == []


def test_what_repeats_itself_is_taken_to_go_on():
    assert Grams(ids(1, 2, 1, 2, 1, 2, 1)).after_match(5) == [2, 1, 2, 1, 2]


def test_an_answer_is_found_in_the_prompt_and_in_itself():
    grams = Grams(ids(1, 2, 3, 4, 5, 6))
    for id in (1, 2, 3):
        grams.add(id)
    assert grams.after_match(3) == [4, 5, 6]
    for id in (70, 71, 72, 73, 70, 71, 72):
        grams.add(id)
    assert grams.after_match(2) == [73, 70]


def test_growing_gives_the_same_as_starting_with_all():
    rng = np.random.default_rng(0)
    text = rng.integers(0, 4, 400)
    grown = Grams(text[:50])
    for count, id in enumerate(text[50:].tolist(), start=51):
        grown.add(id)
        fresh = Grams(text[:count])
        assert grown.after_match(6) == fresh.after_match(6)


def test_a_token_of_a_context_of_131072_is_looked_up_in_no_time():
    rng = np.random.default_rng(0)
    grams = Grams(rng.integers(0, 300, 131_072))
    began = time.perf_counter()
    for id in rng.integers(0, 300, 1000).tolist():
        grams.add(id)
        grams.after_match(16)
    assert (time.perf_counter() - began) / 1000 < 1e-3  # some 20 microseconds


def test_pictures_and_control_tokens_are_never_guessed():
    image = ImageInput(b"k", None, None, 4, 7)
    prompt = PreparedPrompt(ids(1, 2, 3, 4, 500, 500, 500, 5, 11, 12, 13, 14, 106, 15), (image,))
    lookup = Lookup({106, 1})
    sequence = running(prompt, 2, 3, 4)
    assert lookup.available(sequence) == 0  # a picture came there
    sequence.generated += [11, 12, 13]
    assert lookup.available(sequence) == 1
    assert lookup.propose([(sequence, 9)]) == [[14]]  # the end of the turn came there
    lookup.forget(sequence)
    assert not lookup._grams


def test_only_new_tokens_are_read():
    lookup = Lookup(())
    sequence = running(PreparedPrompt(ids(1, 2, 3, 4, 5)), 1, 2)
    assert lookup.available(sequence) == 0
    sequence.generated.append(3)
    assert lookup.available(sequence) > 0
    assert lookup.propose([(sequence, 2)]) == [[4, 5]]
