"""`ModelManager`: which models are in memory, one load at a time, and memory that comes back.

Works with any backend; loads nothing heavy itself. See docs/manager.md for what happens when.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gemma3vl_app import hardware
from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import EngineError, Gemma3VLError, LoadError
from gemma3vl_app.generation import Progress
from gemma3vl_app.hardware import Machine
from gemma3vl_app.manager.memory import clear_frames, give_back, used_bytes
from gemma3vl_app.manager.news import Listener, News
from gemma3vl_app.manager.values import EventKind, Freed, ModelEvent, Resident, State
from gemma3vl_app.manager.wishes import Key, key_of
from gemma3vl_app.planning.beside import devices_of, fits_beside, overlap

logger = logging.getLogger(__name__)

FINISH_SEC = 30.0  # how long answers may go on when their model is to leave


@dataclass(eq=False)
class _Entry:
    """A model from the wish to load it until its memory is back."""

    key: Key
    name: str
    source: str | Path
    options: dict[str, Any]
    state: State = "loading"
    since: float = field(default_factory=time.time)
    backend: Backend | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    error: BaseException | None = None
    freed: Freed | None = None


class ModelManager:
    """Keep models by source and options; every method is thread-safe.

    ```python
    manager = ModelManager()
    manager.subscribe(lambda event: print(event.message))
    backend = manager.load("demo")
    backend = manager.swap("4b-it", weights="nf4")
    print(manager.unload("4b-it"))
    ```
    """

    def __init__(
        self,
        load: Callable[..., Backend] | None = None,
        *,
        machine: Callable[[], Machine] = hardware.detect_without_torch,
    ) -> None:
        """Use `load(source, progress=..., **options)` for loading: `backends.load.load` if None.

        `machine` describes the machine as it is at that moment.
        """
        self._load = load or _load_here
        self._machine = machine
        self._changed = threading.Condition()  # guards what follows, and every entry
        self._entries: dict[Key, _Entry] = {}
        self._current: _Entry | None = None
        self._budgets: list[frozenset[str] | None] = []  # devices of the loads that are under way
        self._added: dict[Key, dict[str, str | Path]] = {}  # adapters, by what they were added to
        self._news = News()
        self._closed = False

    # --- what is there ---

    @property
    def current(self) -> Backend | None:
        """The backend to talk to: the one swapped to last, or else the one loaded first."""
        with self._changed:
            return self._current.backend if self._current else None

    @property
    def resident(self) -> tuple[Resident, ...]:
        """Every model that takes memory, in the order they were asked for."""
        with self._changed:
            return tuple(
                Resident(
                    name=entry.name,
                    state=entry.state,
                    since=entry.since,
                    plan=entry.backend.plan if entry.backend else None,
                    adapters=entry.backend.adapters if entry.backend else (),
                    memory=entry.memory,
                    current=entry is self._current,
                )
                for entry in self._entries.values()
            )

    @property
    def current_source(self) -> tuple[str | Path, dict[str, Any]] | None:
        """What `current` was loaded from, and its options: `swap` with them brings it back."""
        with self._changed:
            return (self._current.source, dict(self._current.options)) if self._current else None

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every `ModelEvent` from now on; returns what ends that.

        It is called in the thread that loads or unloads. What it raises is logged and goes no
        further.
        """
        return self._news.subscribe(listener)

    # --- coming and going ---

    def load(self, source: str | Path, **options: Any) -> Backend:
        """Return the backend of a model, loading it beside what is there unless it is there.

        The same source and options give the same backend, also when several threads ask at once.
        Waits while another load uses the same devices. Raises `LoadError`.
        """
        entry, is_new = self._entry(source, options)
        if is_new:
            with self._budget(entry):
                self._fill(entry)
        return self._loaded(entry)

    def swap(
        self, source: str | Path, *, finish_sec: float = FINISH_SEC, **options: Any
    ) -> Backend:
        """Make a model the current one in place of the one that is, and return its backend.

        Where it fits beside the old one, it is loaded first and the old one answers meanwhile.
        Otherwise the old one goes first: its answers have `finish_sec` to end. If the new one then
        cannot be loaded, the old one is loaded again. Raises `LoadError`, which says what is there.
        """
        entry, is_new = self._entry(source, options)
        if is_new:
            with self._budget(entry):
                old = self._replace_current(entry, finish_sec)
        else:
            self._loaded(entry)
            old = self._make_current(entry)
        if old is not None:
            self._retire(old, finish_sec)
        return self._loaded(entry)

    def unload(self, name: str, *, finish_sec: float = FINISH_SEC) -> Freed:
        """Let a model go and return the memory that came back.

        Its answers have `finish_sec` to end; then their streams fail with an `EngineError` that
        says what to do. Raises `LoadError` for a name that is not resident.
        """
        with self._changed:
            entry = self._find(name)
            self._changed.wait_for(lambda: entry.state != "loading" or entry.error is not None)
        if entry.error is not None:
            return Freed()  # it never came
        return self._retire(entry, finish_sec)

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Give the current model an adapter, which it gets again whenever it is loaded again.

        Raises `LoadError` where there is no model, or the adapter does not fit.
        """
        with self._changed:
            entry = self._current
            backend = entry.backend if entry else None
        if entry is None or backend is None:
            raise LoadError("No model is loaded that an adapter could be for.")
        backend.add_adapter(name, path)
        with self._changed:
            self._added.setdefault(entry.key, {})[name] = path

    def close(self, *, finish_sec: float = 0.0) -> None:
        """Let every model go, and load none any more; safe to call twice."""
        with self._changed:
            self._closed = True
            names = [entry.name for entry in self._entries.values()]
        for name in names:
            try:
                self.unload(name, finish_sec=finish_sec)
            except LoadError:  # gone meanwhile
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- one model ---

    def _entry(self, source: str | Path, options: dict[str, Any]) -> tuple[_Entry, bool]:
        """Return the entry of a source with its options, and whether the caller has to load it."""
        key = key_of(source, options)
        with self._changed:
            while True:
                if self._closed:
                    raise EngineError("The model manager has been closed. Start the program again.")
                entry = self._entries.get(key)
                if entry is None:
                    entry = _Entry(key, self._free_name(source), source, options)
                    self._entries[key] = entry
                    return entry, True
                if entry.state != "draining":
                    return entry, False
                self._changed.wait()  # until its memory is back

    def _loaded(self, entry: _Entry) -> Backend:
        """Wait for a load, by this thread or another; raises what it failed with."""
        with self._changed:
            self._changed.wait_for(lambda: entry.state != "loading" or entry.error is not None)
            error, backend = entry.error, entry.backend
        if isinstance(error, Gemma3VLError):
            raise type(error)(str(error)) from error  # several threads may raise it
        if error is not None:
            raise error
        if backend is None:
            raise EngineError(f"{entry.name!r} was unloaded again meanwhile. Load it once more.")
        return backend

    @contextmanager
    def _budget(self, entry: _Entry) -> Iterator[None]:
        """Hold the devices that a load may use; whatever ends the block early fails the entry."""
        devices = devices_of(entry.options)
        try:
            with self._changed:
                self._changed.wait_for(
                    lambda: not any(overlap(devices, taken) for taken in self._budgets)
                )
                self._budgets.append(devices)
            try:
                yield
            finally:
                with self._changed:
                    self._budgets.remove(devices)
                    self._changed.notify_all()
        except BaseException as error:
            self._fail(entry, error)
            raise

    def _fill(self, entry: _Entry) -> bool:
        """Load an entry's model; False where that failed, which its `error` then tells."""
        self._tell("loading", entry, f"Loading {entry.name}")
        told: Callable[[Progress], None] | None = entry.options.get("progress")

        def report(step: Progress) -> None:
            self._tell("loading", entry, step.message or f"Loading {entry.name}", progress=step)
            if told is not None:
                told(step)

        try:
            before = used_bytes()
            backend = self._load(entry.source, **{**entry.options, "progress": report})
        except BaseException as error:
            self._fail(entry, error)
            if not isinstance(error, Exception):  # somebody interrupts the program
                raise
            return False
        self._add_again(entry, backend)
        # Loading works with copies, which allocators keep; reading a tokenizer alone leaves some
        # 250 MB that nobody uses.
        give_back()
        grown = {at: size - before[at] for at, size in used_bytes().items() if at in before}
        with self._changed:
            entry.backend, entry.memory = backend, {at: max(0, n) for at, n in grown.items()}
            entry.state, entry.since = "ready", time.time()
            self._current = self._current or entry
            self._changed.notify_all()
        self._tell("ready", entry, f"{entry.name} is ready")
        return True

    def _add_again(self, entry: _Entry, backend: Backend) -> None:
        """Give a model the adapters it was given when it was here before, as far as they exist."""
        with self._changed:
            added = dict(self._added.get(entry.key, {}))
        for name, path in added.items():
            try:
                backend.add_adapter(name, path)
            except Gemma3VLError as error:
                logger.warning("%s comes back without its adapter %s: %s", entry.name, name, error)

    def _fail(self, entry: _Entry, error: BaseException) -> None:
        """Note that a load failed, once, and free what it had got so far."""
        with self._changed:
            if entry.error is not None or entry.state != "loading":
                return
            entry.error = error
            self._entries.pop(entry.key, None)
            self._changed.notify_all()
        expected = isinstance(error, Gemma3VLError)
        if not expected:
            logger.error("loading %s failed", entry.name, exc_info=error)
        clear_frames(error)
        give_back()
        why = str(error) if expected else f"{entry.name} was not loaded; the log has the details."
        self._tell("failed", entry, why)

    def _retire(self, entry: _Entry, finish_sec: float) -> Freed:
        """Let a ready model finish and go, or wait until another thread has done so."""
        with self._changed:
            if entry.state == "draining":
                self._changed.wait_for(lambda: entry.freed is not None)
                assert entry.freed is not None
                return entry.freed
            entry.state, entry.since = "draining", time.time()
            backend, entry.backend = entry.backend, None
            self._changed.notify_all()
            if self._current is entry:
                ready = [each for each in self._entries.values() if each.state == "ready"]
                self._current = ready[-1] if ready else None
        freed = Freed()
        try:
            self._tell("draining", entry, f"{entry.name} finishes its answers and is unloaded")
            before = used_bytes()
            assert backend is not None
            try:
                backend.close(finish_sec=finish_sec)
            except Exception:  # a defect of a backend; the model is gone for us all the same
                logger.exception("closing %s failed", entry.name)
            del backend
            give_back()
            after = used_bytes()
            freed = Freed({at: max(0, size - after.get(at, 0)) for at, size in before.items()})
        finally:
            with self._changed:
                entry.freed = freed
                self._entries.pop(entry.key, None)
                self._changed.notify_all()
        self._tell("unloaded", entry, f"{entry.name} is unloaded: {freed} came back", freed=freed)
        return freed

    # --- one model in place of another ---

    def _replace_current(self, entry: _Entry, finish_sec: float) -> _Entry | None:
        """Load `entry` and make it current; returns the old one where it still has to go."""
        with self._changed:
            old = self._current
            plan = old.backend.plan if old and old.backend else None
        if old is None:
            self._fill(entry)
            return None
        if fits_beside(entry.source, entry.options, self._machine(), plan):
            if self._fill(entry):
                return self._make_current(entry)
            raise self._swap_error(entry, f"{old.name} is still loaded.")
        self._retire(old, finish_sec)
        if self._fill(entry):
            self._make_current(entry)
            return None
        raise self._swap_error(entry, self._restore(old))

    def _restore(self, old: _Entry) -> str:
        """Load a model again that made room in vain; returns what became of it, for people."""
        try:
            again, is_new = self._entry(old.source, old.options)
        except EngineError as error:  # closed meanwhile
            return str(error)
        if not is_new:
            return f"{old.name} is being loaded again."
        if self._fill(again):
            self._make_current(again)
            return f"{old.name} was loaded again."
        return f"{old.name} could not be loaded again either: {again.error}"

    def _swap_error(self, entry: _Entry, outcome: str) -> LoadError:
        error = entry.error
        if isinstance(error, Gemma3VLError):
            return LoadError(f"{error} {outcome}")
        return LoadError(f"{entry.name} was not loaded; the log has the details. {outcome}")

    def _make_current(self, entry: _Entry) -> _Entry | None:
        """Make a ready entry current; returns the one that was, if it was another."""
        with self._changed:
            if entry.state != "ready":  # unloaded meanwhile
                return None
            old, self._current = self._current, entry
            return old if old is not entry else None

    # --- names and news ---

    def _find(self, name: str) -> _Entry:
        for entry in self._entries.values():
            if entry.name == name:
                return entry
        loaded = ", ".join(entry.name for entry in self._entries.values()) or "none"
        raise LoadError(f"No model {name!r} is loaded. Loaded now: {loaded}.")

    def _free_name(self, source: str | Path) -> str:
        """Return a name for a source that no other resident model has."""
        path = Path(source).expanduser()
        name = path.resolve().name if path.exists() else str(source)
        taken = {entry.name for entry in self._entries.values()}
        numbered = (f"{name} ({number})" for number in range(2, len(taken) + 3))
        return next(each for each in (name, *numbered) if each not in taken)

    def _tell(
        self,
        kind: EventKind,
        entry: _Entry,
        message: str,
        *,
        progress: Progress | None = None,
        freed: Freed | None = None,
    ) -> None:
        """Tell every listener, outside the lock."""
        self._news.tell(
            ModelEvent(kind=kind, model=entry.name, message=message, progress=progress, freed=freed)
        )


def _load_here(source: str | Path, **options: Any) -> Backend:
    from gemma3vl_app.backends.load import load

    return load(source, **options)
