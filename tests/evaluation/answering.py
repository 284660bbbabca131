"""A backend whose answer depends on the question, and data to ask it about."""

import json
import threading
from pathlib import Path

from PIL import Image

from gemma3vl_app.errors import BusyError
from gemma3vl_app.generation import Token
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES


class AnsweringBackend(ScriptedBackend):
    """Answers by the first of `answers` whose key stands in the question, else "I do not know"."""

    def __init__(self, answers=None, *, letters=None, busy=0, capabilities=DEFAULT_CAPABILITIES):
        super().__init__(capabilities=capabilities)
        self.answers = answers or {}
        self.letters = letters or {}  # log-probability by letter
        self.scored: list[str] = []
        self.busy = busy  # refusals before a score is given
        self._score_lock = threading.Lock()

    @property
    def asked(self) -> list[str]:
        return [request.conversation.messages[-1].text for request in self.requests]

    def _pieces(self, request):
        question = request.conversation.messages[-1].text
        return [next((a for key, a in self.answers.items() if key in question), "I do not know")]

    def score(self, conversation, text, *, adapter=None, session=""):
        with self._score_lock:
            if self.busy:
                self.busy -= 1
                raise BusyError("Full.")
            self.scored.append(text)
        return (Token(0, text, self.letters[text]),)


def write_jsonl(folder: Path, *rows: dict, name: str = "data.jsonl") -> Path:
    """Write rows, and each picture that they name and that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        named = row.get("picture") or row.get("image")
        if isinstance(named, str) and named.endswith(".png"):
            Image.new("RGB", (12, 12), "red").save(folder / named)
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def animals(folder: Path, count: int = 6) -> Path:
    """Questions "What is number 3?", whose answers are "animal 3", about a picture each."""
    rows = [
        {
            "id": str(number),
            "picture": f"{number}.png",
            "question": f"What is number {number}?",
            "answers": [f"animal {number}"],
            "kind": "odd" if number % 2 else "even",
        }
        for number in range(count)
    ]
    return write_jsonl(folder, *rows)
