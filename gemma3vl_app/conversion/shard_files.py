"""Safetensors shards written tensor by tensor, and left alone where they are there already.

safetensors' own `save_file` wants a whole file's tensors at once, and copies them. Here each tensor
is computed, written to its place and let go of, so that memory holds one. A file gets its name when
it is whole: after a kill, what has its name is finished. Knows nothing of models.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gemma3vl_app.conversion.layouts import Shape, size_bytes
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.conversion import Stored
from gemma3vl_app.loading.shards import DTYPES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
UNFINISHED = ".unfinished"  # behind the name of a file that is being written
ALIGNMENT = 8  # of the data, as safetensors does
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Unit:
    """Tensors that are computed together: `make` returns what `outputs` announces by key."""

    outputs: Mapping[str, tuple[torch.dtype, Shape]]
    make: Callable[[], Tensors]
    parameters: int

    @property
    def nbytes(self) -> int:
        """Size of all its tensors."""
        return sum(size_bytes(shape, dtype) for dtype, shape in self.outputs.values())


def plain_units(tensors: Mapping[str, Stored]) -> list[Unit]:
    """Return a unit for each tensor, written under its key as it is read."""

    def unit(key: str, stored: Stored) -> Unit:
        outputs = {key: (stored.dtype, tuple(stored.shape))}
        return Unit(outputs, lambda: {key: stored.read()}, stored.nbytes // stored.dtype.itemsize)

    return [unit(key, stored) for key, stored in tensors.items()]


def write_shards(folder: Path, units: Sequence[Unit], shard_bytes: int, report: Report) -> None:
    """Write `units` into safetensors of at most `shard_bytes` (or one unit), and their index.

    Files of the same names, sizes and headers that are there already are left as they are. Raises
    `OSError` where the disk refuses.
    """
    shards = list(_shards(units, shard_bytes))
    total = sum(unit.nbytes for unit in units)
    done = 0
    for name, shard in zip(_names(len(shards)), shards, strict=True):
        path = folder / name
        header, places = _header(shard)
        if _is_finished(path, header, shard):
            done += sum(unit.nbytes for unit in shard)
            report(Progress("convert", done, total, "bytes", f"{name} is there already"))
            continue
        with whole_file(path) as file:
            file.write(header)
            for unit in shard:
                report(Progress("convert", done, total, "bytes", f"Writing {name}"))
                _write_unit(file, unit, places)
                done += unit.nbytes
    if len(shards) > 1:
        _write_index(folder / INDEX, units, shards)
    report(Progress("convert", total, total, "bytes", "All weights are written"))


def _shards(units: Sequence[Unit], shard_bytes: int) -> Iterator[list[Unit]]:
    shard: list[Unit] = []
    size = 0
    for unit in units:
        if shard and size + unit.nbytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(unit)
        size += unit.nbytes
    yield shard


def _names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _header(shard: Sequence[Unit]) -> tuple[bytes, dict[str, int]]:
    """Return a file's first bytes, with its length, and where each tensor begins in the file.

    Wider dtypes come first, so that each tensor's data is aligned.
    """
    outputs = [(key, *output) for unit in shard for key, output in unit.outputs.items()]
    outputs.sort(key=lambda each: (-each[1].itemsize, each[0]))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for key, dtype, shape in outputs:
        starts[key], end = end, end + size_bytes(shape, dtype)
        offsets = [starts[key], end]
        entries[key] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    header = len(text).to_bytes(ALIGNMENT, "little") + text
    return header, {key: len(header) + start for key, start in starts.items()}


def _is_finished(path: Path, header: bytes, shard: Sequence[Unit]) -> bool:
    if not path.is_file():
        return False
    whole = path.stat().st_size == len(header) + sum(unit.nbytes for unit in shard)
    with path.open("rb") as file:
        return whole and file.read(len(header)) == header


def unfinished(path: Path) -> Path:
    """Return where a file is written until it is whole."""
    return path.with_name(path.name + UNFINISHED)


@contextlib.contextmanager
def whole_file(path: Path, *, keep_bytes: int = 0) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name when the block ends, and is on the disk then.

    What a block that fails has written is left under another name. Next time its first `keep_bytes`
    stay, and the block begins behind them; the rest is written over.
    """
    aside = unfinished(path)
    with aside.open("r+b" if keep_bytes else "wb") as file:
        file.seek(keep_bytes)
        file.truncate()
        yield file
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def _write_unit(file: BinaryIO, unit: Unit, starts: Mapping[str, int]) -> None:
    tensors = unit.make()
    for key, (dtype, shape) in unit.outputs.items():
        tensor = tensors[key]
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, tuple(shape)), key
        file.seek(starts[key])
        data: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        file.write(data)  # from where it lies, without a copy


def _write_index(path: Path, units: Sequence[Unit], shards: Sequence[Sequence[Unit]]) -> None:
    files = zip(_names(len(shards)), shards, strict=True)
    where = {key: name for name, shard in files for unit in shard for key in unit.outputs}
    index = {
        "metadata": {
            "total_size": sum(unit.nbytes for unit in units),
            "total_parameters": sum(unit.parameters for unit in units),
        },
        "weight_map": dict(sorted(where.items())),
    }
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
