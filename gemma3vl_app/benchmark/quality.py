"""What fewer bits cost: how far the next-token distribution moves from that of bfloat16 weights.

Shapes: n tokens, V vocabulary.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import torch

from gemma3vl_app.engine.attention import Batch
from gemma3vl_app.engine.kv import SequenceKV
from gemma3vl_app.engine.model import TextModel
from gemma3vl_app.hardware import choose_dtype, default_device, detect
from gemma3vl_app.loading import base_270m_folder, load_model
from gemma3vl_app.prompting.tokenizer import TextTokenizer

TOKENS = 2000
TEXTS = ("docs/engine.md", "docs/memory.md", "docs/chat-page.md")  # prose with figures and code
_ROWS = 16  # read at once: so few go through the kernels that answers are written with


def text_ids() -> list[int]:
    """Return the ids of the text that is read: the first 2,000 tokens of some pages of docs/."""
    tokenizer = TextTokenizer.from_file(Path(base_270m_folder()) / "tokenizer.json")
    text = "\n".join(Path(page).read_text(encoding="utf-8") for page in TEXTS)
    return [2, *tokenizer.encode(text)][:TOKENS]


def unquantised() -> str:
    """Return the kind that holds bfloat16 weights on this machine."""
    machine = detect()
    return "bf16" if choose_dtype(default_device(machine), machine)[0] == "bfloat16" else "w16"


@torch.inference_mode()
def divergence(
    source: str | Path, weights: str, ids: list[int], *, fast_paths: bool = True
) -> float:
    """Return the mean KL divergence over `ids`, in nats, of `weights` from bfloat16 weights."""
    expected = _Reader(source, unquantised(), ids, fast_paths=True)
    found = _Reader(source, weights, ids, fast_paths=fast_paths)
    total = 0.0
    for reference, other in zip(
        expected.log_probabilities(), found.log_probabilities(), strict=True
    ):
        total += float((reference.exp() * (reference - other)).sum())
    del expected, found
    gc.collect()
    return total / len(ids)


class _Reader:
    """A model that reads a text."""

    def __init__(
        self, source: str | Path, weights: str, ids: list[int], *, fast_paths: bool
    ) -> None:
        loaded = load_model(source, weights=weights, fast_paths=fast_paths)
        self._model = TextModel(loaded.model)
        self._ids = ids

    def log_probabilities(self) -> Iterator[torch.Tensor]:
        """Read on and yield those of the next token, some positions (rows, V) at a time."""
        kv = SequenceKV(self._model.windows, expected_tokens=len(self._ids))
        for first in range(0, len(self._ids), _ROWS):
            some = self._ids[first : first + _ROWS]
            vectors = self._model.embed(torch.tensor([some]))
            hidden = self._model.forward(vectors, Batch([kv], len(some)))[0]  # (rows, D)
            yield self._model.logits(hidden).log_softmax(-1)
