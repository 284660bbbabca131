"""Who waits for the model: callers take turns, and nobody starves behind thirty of another's."""

from types import SimpleNamespace

import pytest

from gemma3vl_app.engine.queue import WaitingQueue
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.messages import Conversation

FOREVER = {"sampling": Sample(seed=0), "max_new_tokens": 6000}


def waiting(*names, tracing=()):
    """A queue of requests named after their callers: "a1" is the first of "a"."""
    queue = WaitingQueue()
    for name in names:
        request = SimpleNamespace(caller=name[0], tracing=name if name in tracing else None)
        queue.append(SimpleNamespace(name=name, request=request))
    return queue


def names(sequences):
    return [each.name for each in sequences]


def take(queue, room, at_work=()):
    return names(queue.take(room, at_work))


def test_callers_take_turns_and_each_ones_own_come_in_order():
    queue = waiting("a1", "a2", "a3", "a4", "b1", "c1", "c2")
    assert names(queue) == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]
    assert [take(queue, 1) for _ in range(7)] == [
        ["a1"], ["b1"], ["c1"], ["a2"], ["c2"], ["a3"], ["a4"],
    ]  # fmt: skip
    assert len(queue) == 0 and not list(queue)


def test_several_places_at_once_are_shared():
    assert take(waiting("a1", "a2", "a3", "b1"), 3) == ["a1", "b1", "a2"]


def test_who_has_the_fewest_at_work_is_next():
    at_work = waiting("a8", "a9", "c9")
    assert take(waiting("a1", "c1", "b1", "b2"), 4, at_work) == ["b1", "c1", "b2", "a1"]


def test_who_has_just_had_a_turn_is_behind_those_who_have_not():
    queue = waiting("a1", "a2", "b1", "b2")
    assert take(queue, 1) == ["a1"]
    queue.append(SimpleNamespace(name="c1", request=SimpleNamespace(caller="c", tracing=None)))
    assert names(queue) == ["b1", "a2", "c1", "b2"]


def test_one_that_leaves_takes_nobodys_turn():
    queue = waiting("a1", "a2", "b1")
    first, _, second = queue
    queue.remove(first)
    assert names(queue) == ["a2", "b1"]
    assert first not in queue and second in queue
    with pytest.raises(ValueError):
        queue.remove(first)


def test_traces_wait_for_one_another_and_hold_up_no_answer():
    queue = waiting("a1", "a2", "b1", "b2", tracing=("a1", "b1"))
    assert take(queue, 4) == ["a1", "b2", "a2"]
    assert take(queue, 4, at_work=waiting("d1", tracing=("d1",))) == []
    assert take(queue, 4) == ["b1"]


def test_a_caller_with_many_requests_starves_no_other(make_backend):
    backend = make_backend(max_running=1)
    first = backend.stream(Conversation().user("Go"), session="running", **FOREVER)
    for chunk in first:
        if chunk.tokens:
            break
    order = []
    start = backend.engine._prompts.start

    def note(sequence):
        order.append(sequence.request.caller)
        start(sequence)

    backend.engine._prompts.start = note
    short = {"sampling": Greedy(), "max_new_tokens": 1}
    greedy = [
        backend.stream(Conversation().user(f"Me {n}"), session="greedy", **short) for n in range(30)
    ]
    polite = backend.stream(Conversation().user("Please"), session="polite", **short)
    assert next(polite).status.done == 1  # ahead of it is one of thirty
    first.cancel()
    assert polite.answer.tokens
    assert all(stream.answer.tokens for stream in greedy)
    assert order[:2] == ["greedy", "polite"]
