"""What is said of models in memory: which there are, what happens to them, what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gemma3vl_app.generation import Progress
from gemma3vl_app.planning import LoadPlan

State = Literal["loading", "ready", "draining"]
EventKind = Literal["loading", "ready", "failed", "draining", "unloaded"]


@dataclass(frozen=True)
class Freed:
    """Bytes that came back by device; what other threads took or freed meanwhile is in it."""

    bytes_by_device: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.bytes_by_device.values())

    def __str__(self) -> str:
        parts = [f"{size / 2**30:.1f} GiB on {at}" for at, size in self.bytes_by_device.items()]
        return " and ".join(parts) or "an unknown amount of memory"


@dataclass(frozen=True, kw_only=True)
class Resident:
    """A model that is in memory, on its way in, or on its way out.

    `since` is the time (as of `time.time`) it became what `state` says. `memory` are the bytes that
    the process grew by while it was loaded, by device; empty where that was not measured.
    """

    name: str
    state: State
    since: float
    plan: LoadPlan | None = None
    adapters: tuple[str, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    current: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelEvent:
    """Something that happened to a model: `message` is for people.

    loading: it has begun, or (with `progress`) goes on; ready; failed: `message` says why;
    draining: no new requests, running answers may end; unloaded: `freed` came back.
    """

    kind: EventKind
    model: str
    message: str
    progress: Progress | None = None
    freed: Freed | None = None
