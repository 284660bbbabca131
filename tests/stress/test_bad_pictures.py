"""Thousands of bad pictures: in requests to a server, and straight to the workers that decode.

The server answers or refuses each, and an answer about a good picture stays the same. What a worker
does not outlive it hides, as it should: the workers themselves are tried for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gemma3vl_app.picture_workers import PictureWorkers
from tests.faults.model_process import ModelProcess, model_process
from tests.picture_files import pdf
from tests.stress import memory, served_pictures
from tests.stress.batches import BATCH, Outcome, send
from tests.stress.canary import KEYS, Canary
from tests.stress.foreign import foreign, pillow_sources
from tests.stress.mutations import mutated

KEY = "key-of-the-stress-test"


# --- requests to a server ---


@pytest.fixture
def served(tiny: Path) -> Iterator[ModelProcess]:
    places = served_pictures.CONNECTIONS * 2  # a place is free a moment after its reply has come
    limits = {"requests_at_once": places, "requests_at_once_per_caller": places}
    with model_process(tiny, [KEY, *KEYS], **limits) as served:
        yield served


def check_replies(replies: served_pictures.Replies) -> None:
    print(replies)
    assert set(replies.statuses) == {200, 400}
    memory.check(replies.memory)


def test_a_hundred_damaged_files_leave_a_server_as_it_was(served: ModelProcess) -> None:
    replies = served_pictures.send(mutated(100, seed=1), served, KEY, Canary(served.address))
    check_replies(replies)
    assert replies.memory[-1] <= replies.memory[0] * (1 + memory.GROWTH)  # nothing large is sent
    assert replies.statuses[200] > 10 and replies.statuses[400] > 10


@pytest.mark.stress
def test_ten_thousand_damaged_files_leave_a_server_as_it_was(served: ModelProcess) -> None:
    replies = served_pictures.send(mutated(10_000, seed=2), served, KEY, Canary(served.address))
    check_replies(replies)
    assert replies.statuses.total() == 10_000
    assert replies.statuses[200] > 1_000 and replies.statuses[400] > 1_000


@pytest.mark.stress
def test_the_pictures_that_pillow_is_tested_with_leave_a_server_as_it_was(
    served: ModelProcess, pillow: Path
) -> None:
    # The large ones are at the end. So all go twice, and the first time is what is loaded late.
    canary = Canary(served.address)
    first = served_pictures.send(foreign(pillow), served, KEY, canary)
    print(first)
    assert first.memory[-1] - first.memory[0] <= memory.LOADED_LATE_BYTES
    replies = served_pictures.send(foreign(pillow), served, KEY, canary)
    check_replies(replies)
    assert replies.statuses.total() > 1_000
    assert replies.statuses[200] > 100 and replies.statuses[400] > 100


# --- straight to the workers ---


@pytest.fixture
def pillow(pytestconfig: pytest.Config) -> Path:
    """The sources of Pillow, with the pictures that it is tested with."""
    assert pytestconfig.cache is not None
    return pillow_sources(pytestconfig.cache.mkdir("pillow-sources"))


@pytest.fixture
def workers() -> Iterator[PictureWorkers]:
    workers = PictureWorkers(processes=1)
    yield workers
    workers.close()


def check(outcome: Outcome) -> None:
    print(outcome, *outcome.died, *outcome.too_slow, sep="\n")
    assert outcome.memory_growth <= memory.GROWTH
    assert not outcome.died and not outcome.too_slow


def test_a_few_hundred_damaged_files_do_no_harm(workers: PictureWorkers) -> None:
    outcome = send(mutated(2 * BATCH, seed=1), workers)
    check(outcome)
    assert outcome.accepted > 20 and outcome.refused > 20


@pytest.mark.stress
def test_ten_thousand_damaged_files_do_no_harm(workers: PictureWorkers) -> None:
    outcome = send(mutated(10_000, seed=2), workers)
    check(outcome)
    assert outcome.count == 10_000
    assert outcome.accepted > 1_000 and outcome.refused > 1_000


@pytest.mark.stress
def test_the_pictures_that_pillow_is_tested_with_do_no_harm(
    workers: PictureWorkers, pillow: Path
) -> None:
    print(send(foreign(pillow), workers))  # some are large: what the heap keeps for such, it keeps
    outcome = send(foreign(pillow), workers)
    check(outcome)
    assert outcome.count > 1_000
    assert outcome.accepted > 100 and outcome.refused > 100


@pytest.mark.stress
def test_two_thousand_damaged_pdfs_do_no_harm(workers: PictureWorkers) -> None:
    documents = {"pages": pdf("red", "lime"), "large page": pdf("blue", size=(900, 900))}
    outcome = send(mutated(2_000, seed=3, valid=documents), workers)
    check(outcome)
    assert outcome.accepted > 200 and outcome.refused > 200
