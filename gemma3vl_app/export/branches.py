"""Ways through the tree of a transcript; a turn is its index in `Transcript.turns`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemma3vl_app.transcript import ROOT, Transcript


@dataclass(frozen=True)
class Branch:
    """A run of turns that is not shown: another version of the shown turn number `position`.

    `position` counts from 0 and is the number of shown turns for what follows the last of them.
    `depth` is the number of turns before its own; it is more than `position` for a branch of a
    branch.
    """

    turns: tuple[int, ...]
    position: int
    depth: int


def path_to(transcript: Transcript, index: int) -> list[int]:
    """Return the turns from the first message down to turn `index`; none for `ROOT`."""
    path = []
    while index != ROOT:
        path.append(index)
        index = transcript.turns[index].parent
    return path[::-1]


def leaves(transcript: Transcript) -> list[int]:
    """Return the last turns of all branches, oldest first."""
    parents = {turn.parent for turn in transcript.turns}
    return [index for index in range(len(transcript.turns)) if index not in parents]


def paths(transcript: Transcript, branches: bool) -> list[list[int]]:
    """Return the path to where the chat stands, and with `branches` those to all other ends."""
    shown = path_to(transcript, transcript.head)
    if not branches:
        return [shown]
    others = [path_to(transcript, leaf) for leaf in leaves(transcript) if leaf != transcript.head]
    return [path for path in (shown, *others) if path]


def side_branches(transcript: Transcript) -> list[Branch]:
    """Return the turns that are not on the shown path, each in exactly one branch, in order."""
    shown = path_to(transcript, transcript.head)
    seen = {ROOT, *shown}
    depths = {ROOT: -1}
    positions = {turn: at for at, turn in enumerate(shown)}
    for index, turn in enumerate(transcript.turns):
        depths[index] = depths[turn.parent] + 1
        if index not in seen:
            positions[index] = depths[index] if turn.parent in seen else positions[turn.parent]
    found = []
    for leaf in leaves(transcript):
        run = []
        index = leaf
        while index not in seen:
            run.append(index)
            index = transcript.turns[index].parent
        seen.update(run)
        if run:
            found.append(Branch(tuple(run[::-1]), positions[run[-1]], depths[run[-1]]))
    return sorted(found, key=lambda branch: branch.position)


def systems(transcript: Transcript, path: Sequence[int]) -> list[str | None]:
    """Return the system text that held for each turn: that of the answer next generated."""
    found: list[str | None] = []
    system = transcript.system
    for index in reversed(path):
        generated = transcript.turns[index].generated
        if generated:
            system = generated[0].system
        found.append(system)
    return found[::-1]


def others(branches: Sequence[Branch], position: int, count: int, shown: bool) -> str:
    """Return "2 other versions, not shown" of turn `position` of `count` shown ones, or ""."""
    found = sum(branch.position == position for branch in branches)
    if not found:
        return ""
    what = "continuation" if position == count else "other version"
    return f"{found} {what}{'' if found == 1 else 's'}{'' if shown else ', not shown'}"
