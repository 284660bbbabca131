"""Pictures of data sets, opened each time they are used: no more than a batch is in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from gemma3vl_app.errors import PictureError
from gemma3vl_app.pictures import Picture


class LazyPicture(Protocol):
    """A picture that is opened each time it is used, so that no more than a batch is in memory."""

    def open(self) -> Picture:
        """Return the picture; raises `PictureError`."""
        ...


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file."""

    path: Path

    def open(self) -> Picture:
        """Return the picture; raises `PictureError` where it is missing or cannot be read."""
        return Picture.open(self.path)


@dataclass(frozen=True)
class DatasetPicture:
    """The picture of a row of the package `datasets`, or the one at `index` of a list of some."""

    dataset: Any
    row: int
    column: str
    index: int | None = None

    def open(self) -> Picture:
        """Read the row and return its picture; raises `PictureError`."""
        value = self.dataset[self.row][self.column]
        if self.index is not None:
            value = value[self.index]
        if isinstance(value, Mapping):  # what `datasets.Image(decode=False)` gives
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise PictureError(f"Row {self.row} has no picture in column {self.column!r}.")
        return Picture.open(value, name=f"row {self.row}")


def undecoded(dataset: Any, column: str) -> Any:
    """Return the data set with pictures as encoded bytes, which `Picture` decodes itself."""
    datasets = datasets_package()
    kind, encoded = dataset.features[column], datasets.Image(decode=False)
    if isinstance(kind, datasets.Image):
        return dataset.cast_column(column, encoded)
    if isinstance(getattr(kind, "feature", None), datasets.Image):  # a list of some
        return dataset.cast_column(column, datasets.List(encoded))
    return dataset


def datasets_package() -> Any:
    """Return the package `datasets`, which is an optional extra and has no types."""
    import_module("datasets.exceptions")
    return import_module("datasets")
