"""Keys and values: grown in place, shared by length, never overwritten for somebody else."""

import pytest
import torch

from gemma3vl_app.engine.kv import SequenceKV

WINDOW = 8


def feed(kv: SequenceKV, values: list[float]) -> list[list[float]]:
    """Store tokens one by one, with their numbers as keys; returns what each layer sees."""
    seen = []
    for value in values:
        token = torch.full((1, 1, 2), float(value))
        seen = [kv.append(layer, token, token)[0][0, :, 0].tolist() for layer in range(2)]
        kv.advance(1)
    return seen


def make() -> SequenceKV:
    return SequenceKV([WINDOW, None])


def test_sliding_layers_see_their_window_and_global_layers_everything():
    sliding, full = feed(make(), list(range(300)))
    assert sliding == list(range(292, 300))
    assert full == list(range(300))


def test_growing_moves_each_token_a_bounded_number_of_times():
    kv, moved, known = make(), [0, 0], [None, None]
    for value in range(5000):
        feed(kv, [value])
        for layer, log in enumerate(kv.logs()):
            if known[layer] is not log:
                moved[layer] += kv.length - log.first
                known[layer] = log
    assert moved[0] < 4 * 5000  # a sliding layer moves its window once per window
    assert moved[1] < 4 * 5000  # a global layer grows by half each time
    assert list(kv.logs())[1].keys.shape[1] < 2 * 5000


def test_sliding_memory_does_not_grow_with_the_conversation_or_its_chunks():
    kv = make()
    feed(kv, list(range(2000)))
    assert next(kv.logs()).keys.shape[1] <= 3 * WINDOW
    chunk = torch.zeros(1, 500, 2)
    for layer in range(2):
        kv.append(layer, chunk, chunk)
    kv.advance(500)
    assert next(kv.logs()).keys.shape[1] <= 3 * WINDOW
    assert feed(kv.fork(kv.length - 1), [-1])[0] == [0] * (WINDOW - 1) + [-1]


def test_taking_back_undoes_a_pass_that_stored_its_token():
    kv = make()
    feed(kv, list(range(30)))
    feed(kv, [-5])
    kv.take_back(30)
    assert feed(kv, [30]) == [list(range(23, 31)), list(range(31))]


def test_a_fork_copies_nothing_until_somebody_writes():
    parent = make()
    feed(parent, [1, 2, 3])
    child = parent.fork(3)
    assert [id(log) for log in child.logs()] == [id(log) for log in parent.logs()]


def test_two_branches_never_see_each_other():
    parent = make()
    feed(parent, [1, 2, 3])
    left, right = parent.fork(3), parent.fork(3)
    assert feed(left, [10, 11])[1] == [1, 2, 3, 10, 11]
    assert feed(right, [20])[1] == [1, 2, 3, 20]
    assert feed(left, [12])[1] == [1, 2, 3, 10, 11, 12]
    assert feed(parent, [30]) == [[1, 2, 3, 30]] * 2


def test_the_last_token_can_always_be_taken_back():
    for length in range(1, 60):
        kv = make()
        feed(kv, list(range(length)))
        assert kv.can_rewind(length - 1)
        assert feed(kv.fork(length - 1), [-1])[0][-1] == -1


def test_what_has_left_the_window_cannot_be_rewound_to():
    kv = make()
    feed(kv, list(range(100)))
    assert not kv.can_rewind(40)
    with pytest.raises(ValueError, match="sliding window"):
        kv.fork(40)


def test_a_chunk_longer_than_the_window_is_seen_whole_by_its_own_queries():
    kv = make()
    chunk = torch.arange(20.0).view(1, 20, 1).expand(1, 20, 2)
    keys, _ = kv.append(0, chunk, chunk)
    assert keys.shape[1] == 20


def feed_guesses(kv: SequenceKV, values: list[float]) -> None:
    """Store tokens in one pass, any number of which may be taken back."""
    chunk = torch.tensor([[[float(value)] * 2 for value in values]])
    for layer in range(2):
        kv.append(layer, chunk, chunk)
    kv.advance_unsure(len(values))


def test_guesses_that_were_wrong_are_taken_back_whatever_the_window():
    for length in range(1, 70):
        for count in (2, 5, 17):  # more than twice the window, too
            for right in range(1, count + 1):
                kv = make()
                feed(kv, list(range(length)))
                feed_guesses(kv, [*range(length, length + right), *[-9] * (count - right)])
                kv.take_back(length + right)
                assert kv.can_rewind(length + right - 1)  # as of any answer that ended
                text = list(range(length + right + 1))
                assert feed(kv, [length + right]) == [text[-WINDOW:], text]


def test_a_pass_of_guesses_that_failed_is_taken_back_whole():
    kv = make()
    feed(kv, list(range(40)))
    feed_guesses(kv, [-9] * 20)
    kv.take_back(40)
    assert feed(kv, [40]) == [list(range(33, 41)), list(range(41))]


def test_taking_guesses_back_copies_nothing():
    kv = make()
    feed(kv, list(range(20)))
    whole = list(kv.logs())[1]
    for step in range(20, 60):
        feed_guesses(kv, [step, -9, -9])
        kv.take_back(step + 1)
    assert list(kv.logs())[1] is whole


def test_taking_back_never_overwrites_what_a_fork_was_given():
    kv = make()
    feed(kv, list(range(20)))
    kept = kv.fork(20)
    kv.take_back(18)
    feed(kv, [-1, -1, -1])
    assert feed(kept, [20])[1] == list(range(21))
    other = kv.fork(kv.length)
    feed_guesses(kv, [5, -9, -9])
    kv.take_back(kv.length - 2)
    assert feed(kv, [6])[1][-3:] == [-1, 5, 6]
    assert feed(other, [7])[1][-3:] == [-1, -1, 7]
