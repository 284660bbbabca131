"""Loads of scripted models, many threads at once, and what events say."""

import threading
import time
from dataclasses import replace

from gemma3vl_app import hardware
from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress
from gemma3vl_app.messages import Conversation
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES

HELLO = Conversation().user("one two three four five six")
ROOMY = hardware.Machine(memory_bytes=200 << 30, available_bytes=200 << 30)


class Loads:
    """A load function over scripted backends, which notes what it was asked and may be told."""

    def __init__(self, seconds=0.0, seconds_per_chunk=0.0):
        self.seconds = seconds
        self.seconds_per_chunk = seconds_per_chunk
        self.calls, self.made, self.running, self.most_running = [], [], 0, 0
        self.failing: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, source, *, progress=None, **options):
        with self._lock:
            self.calls.append(source)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            progress(Progress("load", 1, 2, "bytes", f"Half of {source}"))
            time.sleep(self.seconds)
            if source in self.failing:
                raise LoadError(f"{source} is damaged. Download it again.")
            backend = ScriptedBackend(
                seconds_per_chunk=self.seconds_per_chunk,
                capabilities=replace(DEFAULT_CAPABILITIES, model=str(source)),
            )
            with self._lock:
                self.made.append(backend)
            return backend
        finally:
            with self._lock:
                self.running -= 1


def kinds(events):
    return [(event.kind, event.model) for event in events if event.progress is None]


def in_threads(*functions):
    """Run functions at once; returns what each returned or raised."""
    results = [None] * len(functions)

    def run(number, function):
        try:
            results[number] = function()
        except Exception as error:
            results[number] = error

    threads = [
        threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    return results
