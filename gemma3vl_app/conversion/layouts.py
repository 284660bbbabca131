"""How weights lie in a file: as they are in memory, transposed, or several joined into one.

Everything here is lazy: a `Stored` that is read when it is written, so that no more than one weight
is in memory. Knows nothing of names. Shapes: N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from gemma3vl_app.loading.conversion import Stored

Shape = tuple[int, ...]


class Layout(Protocol):
    """A reversible rule between weights in memory and the one tensor that a file holds."""

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape in the file of weights that have `shapes` in memory."""
        ...

    def join(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return what the file holds for `weights`."""
        ...

    def split(self, whole: torch.Tensor, shapes: Sequence[Shape], index: int) -> torch.Tensor:
        """Return the weight number `index` of those that the file holds as `whole`."""
        ...


@dataclass(frozen=True)
class Same:
    """One weight, as it is in memory."""

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the only shape."""
        return shapes[0]

    def join(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the only weight."""
        return weights[0]

    def split(self, whole: torch.Tensor, shapes: Sequence[Shape], index: int) -> torch.Tensor:
        """Return the tensor itself."""
        return whole


@dataclass(frozen=True)
class Transposed:
    """One matrix with its two sides exchanged."""

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the exchanged sides."""
        return shapes[0][::-1]

    def join(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the transposed matrix."""
        return weights[0].T

    def split(self, whole: torch.Tensor, shapes: Sequence[Shape], index: int) -> torch.Tensor:
        """Return the transposed matrix."""
        return whole.T


@dataclass(frozen=True)
class Rows:
    """Several matrices (N, K) below each other: (N1 + N2 + ..., K), as in qkv_proj."""

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the sum of the rows by the common columns."""
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def join(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the matrices below each other."""
        return torch.cat(list(weights))

    def split(self, whole: torch.Tensor, shapes: Sequence[Shape], index: int) -> torch.Tensor:
        """Return the rows of one matrix."""
        start = sum(shape[0] for shape in shapes[:index])
        return whole[start : start + shapes[index][0]]


SAME, TRANSPOSED, ROWS = Same(), Transposed(), Rows()


@dataclass(frozen=True)
class Joined:
    """What a file holds for weights in memory."""

    weights: tuple[Stored, ...]
    layout: Layout

    @property
    def dtype(self) -> torch.dtype:
        """That of the first weight."""
        return self.weights[0].dtype

    @property
    def shape(self) -> Shape:
        """Its shape in the file."""
        return self.layout.joined_shape([weight.shape for weight in self.weights])

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return size_bytes(self.shape, self.dtype)

    def read(self) -> torch.Tensor:
        """Return it."""
        return self.layout.join([weight.read() for weight in self.weights])


@dataclass(frozen=True)
class Piece:
    """One weight in memory of those that a file holds as `whole`."""

    whole: Stored
    layout: Layout
    shapes: tuple[Shape, ...]  # of all of them, in memory
    index: int

    @property
    def dtype(self) -> torch.dtype:
        """That of the tensor in the file."""
        return self.whole.dtype

    @property
    def shape(self) -> Shape:
        """Its shape in memory."""
        return self.shapes[self.index]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return size_bytes(self.shape, self.dtype)

    def read(self) -> torch.Tensor:
        """Return it; of a joined tensor only its own part is touched."""
        return self.layout.split(self.whole.read(), self.shapes, self.index)


@dataclass(frozen=True)
class Cast:
    """A weight in another dtype."""

    weight: Stored
    dtype: torch.dtype

    @property
    def shape(self) -> Shape:
        """Its shape."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return size_bytes(self.shape, self.dtype)

    def read(self) -> torch.Tensor:
        """Return it, rounded to the nearest value of its dtype."""
        return self.weight.read().to(self.dtype)


def size_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Return the size of a tensor."""
    count = 1
    for side in shape:
        count *= side
    return count * dtype.itemsize
