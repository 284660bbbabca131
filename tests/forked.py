"""Stands in for `spaces.GPU`: runs a generator function in a process forked for it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

_FORK = multiprocessing.get_context("fork")


def GPU(*, duration: Callable[..., int]) -> Callable[[Any], Any]:
    """Return a decorator; what goes in and comes out is pickled, as it is by `spaces`."""

    def decorate(compute: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def work(args: tuple[Any, ...], end: Any) -> None:
            for piece in compute(*args):
                end.send(piece)
            end.send(None)

        def run(*args: Any) -> Iterator[Any]:
            assert duration(*args) > 0
            here, there = _FORK.Pipe()
            process = _FORK.Process(target=work, args=(args, there), daemon=True)
            process.start()
            there.close()
            try:
                while (piece := here.recv()) is not None:
                    yield piece
            finally:
                process.terminate()
                process.join()

        return run

    return decorate
