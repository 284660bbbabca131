"""What the reference computed, on the disk: so that only one model is in memory at a time.

A file each for the logits, the features and each layer's output of a prompt, in a temporary folder
that goes with the record. Shapes: n positions, V vocabulary, T soft tokens, D width.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from gemma3vl_app.errors import VerificationError
from gemma3vl_app.faithfulness.reader import Reading

_SPARE_BYTES = 64 << 20


class Record:
    """Readings of several prompts by number; a context manager that deletes them at its end."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="gemma3vl-verify-")
        self._folder = Path(self._temporary.name)
        self._readings: list[Reading] = []

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._readings.clear()
        self._temporary.cleanup()

    def __len__(self) -> int:
        return len(self._readings)

    def add(self, reading: Reading) -> None:
        """Write a reading; raises `VerificationError` where the disk has no room."""
        tensors = {"logits": reading.logits, **_named("picture", reading.features)}
        tensors |= _named("layer", reading.layers)
        needed = sum(each.nbytes for each in tensors.values()) + _SPARE_BYTES
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise VerificationError(
                f"The disk of {tempfile.gettempdir()} has {free >> 20:,} MiB left, and what the "
                f"first model computed takes {needed >> 20:,} MiB a prompt. "
                "Set TMPDIR to a folder with more room."
            )
        number = len(self._readings)
        kept = {name: self._write(f"{number}-{name}", each) for name, each in tensors.items()}
        self._readings.append(
            Reading(
                prompt=reading.prompt,
                answer_ids=reading.answer_ids,
                positions=reading.positions,
                logits=kept["logits"],
                features={key: kept[f"picture {key.hex()}"] for key in reading.features},
                layers={name: kept[f"layer {name}"] for name in reading.layers},
            )
        )

    def __getitem__(self, number: int) -> Reading:
        """Return a reading whose tensors are memory maps of their files."""
        return self._readings[number]

    def _write(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Write a float32 tensor to a file, and return a memory map of it."""
        path = self._folder / f"{name}.f32"
        array = tensor.float().contiguous().numpy()
        array.tofile(path)
        # Mode "c" only because torch warns of memory that it may not write to.
        return torch.from_numpy(np.memmap(path, np.float32, "c", shape=array.shape))


def _named(
    kind: str, tensors: dict[str, torch.Tensor] | dict[bytes, torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {
        f"{kind} {key.hex() if isinstance(key, bytes) else key}": each
        for key, each in tensors.items()
    }
