"""What earlier requests leave to later ones: computed prefixes, and the ids of answers.

A prefix counts as the same only if token ids, picture keys and scope (adapter, session salt) all
are. Knows nothing of the model. Both memories are bounded and safe to ask from any thread.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from gemma3vl_app.engine.kv import SequenceKV
from gemma3vl_app.prompting.prompt import PreparedPrompt, PromptKey, common_prefix

Scope = tuple[Hashable, ...]  # adapter key and session salt

_MAX_SNAPSHOTS = 128  # bounds the time of one look-up; memory is bounded in bytes
_MAX_ANSWER_TOKENS = 1 << 20  # some 30 MB of Python integers


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A prompt (with its answer, if any) whose first `kv.length` tokens have been computed."""

    scope: Scope
    key: PromptKey
    kv: SequenceKV

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the buffers it keeps alive."""
        return sum(log.allocated_bytes for log in self.kv.logs())


class PrefixCache:
    """Snapshots in order of use, bounded by the bytes of the buffers they keep alive."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._snapshots: list[Snapshot] = []  # least recently used first
        self._lock = threading.Lock()

    def add(self, snapshot: Snapshot) -> None:
        """Keep `snapshot`; what was used longest ago makes room for it.

        One that is larger than the whole budget is not kept, so that it cannot drive out the rest.
        """
        if snapshot.allocated_bytes > self._budget_bytes:
            return
        with self._lock:
            self._snapshots.append(snapshot)
            while self._snapshots and (
                len(self._snapshots) > _MAX_SNAPSHOTS or self._bytes() > self._budget_bytes
            ):
                self._snapshots.pop(0)

    def find(
        self, scope: Scope, prompt: PreparedPrompt, *, uncomputed: int = 1
    ) -> tuple[SequenceKV, int] | None:
        """Return the keys and values to start from and how many tokens of `prompt` they cover.

        At least the last `uncomputed` tokens are left out: their logits are what is wanted.
        """
        with self._lock:
            best, length = self._best(scope, prompt, uncomputed)
            if best is None:
                return None
            self._snapshots.remove(best)
            self._snapshots.append(best)
            return best.kv, length

    def covered_tokens(self, scope: Scope, prompt: PreparedPrompt) -> int:
        """Return how many tokens of `prompt` need not be computed."""
        with self._lock:
            return self._best(scope, prompt, uncomputed=1)[1]

    def clear(self) -> None:
        """Drop every snapshot."""
        with self._lock:
            self._snapshots.clear()

    @property
    def bytes(self) -> int:
        """Bytes of all buffers kept alive, each counted once."""
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        logs = {id(log): log for kept in self._snapshots for log in kept.kv.logs()}
        return sum(log.allocated_bytes for log in logs.values())

    def _best(
        self, scope: Scope, prompt: PreparedPrompt, uncomputed: int
    ) -> tuple[Snapshot | None, int]:
        best, longest = None, 0
        for snapshot in self._snapshots:
            if snapshot.scope != scope:
                continue
            shared = min(common_prefix(snapshot.key, prompt.key), snapshot.kv.length)
            length = outside_pictures(prompt, min(shared, len(prompt.ids) - uncomputed))
            if length >= longest and length > 0 and snapshot.kv.can_rewind(length):
                best, longest = snapshot, length
        return best, longest


class AnswerMemory:
    """The generated ids of given answers, by what they answered and what they said.

    A client that resends history as text gets the very ids that were generated, so that the prefix
    matches; re-tokenising text may give others.
    """

    def __init__(self) -> None:
        self._answers: OrderedDict[Hashable, tuple[str, tuple[int, ...]]] = OrderedDict()
        self._tokens = 0
        self._lock = threading.Lock()

    def remember(self, scope: Scope, prompt: PreparedPrompt, text: str, ids: Sequence[int]) -> None:
        """Keep the ids of an answer, or of the rest of one that `prompt` leaves open.

        `text` is the whole answer's text, `ids` are the new ones.
        """
        start = prompt.answer_start or len(prompt.ids)
        whole = (*prompt.ids[start:].tolist(), *ids)
        key = self._key(scope, prompt, start, text)
        with self._lock:
            _, replaced = self._answers.pop(key, ("", ()))
            self._answers[key] = (text, whole)
            self._tokens += len(whole) - len(replaced)
            while self._tokens > _MAX_ANSWER_TOKENS:
                _, (_, dropped) = self._answers.popitem(last=False)
                self._tokens -= len(dropped)

    def recall(
        self, scope: Scope, prompt: PreparedPrompt, text: str, *, exact: bool = False
    ) -> tuple[int, ...] | None:
        """Return the ids generated for `text` as the answer to `prompt`, or None.

        White space around the text does not matter, unless `exact`: an answer that is to be
        continued goes on right after its last character.
        """
        key = self._key(scope, prompt, len(prompt.ids), text)
        with self._lock:
            said, ids = self._answers.get(key, ("", None))
            if ids is None or (exact and said != text):
                return None
            self._answers.move_to_end(key)
            return ids

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._answers.clear()
            self._tokens = 0

    @staticmethod
    def _key(scope: Scope, prompt: PreparedPrompt, length: int, text: str) -> Hashable:
        """Digest the first `length` tokens and all pictures (none stands in an answer)."""
        digest = hashlib.sha256(prompt.ids[:length].tobytes())
        for key in prompt.image_keys:
            digest.update(key)
        return scope, digest.digest(), text.strip()


def outside_pictures(prompt: PreparedPrompt, length: int) -> int:
    """Return `length`, or the start of the picture that a cut at `length` would split."""
    for start, stop in prompt.image_spans:
        if start < length < stop:
            return start
    return length
