"""Pictures to soft tokens: the tower a few layers at a time, and a bounded memory of its results.

Runs transformers' SigLIP tower and Gemma 3 projector; knows nothing of files or prompts.
Shapes: S picture side in pixels, P patches, T soft tokens per picture, D text width.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Generator
from functools import partial

import torch
from transformers import Gemma3Model

from gemma3vl_app.engine.disk_cache import DiskCache
from gemma3vl_app.engine.model import Layer, finish_work
from gemma3vl_app.engine.prefix import Scope

PictureKey = tuple[Scope, bytes]  # and the key of the picture or crop


class VisionEncoder:
    """The vision tower and projector, run in units of at most about `unit_sec` seconds."""

    def __init__(self, core: Gemma3Model, *, unit_sec: float) -> None:
        self._tower = core.vision_tower
        self._projector = core.multi_modal_projector
        self._unit_sec = unit_sec

    @property
    def patches(self) -> int:
        """How many patches one picture is cut into."""
        return int(self._tower.embeddings.num_positions)

    def encode(self, pixels: torch.Tensor) -> Generator[None, None, torch.Tensor]:
        """Encode pixels (3, S, S) to features (T, D), yielding between units of work."""
        features = yield from self.encode_all(pixels[None])
        return features[0]

    def encode_all(self, pixels: torch.Tensor) -> Generator[None, None, torch.Tensor]:
        """Encode pixels (B, 3, S, S) to features (B, T, D), yielding between units of work.

        Same steps as `Gemma3Model.get_image_features`.
        """
        began = time.perf_counter()
        hidden = self.embed(pixels)  # (B, P, width)
        for layer in self.layers:
            hidden = layer(hidden)
            finish_work(hidden)
            if time.perf_counter() - began > self._unit_sec:
                yield
                began = time.perf_counter()
        return self.project(hidden)

    # --- its steps, for those who follow gradients through them ---

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn pixels (B, 3, S, S) into patch vectors (B, P, width)."""
        device = self._tower.embeddings.patch_embedding.weight.device
        hidden: torch.Tensor = self._tower.embeddings(pixels.to(device))
        return hidden.contiguous()  # else all layers sum and normalise a transposed tensor, slowly

    @property
    def layers(self) -> list[Layer]:
        """What each layer of the tower does to patch vectors (B, P, width)."""
        return [partial(layer, attention_mask=None) for layer in self._tower.encoder.layers]

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn the last layer's vectors (B, P, width) into features (B, T, D)."""
        features: torch.Tensor = self._projector(self._tower.post_layernorm(hidden))
        return features


class FeatureCache:
    """Encoded pictures by key, least recently used first out, bounded in bytes.

    What is not here may be on the disk, where there is a disk cache.
    """

    def __init__(self, budget_bytes: int, disk: DiskCache | None = None) -> None:
        self._budget_bytes = budget_bytes
        self._disk = disk
        self._features: OrderedDict[PictureKey, torch.Tensor] = OrderedDict()
        self.bytes = 0

    def get(self, key: PictureKey) -> torch.Tensor | None:
        """Return the features (T, D) kept under `key`, or None."""
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        found = self._disk.picture(*key) if self._disk is not None else None
        if found is not None:
            self._keep(key, found)
        return found

    def put(self, key: PictureKey, features: torch.Tensor) -> None:
        """Keep `features` under `key`; what was used longest ago makes room."""
        self._keep(key, features)
        if self._disk is not None:
            self._disk.keep_picture(*key, features)

    def _keep(self, key: PictureKey, features: torch.Tensor) -> None:
        if key not in self._features:
            self._features[key] = features
            self.bytes += features.nbytes
        while self.bytes > self._budget_bytes and self._features:
            _, dropped = self._features.popitem(last=False)
            self.bytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop everything from memory."""
        self._features.clear()
        self.bytes = 0
