"""Pictures to soft tokens: the tower a few layers at a time, and a bounded memory of its results.

Runs transformers' SigLIP tower and Gemma 3 projector; knows nothing of files or prompts.
Shapes: S picture side in pixels, P patches, T soft tokens per picture, D text width.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Generator, Hashable

import torch
from transformers import Gemma3Model

from gemma3vl_app.engine.model import finish_work


class VisionEncoder:
    """The vision tower and projector, run in units of at most about `unit_sec` seconds."""

    def __init__(self, core: Gemma3Model, *, unit_sec: float) -> None:
        self._tower = core.vision_tower
        self._projector = core.multi_modal_projector
        self._unit_sec = unit_sec

    def encode(self, pixels: torch.Tensor) -> Generator[None, None, torch.Tensor]:
        """Encode pixels (3, S, S) to features (T, D), yielding between units of work.

        Same steps as `Gemma3Model.get_image_features`, one picture at a time.
        """
        began = time.perf_counter()
        device = self._tower.embeddings.patch_embedding.weight.device
        hidden = self._tower.embeddings(pixels[None].to(device))  # (1, P, width)
        for layer in self._tower.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
            finish_work(hidden)
            if time.perf_counter() - began > self._unit_sec:
                yield
                began = time.perf_counter()
        hidden = self._tower.post_layernorm(hidden)
        features: torch.Tensor = self._projector(hidden)[0]  # (T, D)
        return features


class FeatureCache:
    """Encoded pictures by key, least recently used first out, bounded in bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._features: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self.bytes = 0

    def get(self, key: Hashable) -> torch.Tensor | None:
        """Return the features (T, D) kept under `key`, or None."""
        if key in self._features:
            self._features.move_to_end(key)
        return self._features.get(key)

    def put(self, key: Hashable, features: torch.Tensor) -> None:
        """Keep `features` under `key`; what was used longest ago makes room."""
        if key not in self._features:
            self._features[key] = features
            self.bytes += features.nbytes
        while self.bytes > self._budget_bytes and self._features:
            _, dropped = self._features.popitem(last=False)
            self.bytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop everything."""
        self._features.clear()
        self.bytes = 0
