"""What may be reused: the same ids, the same pictures, the same scope, and nothing less."""

import numpy as np
import torch

from gemma3vl_app.engine.kv import SequenceKV
from gemma3vl_app.engine.prefix import AnswerMemory, PrefixCache, Snapshot
from gemma3vl_app.prompting.prompt import ImageInput, PreparedPrompt
from tests.engine.reference import picture

SCOPE = (None, "salt")


def prompt(*ids: int, pictures: dict[int, bytes] | None = None) -> PreparedPrompt:
    """A prompt of ids, with pictures (3 tokens each, by their start) of given keys."""
    images = tuple(
        ImageInput(key, picture(0), None, start, start + 3)
        for start, key in (pictures or {}).items()
    )
    return PreparedPrompt(np.array(ids, dtype=np.int64), images, answer_start=len(ids))


def computed(length: int) -> SequenceKV:
    kv = SequenceKV([None, 1000])
    token = torch.zeros(1, length, 2)
    for layer in range(2):
        kv.append(layer, token, token)
    kv.advance(length)
    return kv


def cache_with(known: PreparedPrompt, budget_bytes: int = 1 << 20) -> PrefixCache:
    cache = PrefixCache(budget_bytes)
    cache.add(Snapshot(SCOPE, known.key, computed(len(known))))
    return cache


def test_at_least_one_token_is_left_uncomputed():
    cache = cache_with(prompt(1, 2, 3))
    assert cache.covered_tokens(SCOPE, prompt(1, 2, 3)) == 2
    assert cache.covered_tokens(SCOPE, prompt(1, 2, 3, 4)) == 3


def test_another_scope_finds_nothing():
    assert cache_with(prompt(1, 2, 3)).covered_tokens((None, "other"), prompt(1, 2, 3)) == 0


def test_another_picture_in_the_same_place_ends_the_prefix_before_it():
    cache = cache_with(prompt(1, 9, 9, 9, 2, 3, pictures={1: b"A"}))
    assert cache.covered_tokens(SCOPE, prompt(1, 9, 9, 9, 2, 3, 4, pictures={1: b"A"})) == 6
    assert cache.covered_tokens(SCOPE, prompt(1, 9, 9, 9, 2, 3, 4, pictures={1: b"B"})) == 1


def test_the_longest_of_several_prefixes_is_taken():
    cache = cache_with(prompt(1, 2, 3))
    cache.add(Snapshot(SCOPE, prompt(1, 2, 3, 4, 5).key, computed(5)))
    found = cache.find(SCOPE, prompt(1, 2, 3, 4, 5, 6))
    assert found is not None
    assert found[1] == 5


def test_memory_stays_within_the_budget_and_the_oldest_goes_first():
    one = cache_with(prompt(1, 2)).bytes
    cache = PrefixCache(3 * one)
    for first in range(10):
        cache.add(Snapshot(SCOPE, prompt(first, 2).key, computed(2)))
        assert cache.bytes <= 3 * one
    assert cache.covered_tokens(SCOPE, prompt(0, 2, 3)) == 0
    assert cache.covered_tokens(SCOPE, prompt(9, 2, 3)) == 2


def test_shared_buffers_are_counted_once():
    kv = computed(4)
    cache = PrefixCache(1 << 20)
    cache.add(Snapshot(SCOPE, prompt(1, 2, 3, 4).key, kv.fork(4)))
    alone = cache.bytes
    cache.add(Snapshot(SCOPE, prompt(1, 2, 3).key, kv.fork(3)))
    assert cache.bytes == alone


def test_answers_are_known_by_what_they_answered_and_said():
    memory = AnswerMemory()
    memory.remember(SCOPE, prompt(1, 2), " A cat.", [7, 8])
    assert memory.recall(SCOPE, prompt(1, 2), "A cat.") == (7, 8)
    assert memory.recall(SCOPE, prompt(1, 3), "A cat.") is None
    assert memory.recall(SCOPE, prompt(1, 2), "A dog.") is None
    assert memory.recall((None, "other"), prompt(1, 2), "A cat.") is None


def test_an_answer_to_another_picture_is_not_recalled():
    memory = AnswerMemory()
    memory.remember(SCOPE, prompt(1, 9, 9, 9, pictures={1: b"A"}), "A cat.", [7])
    assert memory.recall(SCOPE, prompt(1, 9, 9, 9, pictures={1: b"B"}), "A cat.") is None
