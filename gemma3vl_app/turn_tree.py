"""The tree of turns that a `Chat` grows: each message with what follows it, branches side by side.

Not safe from several threads by itself: `Chat` lets in one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gemma3vl_app.messages import Message
from gemma3vl_app.transcript import ROOT, Generated, Transcript, Turn


@dataclass(eq=False)
class TreeTurn:
    """A message in the tree, with what follows it; the root holds no message."""

    message: Message | None = None
    parent: TreeTurn | None = None
    generated: tuple[Generated, ...] = ()
    children: list[TreeTurn] = field(default_factory=list)

    def add(self, message: Message, generated: tuple[Generated, ...] = ()) -> TreeTurn:
        """Return a new turn that follows this one."""
        turn = TreeTurn(message, self, generated)
        self.children.append(turn)
        return turn

    def path(self) -> list[TreeTurn]:
        """Return the turns from the first message down to this one."""
        turns: list[TreeTurn] = []
        turn = self
        while turn.parent is not None:
            turns.append(turn)
            turn = turn.parent
        return turns[::-1]


def flat(root: TreeTurn, head: TreeTurn) -> tuple[tuple[Turn, ...], int]:
    """Return all turns as a `Transcript` has them, and the index of `head` among them."""
    numbers: dict[TreeTurn | None, int] = {root: ROOT}
    turns: list[Turn] = []
    waiting = root.children[::-1]
    while waiting:
        turn = waiting.pop()
        assert turn.message is not None
        numbers[turn] = len(turns)
        turns.append(Turn(turn.message, numbers[turn.parent], turn.generated))
        waiting += turn.children[::-1]
    return tuple(turns), numbers[head]


def grown(root: TreeTurn, transcript: Transcript) -> list[TreeTurn]:
    """Let the turns of `transcript` grow from an empty root, and return them in its order."""
    turns: list[TreeTurn] = []
    for turn in transcript.turns:
        parent = root if turn.parent == ROOT else turns[turn.parent]
        turns.append(parent.add(turn.message, turn.generated))
    return turns
