"""Weights that come out of a GGUF file, and still know the very bytes which that stores for them.

As numbers they are rounded to bf16. Written as GGUF again, in the type that they have already, they
are copied: rounding on the way would change the scales of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGMLQuantizationType as Kind

from gemma3vl_app.conversion.layouts import Cast, Joined, Shape
from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.conversion import Stored
from gemma3vl_app.loading.gguf_header import TensorInfo, check_gguf
from gemma3vl_app.loading.gguf_model import open_model

CHUNK_BYTES = 4 << 20  # read at a time


@dataclass(frozen=True)
class FromGguf:
    """A weight as the loader reads it, and where it lies in a GGUF file."""

    weight: Stored
    file: Path
    place: TensorInfo

    @property
    def dtype(self) -> torch.dtype:
        """That of its numbers."""
        return self.weight.dtype

    @property
    def shape(self) -> Shape:
        """Its shape."""
        return tuple(self.weight.shape)

    @property
    def nbytes(self) -> int:
        """Its size as numbers."""
        return self.weight.nbytes

    def read(self) -> torch.Tensor:
        """Return its numbers."""
        return self.weight.read()

    def stored(self) -> Iterator[bytes]:
        """Yield the bytes that the file stores; raises `LoadError` where it was changed."""
        left = self.place.bytes
        with self.file.open("rb") as file:
            file.seek(self.place.start)
            while left:
                chunk = file.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise LoadError(
                        f"{self.file.name!r} was changed while it was being converted. Leave the "
                        "model's files alone, and convert it again."
                    )
                left -= len(chunk)
                yield chunk


def with_stored_bytes(tensors: Mapping[str, Stored], text: Path) -> dict[str, Stored]:
    """Return `tensors` (by their names in memory) with their places in the GGUF file `text`.

    Those of its mmproj file are found, too.
    """
    model = open_model(text.expanduser())
    names = model.memory_names()
    places = {
        names[place.name]: (file, place)
        for file in model.files
        for place in check_gguf(file, file.name).tensors
    }
    return {
        name: FromGguf(weight, *places[name]) if name in places else weight
        for name, weight in tensors.items()
    }


def stored_alike(weight: Stored, kind: Kind) -> FromGguf | None:
    """Return the source of a GGUF tensor if its bytes are what a tensor of `kind` has to be."""
    if isinstance(weight, Joined):  # a norm, which is stored as 1 + w there, too
        weight = weight.weights[0]
    if isinstance(weight, Cast) and weight.dtype == torch.float32:  # which changes no number
        weight = weight.weight
    if not isinstance(weight, FromGguf):
        return None
    return weight if (weight.place.kind, weight.place.shape) == (kind, weight.shape) else None
