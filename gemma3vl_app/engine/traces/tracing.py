"""One trace on its way through the engine: what is asked, over which tokens, with which tools.

Shapes: n tokens of the answer, L tokens of prompt and answer together, D model width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gemma3vl_app.engine.attention import Pass
from gemma3vl_app.engine.kv import SequenceKV
from gemma3vl_app.engine.model import TextModel, finish_work
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Chunk, Status
from gemma3vl_app.prompting.prompt import ImageInput, PreparedPrompt
from gemma3vl_app.traces import Place, Result, Trace, TracedToken

if TYPE_CHECKING:
    from gemma3vl_app.engine.prefill import Prefill
    from gemma3vl_app.engine.sequence import Sequence

Watch = Callable[[int, torch.Tensor], None]


@dataclass(eq=False)
class Tracing:
    """What a trace is asked for.

    `prompt` is the conversation's with the answer after it, of which the last tokens are `answer`;
    `result` comes when it is done.
    """

    asked: Trace[Any]
    prompt: PreparedPrompt
    answer: tuple[TracedToken, ...]
    places: tuple[Place, ...]
    result: Any = None

    @property
    def answer_start(self) -> int:
        """The position of the answer's first token."""
        return len(self.prompt.ids) - len(self.answer)

    @property
    def answer_ids(self) -> list[int]:
        """The answer's token ids."""
        return [token.id for token in self.answer]

    def first_picture(self) -> int:
        """Return where the first picture begins; raises `ConversationError` where there is none."""
        if not self.prompt.images:
            raise ConversationError(
                "There is no picture in the conversation, so there is nothing to look at. "
                "Ask about a picture, or see how sure the model was with explain.tokens."
            )
        return self.prompt.images[0].start

    def rows(self, tokens: tuple[int, ...]) -> list[int]:
        """Return the positions that predicted the answer's `tokens`, checked."""
        if not tokens:
            raise ConversationError("No token of the answer was chosen; choose at least one.")
        for token in tokens:
            if not 0 <= token < len(self.answer):
                raise ConversationError(
                    f"Token {token} is not part of the answer, which has {len(self.answer)}."
                )
        return [self.answer_start - 1 + token for token in tokens]


@dataclass(eq=False)
class Tools:
    """What a trace works with; `kv` holds the part of the prompt that was asked to be known."""

    text_model: TextModel
    prefill: Prefill
    sequence: Sequence
    kv: SequenceKV
    unit_sec: float

    def pace(self, total: int) -> Pace:
        """Return what tells when a unit of work is over, for `total` steps; 0 says nothing."""
        return Pace(self.sequence, self.unit_sec, total)

    def through(
        self, vectors: torch.Tensor, batch: Pass, watch: Watch | None = None
    ) -> Generator[None, None, torch.Tensor]:
        """Run vectors (B, n, D) through all layers, yielding between units; before the norm.

        `watch` is given each layer's number and output.
        """
        pace = self.pace(0)
        for number, layer in enumerate(self.text_model.layers(vectors, batch)):
            vectors = layer(vectors)
            if watch is not None:
                watch(number, vectors)
            if pace.step(vectors):
                yield
        batch.advance()
        return vectors

    def pictures(self, prompt: PreparedPrompt) -> list[ImageInput]:
        """Return the pictures of `prompt` that `kv` does not hold."""
        return [image for image in prompt.images if image.start >= self.kv.length]


class Pace:
    """Counts steps: tells people how far a trace is, and the trace when others get a turn.

    With a `total` of 0 people are not told: what is a step within a step is nothing to them.
    """

    def __init__(self, sequence: Sequence, unit_sec: float, total: int) -> None:
        self._sequence = sequence
        self._unit_sec = unit_sec
        self._total = total
        self._done = 0
        self._began = time.perf_counter()

    def step(self, computed: torch.Tensor) -> bool:
        """Count a step that computed something; True where the unit of work is over, so yield."""
        finish_work(computed)
        self._done += 1
        now = time.perf_counter()
        if now - self._began < self._unit_sec / 2:
            return False
        self._began = now
        self._tell()
        return True

    def telling(self, work: Generator[None, None, Result]) -> Generator[None, None, Result]:
        """Pass `work` through; people hear at each of its units that it goes on."""
        while True:
            try:
                next(work)
            except StopIteration as end:
                result: Result = end.value
                return result
            self._tell()
            yield

    def _tell(self) -> None:
        if self._total:
            self._sequence.stream.put(Chunk(status=Status("tracing", self._done, self._total)))


def numbers(tensor: torch.Tensor) -> Any:
    """Return a tensor as a float32 array of its own."""
    return tensor.detach().float().cpu().numpy().copy()
