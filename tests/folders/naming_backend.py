"""A backend that says each picture's name, at a pace and with failures that a test chooses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from gemma3vl_app.generation import Answer, Chunk, Usage
from gemma3vl_app.stream import Stream
from gemma3vl_app.testing.scripted import ScriptedBackend


class NamingBackend(ScriptedBackend):
    """`failing` raises when asked about a name, `breaking` fails its answer; `seconds` by name.

    `answers` replaces "This is NAME." `asked` holds names in order, `most_running` the most answers
    that were given at once. Where `held` is not set, answers wait.
    """

    def __init__(
        self,
        *,
        failing: Mapping[str, Exception] | None = None,
        breaking: Mapping[str, Exception] | None = None,
        seconds: Mapping[str, float] | None = None,
        answers: Mapping[str, Answer] | None = None,
        **options,
    ) -> None:
        super().__init__(**options)
        self.failing, self.breaking = dict(failing or {}), dict(breaking or {})
        self.seconds, self.answers = dict(seconds or {}), dict(answers or {})
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.most_running = 0
        self.open = threading.Event()
        self.open.set()
        self._own_lock = threading.Lock()
        self._own_running = 0

    def stream(self, conversation, **options) -> Stream:
        super().stream(conversation, **options)  # checks and records
        (picture,) = conversation.pictures
        self.asked.append(picture.name)
        if picture.name in self.failing:
            raise self.failing[picture.name]
        stream = Stream(on_cancel=lambda: self.cancelled.append(picture.name))
        with self._own_lock:
            self._own_running += 1
            self.most_running = max(self.most_running, self._own_running)
        threading.Thread(
            target=self._say, args=(picture.name, stream, options.get("schema")), daemon=True
        ).start()
        return stream

    def _say(self, name: str, stream: Stream, schema: object) -> None:
        self.open.wait()
        time.sleep(self.seconds.get(name, 0))
        text = json.dumps({"name": name}) if schema is not None else f"This is {name}."
        stream.put(Chunk(text=text))
        with self._own_lock:
            self._own_running -= 1
        if name in self.breaking:
            stream.fail(self.breaking[name])
        else:
            stream.finish(self.answers.get(name) or Answer(text, "stop", Usage(20, 3, 16, 4)))


def draw_pictures(folder: Path, *names: str) -> Path:
    """Put small pictures of different sizes into `folder`."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 8), "red").save(path)
    return folder
