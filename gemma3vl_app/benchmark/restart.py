"""How soon a conversation goes on after a restart, with what the disk kept of it and without."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gemma3vl_app.benchmark.models import WORD, drawn_picture
from gemma3vl_app.benchmark.result import Result
from gemma3vl_app.engine.disk_cache import DiskSettings
from gemma3vl_app.engine.engine import Engine
from gemma3vl_app.engine.sequence import Request
from gemma3vl_app.generation import Greedy
from gemma3vl_app.loading.loader import LoadedModel, load_model
from gemma3vl_app.messages import Conversation
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.tokenizer import TextTokenizer

PICTURES, TOKENS = 4, 2000
_REPEATS = 3


def restart() -> list[Result]:
    """The demo's follow-up after a restart: its first token with a disk cache and without."""
    loaded = load_model("demo")
    with tempfile.TemporaryDirectory() as folder:
        kept = _Restarts(loaded, Path(folder) / "kept")
        answer = kept.history()
        pairs = [(kept.follow_up(answer, True), kept.follow_up(answer, False))]
        pairs += [(kept.follow_up(answer, True), 0.0) for _ in range(_REPEATS - 1)]
        size = sum(file.stat().st_size for file in kept.folder.iterdir())
    return [
        Result(
            name=f"demo, first token of a follow-up after a restart, {PICTURES} pictures and "
            f"{TOKENS:,} tokens before, kept on the disk",
            value=statistics.median(with_disk for with_disk, _ in pairs),
            baseline=pairs[0][1],
            unit="s",
            baseline_name="all computed again",
            bound="at most",
            target=0.1,
            details={"kept_mb": size / 1e6, "closing_sec": kept.closing_sec},
        )
    ]


class _Restarts:
    """Engines one after another over one model: each knows what is on the disk, if anything."""

    def __init__(self, loaded: LoadedModel, folder: Path) -> None:
        self.folder = folder
        self.closing_sec = 0.0
        self._loaded = loaded
        self._tokenizer = TextTokenizer.from_file(loaded.tokenizer_file)
        self._format = PromptFormat.from_config(loaded.config, loaded.preprocessor, self._tokenizer)
        self._history = Conversation().user(
            *(drawn_picture(number) for number in range(PICTURES)), WORD * TOKENS
        )

    def _engine(self, *, disk: bool) -> Engine:
        settings = DiskSettings(
            folder=self.folder,
            budget_bytes=4 << 30,
            identity=self._loaded.revision,
            image_tokens=self._format.image_tokens,
        )
        return Engine(
            self._loaded.model,
            self._tokenizer,
            self._format,
            stop_ids=(),
            disk=settings if disk else None,
        )

    def history(self) -> Sequence[int]:
        """Compute the history and an answer, and close; returns the answer's ids."""
        engine = self._engine(disk=True)
        prompt = prepare(self._history, self._tokenizer, self._format)
        answer = engine.submit(Request(prompt=prompt, sampling=Greedy(), max_new_tokens=8)).answer
        began = time.perf_counter()
        engine.close()
        self.closing_sec = time.perf_counter() - began
        return [token.id for token in answer.tokens]

    def follow_up(self, answer: Sequence[int], disk: bool) -> float:
        """Return the seconds from starting a new engine to the first token of its first answer."""
        began = time.perf_counter()
        engine = self._engine(disk=disk)
        try:
            asked = self._history.assistant("It").user("Which of them is larger?")
            prompt = prepare(asked, self._tokenizer, self._format, recall=lambda *_: tuple(answer))
            stream = engine.submit(Request(prompt=prompt, sampling=Greedy(), max_new_tokens=1))
            next(chunk for chunk in stream if chunk.tokens)
            return time.perf_counter() - began
        finally:
            engine.close()
