"""What a long job shows meanwhile on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.text import Text

from gemma3vl_app.cli import load
from gemma3vl_app.errors import Gemma3VLError
from gemma3vl_app.generation import Progress
from gemma3vl_app.plain import plain

LINE_EVERY_SEC = 30.0  # of a log, which nobody watches
LONGEST_ESTIMATE_SEC = 600.0  # answers come in bursts: a short look back would see one or none


class Follower(Protocol):
    """What is told of each step."""

    def __call__(self, step: Progress, /) -> None:
        """Show a step."""
        ...


@contextmanager
def followed(title: str, things: str) -> Iterator[Follower]:
    """Show progress on stderr, and say what is kept where the run ends early."""
    last: list[Progress] = []
    with _bar(title) if load.stderr.is_terminal else _lines(things) as show:

        def follow(step: Progress) -> None:
            last[:] = [step]
            show(step)

        try:
            yield follow
        except (KeyboardInterrupt, Gemma3VLError):
            if last:
                note(
                    f"Stopped: {last[0].done:,} of {last[0].total:,} {things} are done and kept. "
                    "The same command goes on from there."
                )
            raise


@contextmanager
def _bar(title: str) -> Iterator[Follower]:
    """Draw a bar with counts and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("[red]{task.fields[failed]}"), TimeRemainingColumn(), TextColumn("left")),
    )
    with Bars(*columns, console=load.stderr, speed_estimate_period=LONGEST_ESTIMATE_SEC) as bars:
        task = bars.add_task(title, total=None, failed="")

        def show(step: Progress) -> None:
            if bars.tasks[0].total is None:  # what earlier runs did tells nothing about the speed
                bars.reset(task, total=step.total, completed=step.done)
            bars.update(task, completed=step.done, failed=step.message)

        yield show


@contextmanager
def _lines(things: str) -> Iterator[Follower]:
    """Print a line now and then."""
    began = printed = time.monotonic()
    first: list[int] = []

    def show(step: Progress) -> None:
        nonlocal printed, began
        now = time.monotonic()
        if not first:
            first.append(step.done)
            began = now
        if now - printed < LINE_EVERY_SEC:
            return
        printed = now
        new, left = step.done - first[0], step.total - step.done
        minutes = (now - began) / new * left / 60 if new else None
        parts = [f"{step.done:,} of {step.total:,} {things}", step.message]
        parts.append("" if minutes is None else f"about {minutes:,.0f} min left")
        note(", ".join(part for part in parts if part))

    yield show


def note(line: str) -> None:
    """Say something on stderr, in one line."""
    load.stderr.print(Text(plain(line)), soft_wrap=True)
