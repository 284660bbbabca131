"""Computing a prompt, unit by unit: its pictures through the tower, then its tokens in chunks.

Each `yield` ends a unit of at most about `unit_sec` seconds, between which the engine serves
others. On a slow machine that is some layers of a chunk, since many tokens at once cost less each:
every weight is read, and widened where it is kept in few bits, once a chunk. Knows nothing of
answers. Shapes: L prompt tokens, n tokens of a chunk, T soft tokens, D model width.
"""

from __future__ import annotations

import time
from collections.abc import Generator

import numpy as np
import numpy.typing as npt
import torch

from gemma3vl_app.engine.attention import Batch, picture_numbers
from gemma3vl_app.engine.kv import SequenceKV
from gemma3vl_app.engine.model import TextModel, finish_work
from gemma3vl_app.engine.prefix import outside_pictures
from gemma3vl_app.engine.sequence import Sequence
from gemma3vl_app.engine.vision import FeatureCache, PictureKey, VisionEncoder
from gemma3vl_app.generation import Chunk, Status
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.pixels import pixels
from gemma3vl_app.prompting.prompt import ImageInput, PreparedPrompt

_MAX_CHUNK_TOKENS = 2048  # bounds the memory of activations
_MAX_MASK_CELLS = 1 << 26  # new tokens x visible tokens: bounds the memory of a chunk's mask


