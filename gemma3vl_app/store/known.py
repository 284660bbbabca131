"""Which turns of a conversation this process knows to be stored, so that it need not look again.

A turn counts as the same only where it is made of the very same objects: `Chat` keeps them, and
equal pictures may still have different names.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime

from gemma3vl_app.messages import Message
from gemma3vl_app.transcript import Generated, Turn

CONVERSATIONS = 64  # that are remembered; without, a save looks at every turn


# A message holds pictures: they may go when the chat goes.
Known = tuple[weakref.ref[Message], int, tuple[Generated, ...]]


class KnownTurns:
    """The turns of the conversations saved or loaded last; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[str, tuple[datetime, tuple[Known, ...]]] = OrderedDict()

    def remember(self, id: str, changed: datetime, turns: Iterable[Turn]) -> None:
        """Note that these turns are what is stored since `changed`."""
        known = tuple((weakref.ref(t.message), t.parent, t.generated) for t in turns)
        with self._lock:
            self._found[id] = (changed, known)
            self._found.move_to_end(id)
            if len(self._found) > CONVERSATIONS:
                self._found.popitem(last=False)

    def count_same(self, id: str, changed: datetime, turns: tuple[Turn, ...]) -> int:
        """Return how many turns at the beginning are stored as they are.

        Each save gives a conversation another `changed`: after one of another process, none are.
        """
        with self._lock:
            since, known = self._found.get(id, (None, ()))
        if since != changed:
            return 0
        count = 0
        for (message, parent, generated), turn in zip(known, turns, strict=False):
            is_same = message() is turn.message and generated is turn.generated
            if not is_same or parent != turn.parent:
                break
            count += 1
        return count

    def forget(self, id: str) -> None:
        """Note nothing of a conversation."""
        with self._lock:
            self._found.pop(id, None)
