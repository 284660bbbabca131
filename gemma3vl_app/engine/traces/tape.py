"""Every layer's input over the tokens that follow what is known, so that a way back can be taken.

One pass up keeps the inputs; going down, each layer is run once more from its own input. So memory
is bounded by the inputs, never by what goes on inside of all layers at once (checkpointing).
Shapes: n tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Generator

import torch

from gemma3vl_app.engine.aside import Aside
from gemma3vl_app.engine.attention import Pass, picture_numbers
from gemma3vl_app.engine.traces.tracing import Pace, Tools, Tracing
from gemma3vl_app.errors import MemoryLimitError
from gemma3vl_app.prompting.prompt import Ids, ImageInput

MAX_BYTES = 2 << 30


class Tape:
    """The layers' inputs (1, n, D), from the first token that is not known to the last asked row.

    Attributes:
        count: n.
        inputs: one for each layer, in order.
        top: the last layer's output (1, n, D), before the final norm.
        pictures: the pictures among the tokens, each with its features (T, D).
        blocks: the picture that each token belongs to, as `Batch` takes it.
    """

    def __init__(self, tools: Tools, count: int, blocks: Ids) -> None:
        self.count = count
        self.blocks = blocks
        self.inputs: list[torch.Tensor] = []
        self.top = torch.empty(0)
        self.pictures: list[tuple[ImageInput, torch.Tensor]] = []
        self._tools = tools

    def __len__(self) -> int:
        return len(self.inputs)

    @classmethod
    def record(
        cls, tracing: Tracing, last_row: int, tools: Tools, pace: Pace
    ) -> Generator[None, None, Tape]:
        """Run the layers up; raises `MemoryLimitError` before any work if they are too long."""
        prompt, start = tracing.prompt, tools.kv.length
        stop = last_row + 1
        model = tools.text_model
        needed = len(model.windows) * (stop - start) * model.token_bytes
        if needed > MAX_BYTES:
            raise MemoryLimitError(
                f"Following {stop - start:,} tokens through every layer takes {needed >> 20:,} MiB "
                f"(at most {MAX_BYTES >> 20:,}). Use fewer pictures or turns, crops='off', or "
                "explain.attention without rollout, which needs none of it."
            )
        tape = cls(tools, stop - start, picture_numbers(prompt, start, stop))
        for image in tools.pictures(prompt):
            features = yield from tools.prefill.features_of(tools.sequence, image)
            tape.pictures.append((image, features))
            yield
        at = [(image.start - start, features) for image, features in tape.pictures]
        vectors = model.embed(torch.tensor(prompt.ids[start:stop])[None], at)
        for layer in range(len(model.windows)):
            tape.inputs.append(vectors)
            vectors = tape.run(layer, vectors)
            if pace.step(vectors):
                yield
        tape.top = vectors
        return tape

    def run(self, layer: int, vectors: torch.Tensor, aside: Pass | None = None) -> torch.Tensor:
        """Run one layer on vectors (1, n, D); `aside` says what attends, by default as usual."""
        aside = aside or Aside(self._tools.kv, 1, self.count, self.blocks)
        return self._tools.text_model.layers(vectors, aside)[layer](vectors)
