"""Thousands of bad pictures: this program lives, and a good picture among them stays good."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gemma3vl_app.picture_workers import PictureWorkers
from tests.picture_files import pdf
from tests.stress.batches import BATCH, Outcome, send
from tests.stress.foreign import foreign, pillow_sources
from tests.stress.mutations import mutated

MEMORY_GROWTH = 0.1


@pytest.fixture
def workers() -> Iterator[PictureWorkers]:
    workers = PictureWorkers(processes=1)
    yield workers
    workers.close()


def check(outcome: Outcome) -> None:
    print(outcome, *outcome.died, *outcome.too_slow, sep="\n")
    assert outcome.memory_growth <= MEMORY_GROWTH
    assert not outcome.too_slow


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
    workers: PictureWorkers, pytestconfig: pytest.Config
) -> None:
    cache = pytestconfig.cache
    assert cache is not None
    sources = pillow_sources(cache.mkdir("pillow-sources"))
    print(send(foreign(sources), workers))  # some are large: what the heap keeps for such, it keeps
    outcome = send(foreign(sources), workers)
    check(outcome)
    assert outcome.count > 1_000
    assert outcome.accepted > 100 and outcome.refused > 100


@pytest.mark.stress
def test_two_thousand_damaged_pdfs_do_no_harm(workers: PictureWorkers) -> None:
    documents = {"pages": pdf("red", "lime"), "large page": pdf("blue", size=(900, 900))}
    outcome = send(mutated(2_000, seed=3, valid=documents), workers)
    check(outcome)
    assert outcome.accepted > 200 and outcome.refused > 200
