"""Who hears of what happens to models."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from gemma3vl_app.manager.values import ModelEvent

Listener = Callable[[ModelEvent], None]
_log = logging.getLogger(__name__)


class News:
    """Listeners, told one event after the other; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Tell `listener` from now on; returns what ends that."""
        with self._lock:
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return unsubscribe

    def tell(self, event: ModelEvent) -> None:
        """Tell every listener, on this thread; their mistakes are theirs."""
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            try:
                listener(event)
            except Exception:  # any listener, any mistake
                _log.exception("a listener failed on %s", event.kind)
