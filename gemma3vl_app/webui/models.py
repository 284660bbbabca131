"""The models on the page: what there is, what fits here and why, what is loaded; loading others.

Turns a `ModelManager` into plain values for `assets/models.js`. Knows nothing of gradio or HTML.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma3vl_app import catalog, hardware
from gemma3vl_app.addresses import is_address
from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import ConversationError, Gemma3VLError, LoadError, public_text
from gemma3vl_app.manager import ModelEvent, ModelManager, Resident
from gemma3vl_app.planning import LoadPlan, plan
from gemma3vl_app.webui.words import Words

WEIGHTS = ("auto", "bf16", "w16", "int8", "int4", "nf4", "fp32")
SERVED_ELSEWHERE = "A server elsewhere has placed this model; it takes no memory here."
_PARTS = ("weights", "kv_global", "kv_sliding", "vision", "logits", "reserve")


@dataclass(frozen=True)
class Before:
    """Which models there were: what the current one was loaded from, and the names of all."""

    current: tuple[str | Path, dict[str, Any]] | None
    names: frozenset[str]


class Models:
    """What is shown of the models, and what people may do with them.

    `may_change` says whether an owner may load and unload; `any_source` lets them name models
    beyond `names`, folders and files too.
    """

    def __init__(
        self,
        manager: ModelManager,
        *,
        names: tuple[str, ...] = (),
        may_change: Callable[[str], bool] = lambda owner: True,
        any_source: bool = True,
        machine: Callable[[], hardware.Machine] = hardware.detect_without_torch,
    ) -> None:
        self.manager = manager
        self._names = names or tuple(catalog.MODELS)
        self._may_change = may_change
        self._any_source = any_source
        self._machine = machine
        self._lending = threading.Lock()

    @property
    def current_name(self) -> str:
        """The name of the model that answers now, or ""."""
        return next((each.name for each in self.manager.resident if each.current), "")

    @property
    def names(self) -> tuple[str, ...]:
        """What is offered."""
        return self._names

    def as_values(
        self, owner: str, words: Words, wishes: Mapping[str, str] | None = None, line: str = ""
    ) -> dict[str, Any]:
        """Return what the models are drawn from; `wishes` are precisions that were chosen."""
        machine = self._machine()
        resident = {each.name: each for each in self.manager.resident}
        may_change = self._may_change(owner)
        names = [
            *self._names,
            *(
                name
                for name in resident
                # Where servers are is for those who may change models.
                if name not in self._names and (may_change or not is_address(name))
            ),
        ]
        wishes = wishes or {}
        return {
            "words": words,
            "may_change": may_change,
            "any_source": self._any_source,
            "weights": WEIGHTS,
            "line": line,
            "models": [
                _model(name, wishes.get(name, "auto"), machine, resident.get(name))
                for name in names
            ],
        }

    def act(self, owner: str, action: str, name: str, weights: str) -> Iterator[str]:
        """Load a model in place of the current one ("use"), or unload it; yields lines to show.

        Raises `Gemma3VLError` where that fails or `owner` may not.
        """
        self._check(owner, name)
        if action == "unload":
            if any(each.current and each.name == name for each in self.manager.resident):
                raise ConversationError("This model answers here: use another one first.")
            yield f"{self.manager.unload(name)} freed."
            return
        yield from self._told(lambda: self.manager.swap(name, **_options(weights)))

    def borrow(
        self, owner: str, name: str, weights: str, before: Before
    ) -> Generator[str, None, Backend]:
        """Load a model beside the one that answers, or where there is no room, in its place.

        What was borrowed since `before` goes first. Yields lines to show and returns the model's
        backend; `put_back` undoes what it did. Raises as `act` does.
        """
        self._check(owner, name)
        try:
            return (yield from self._told(lambda: self.manager.load(name, **_options(weights))))
        except LoadError:
            self._unload_since(before)
            return (yield from self._told(lambda: self.manager.swap(name, **_options(weights))))

    def lend(self) -> Before:
        """Give the right to `borrow` models, until `put_back` is called with what this returns.

        Raises `ConversationError` while somebody has it.
        """
        if not self._lending.acquire(blocking=False):
            raise ConversationError("Somebody is comparing models just now. Try again in a while.")
        names = frozenset(each.name for each in self.manager.resident)
        return Before(self.manager.current_source, names)

    def put_back(self, before: Before) -> str:
        """Let the models be as they were before `lend`; returns what went wrong, or ""."""
        try:
            if before.current is not None and self.manager.current_source != before.current:
                source, options = before.current
                self.manager.swap(source, **options)
            self._unload_since(before)
        except Gemma3VLError as error:
            return public_text(error)
        finally:
            self._lending.release()
        return ""

    def add_adapter(self, owner: str, text: str) -> str:
        """Give the model that answers an adapter, NAME=FOLDER or a folder; returns a line to show.

        Raises `Gemma3VLError` where that fails or `owner` may not: a folder is one of this machine.
        """
        if not (self._any_source and self._may_change(owner)):
            raise ConversationError("Adapters are added on the machine of this server only.")
        name, equals, folder = (part.strip() for part in text.partition("="))
        if not equals:
            name, folder = Path(name).name, name
        if not (name and folder):
            raise ConversationError("Write the adapter's folder, or NAME=FOLDER.")
        self.manager.add_adapter(name, folder)
        return f"{name} is ready: choose it in the settings of the chat."

    def _unload_since(self, before: Before) -> None:
        for each in self.manager.resident:
            if not each.current and each.name not in before.names:
                self.manager.unload(each.name)

    def _check(self, owner: str, name: str) -> None:
        if not self._may_change(owner):
            raise ConversationError("Only the operator of this server may change its models.")
        if name not in self._names and not self._any_source:
            raise ConversationError(f"This server does not offer {name!r}.")

    def _told(self, load: Callable[[], Backend]) -> Generator[str, None, Backend]:
        """Load on a thread of its own, and yield what the manager says meanwhile."""
        events: queue.Queue[ModelEvent | Exception | None] = queue.Queue()
        loaded: list[Backend] = []

        def run() -> None:
            try:
                loaded.append(load())
                events.put(None)
            except Exception as error:
                events.put(error)  # raised below, on the thread that waits

        unsubscribe = self.manager.subscribe(events.put)
        threading.Thread(target=run, daemon=True).start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield _line(event)
        finally:
            unsubscribe()
        return loaded[0]


def _options(weights: str) -> dict[str, Any]:
    return {} if weights not in WEIGHTS or weights == "auto" else {"weights": weights}


def _line(event: ModelEvent) -> str:
    step = event.progress
    if step is None or not step.total:
        return event.message
    return f"{event.message} {100 * step.done // step.total} %"


def _model(
    name: str, weights: str, machine: hardware.Machine, resident: Resident | None
) -> dict[str, Any]:
    entry = catalog.find(name)
    values: dict[str, Any] = {
        "name": name,
        "title": entry.title if entry else name,
        "knows": entry.knows if entry else "",
        "parameters": entry.parameters if entry else 0,
        "card": entry.card if entry and entry.repo else "",
        "weights": weights,
        "state": resident.state if resident else "",
        "current": bool(resident and resident.current),
        "memory": sum(resident.memory.values()) if resident else 0,
        "adapters": list(resident.adapters) if resident else [],
    }
    if is_address(name):
        return {**values, "fits": True, "reasons": [SERVED_ELSEWHERE], "bars": []}
    try:
        found = (
            resident.plan
            if resident and resident.plan
            else plan(name, weights=weights, machine=machine)
        )
    except Gemma3VLError as error:
        return {**values, "fits": False, "reasons": [public_text(error)], "bars": []}
    return {**values, **_plan(found)}


def _plan(found: LoadPlan) -> dict[str, Any]:
    return {
        "fits": found.fits,
        "stored": found.weights,
        "dtype": found.dtype,
        "context_tokens": found.context_tokens,
        "reasons": [*found.reasons, *found.ways],
        "bars": [
            {
                "device": device,
                "limit": found.limits_by_device.get(device, 0),
                "total": bytes_here.total,
                "parts": [
                    {"name": part, "bytes": getattr(bytes_here, part)}
                    for part in _PARTS
                    if getattr(bytes_here, part)
                ],
            }
            for device, bytes_here in found.bytes_by_device.items()
        ],
    }