class Prefill:
    """Computes prompts over one model; remembers encoded pictures and the machine's speed."""

    def __init__(
        self,
        text_model: TextModel,
        vision: VisionEncoder | None,
        features: FeatureCache,
        prompt_format: PromptFormat,
        *,
        unit_sec: float,
        chunk_tokens: int,
    ) -> None:
        self._text_model = text_model
        self._vision = vision
        self._features = features
        self._format = prompt_format
        self._unit_sec = unit_sec
        self._least_tokens = chunk_tokens
        self._tokens_per_sec = 0.0  # not known yet
        self._encoding: set[PictureKey] = set()  # pictures that some sequence is encoding right now

    @property
    def vision(self) -> VisionEncoder:
        """The tower; only for prompts with pictures, which a text-only format never prepares."""
        assert self._vision is not None
        return self._vision

    def pixels_of(self, image: ImageInput) -> npt.NDArray[np.float32]:
        """Return what the tower is given of a picture or crop: float32 (3, S, S)."""
        return pixels(image, self._format)

    def run(self, sequence: Sequence, kv: SequenceKV) -> Generator[None, None, torch.Tensor]:
        """Compute what `kv` lacks of the prompt; returns its last vectors (score_tokens + 1, D)."""
        prompt = sequence.request.prompt
        images = [image for image in prompt.images if image.start >= kv.length]
        features: dict[int, torch.Tensor] = {}  # (T, D) by the position of the first soft token
        for done, image in enumerate(images):
            sequence.stream.put(Chunk(status=Status("vision", done, len(images))))
            features[image.start] = yield from self.features_of(sequence, image)
            yield
        tail: list[torch.Tensor] = []
        while True:
            hidden = yield from self._compute_chunk(sequence, kv, features)  # (n, D)
            wanted_from = len(prompt.ids) - sequence.request.score_tokens - 1
            if kv.length > wanted_from:
                tail.append(hidden[wanted_from - kv.length :])  # counted from the chunk's end
            if kv.length == len(prompt.ids):
                return torch.cat(tail)
            yield

    def _compute_chunk(
        self, sequence: Sequence, kv: SequenceKV, features: dict[int, torch.Tensor]
    ) -> Generator[None, None, torch.Tensor]:
        """Run the next chunk through the text model; returns its final vectors (n, D)."""
        prompt = sequence.request.prompt
        start, stop = kv.length, self._chunk_end(prompt, kv.length)
        unit = _Unit(sequence, self._unit_sec)
        unit.begin(start, len(prompt.ids))
        ids = torch.tensor(prompt.ids[start:stop])[None]  # (1, n)
        pictures = [(at - start, features.pop(at)) for at in list(features) if at < stop]
        batch = Batch(
            [kv], stop - start, picture_numbers(prompt, start, stop) if pictures else None
        )
        vectors = self._text_model.embed(ids, pictures)  # (1, n, D)
        layers = self._text_model.layers(vectors, batch)
        for number, layer in enumerate(layers):
            if not unit.has_time:
                unit.end()
                yield
                unit.begin(start + (stop - start) * number // len(layers), len(prompt.ids))
            vectors = layer(vectors)
            unit.step()
        batch.advance()
        hidden = self._text_model.norm(vectors)[0]
        finish_work(hidden)
        unit.end()
        if stop - start >= self._least_tokens:  # fewer tokens would measure the fixed cost
            measured = (stop - start) / unit.total_sec
            self._tokens_per_sec = (measured + (self._tokens_per_sec or measured)) / 2
        return hidden

    def next_chunk_sec(self, sequence: Sequence) -> float:
        """Return about how long the sequence's next chunk takes, pictures and pauses aside."""
        prompt, done = sequence.request.prompt, 0 if sequence.kv is None else sequence.kv.length
        if done == len(prompt.ids) or not self._tokens_per_sec:
            return 0.0
        return (self._chunk_end(prompt, done) - done) / self._tokens_per_sec

    def _chunk_end(self, prompt: PreparedPrompt, start: int) -> int:
        """Return where the next chunk ends, never inside a picture.

        It is one unit of work on a fast machine, several where even the least tokens take longer.
        """
        fits = int(self._tokens_per_sec * self._unit_sec)
        most = min(_MAX_CHUNK_TOKENS, _MAX_MASK_CELLS // (start + _MAX_CHUNK_TOKENS))
        count = max(self._least_tokens, min(fits, most))
        end = outside_pictures(prompt, min(start + count, len(prompt.ids)))
        if end > start:
            return end
        return next(stop for first, stop in prompt.image_spans if first == start)

    def features_of(
        self, sequence: Sequence, image: ImageInput
    ) -> Generator[None, None, torch.Tensor]:
        """Return a picture's features (T, D), encoding it unless that was done or is being done."""
        key = (sequence.request.scope, image.key)
        while key in self._encoding:  # another request is at it and has its turns in between
            yield
        if (known := self._features.get(key)) is not None:
            return known
        self._encoding.add(key)
        try:
            began = time.perf_counter()
            picture = torch.from_numpy(self.pixels_of(image))  # (3, S, S)
            sequence.clock.decode_image_sec += time.perf_counter() - began
            yield
            features = yield from _timed(self.vision.encode(picture), sequence)
            self._features.put(key, features)
            return features
        finally:
            self._encoding.discard(key)


class _Unit:
    """The clock of a chunk's units: tells when to let others have their turn."""

    def __init__(self, sequence: Sequence, unit_sec: float) -> None:
        self._sequence = sequence
        self._unit_sec = unit_sec
        self._began = self._step_began = 0.0
        self._longest_step_sec = 0.0
        self.total_sec = 0.0  # of all units, not of what others did in between

    def begin(self, done: int, total: int) -> None:
        """Start a unit, and say how many tokens are done."""
        self._sequence.stream.put(Chunk(status=Status("prefill", done, total)))
        self._began = self._step_began = time.perf_counter()

    def step(self) -> None:
        """Note that one of several equal steps is done."""
        now = time.perf_counter()
        self._longest_step_sec = max(self._longest_step_sec, now - self._step_began)
        self._step_began = now

    @property
    def has_time(self) -> bool:
        """Whether another step would end within the unit; the first always may."""
        spent = self._step_began - self._began
        return spent == 0 or spent + self._longest_step_sec <= self._unit_sec

    def end(self) -> None:
        """Count the unit's seconds."""
        elapsed = time.perf_counter() - self._began
        self.total_sec += elapsed
        self._sequence.clock.prefill_sec += elapsed


def _timed(
    work: Generator[None, None, torch.Tensor], sequence: Sequence
) -> Generator[None, None, torch.Tensor]:
    """Pass `work` through, adding the seconds it runs (not those it waits) to the vision time."""
    while True:
        began = time.perf_counter()
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            sequence.clock.vision_sec += time.perf_counter() - began
        yield
