"""A checkpoint opened for conversion: whatever its layout, and what was found out about it.

What comes out is a `Source` like that of a load, with one difference: each tensor stands for one
parameter of the model, as numbers. Nothing large is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma3vl_app import catalog
from gemma3vl_app.conversion.adapter import with_adapter
from gemma3vl_app.conversion.dcp_reader import DcpTensor
from gemma3vl_app.conversion.gguf_source import with_stored_bytes
from gemma3vl_app.conversion.layouts import TRANSPOSED, Piece
from gemma3vl_app.conversion.megatron_names import megatron_table
from gemma3vl_app.conversion.megatron_opening import is_megatron, open_megatron
from gemma3vl_app.conversion.names import READABLE, NameTable, knows, to_memory
from gemma3vl_app.conversion.quantised import Dequantised, as_numbers
from gemma3vl_app.generation import Report
from gemma3vl_app.loading.adapter_files import read_adapter
from gemma3vl_app.loading.assembly import weight_names
from gemma3vl_app.loading.conversion import Stored
from gemma3vl_app.loading.gguf_model import is_gguf
from gemma3vl_app.loading.loader import build_skeleton
from gemma3vl_app.loading.shards import StoredTensor, read_headers
from gemma3vl_app.loading.sources import Source, open_source

IN_FILES = (StoredTensor, DcpTensor)  # of which `file` says where they are


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What the files of a source turned out to be.

    `names` says whose names they have, `peculiarities` what else had to be undone; `files` is 0 for
    what is put together in memory.
    """

    kind: str
    architecture: str
    takes_pictures: bool
    names: str
    parameters: int
    bytes: int
    files: int
    dtypes: tuple[str, ...]
    peculiarities: tuple[str, ...]
    revision: str

    def __str__(self) -> str:
        pictures = "takes pictures" if self.takes_pictures else "takes no pictures"
        size = f"{self.parameters / 1e9:.2f} billion" if self.parameters >= 1e8 else self.parameters
        where = f"{self.files} file{'s' if self.files != 1 else ''}, " if self.files else ""
        facts = (
            f"{self.kind} with {self.names}",
            f"{self.architecture}, {pictures}",
            f"{size} parameters in {' and '.join(self.dtypes)}",
            f"{where}{self.bytes / 2**30:.2f} GiB",
            *self.peculiarities,
        )
        return "; ".join(facts)


def open_for_conversion(
    source: str | Path,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    report: Report = lambda step: None,
) -> tuple[Source, Detected]:
    """Open what `load` takes and bring its tensors, lazily, under their names in memory.

    Joined and transposed weights are taken apart, 4-bit ones become numbers, a repeated output
    matrix is dropped. `adapter` is a folder whose share is added.
    Raises `LoadError` and `ConversionError` with what is wrong and what to do.
    """
    stored_adapter = None if adapter is None else read_adapter(Path(adapter).name, adapter)
    of_megatron = is_megatron(source)
    opened = (
        open_megatron(source)
        if of_megatron
        else open_source(source, revision=revision, report=report)
    )
    name = opened.checkpoint.name
    skeleton = build_skeleton(opened.checkpoint)
    parameters = dict(skeleton.named_parameters())
    shapes = {each: tuple(parameters[each].shape) for each in weight_names(skeleton)}
    raw = _as_stored(opened)
    head_dim = skeleton.config.get_text_config().head_dim
    table = megatron_table(head_dim) if of_megatron else _best_table(raw)
    numbers = as_numbers(raw)
    tensors = to_memory(numbers, table, shapes, name)
    detected = Detected(
        kind=_kind(source),
        architecture=type(skeleton).__name__,
        takes_pictures="vision_config" in opened.checkpoint.config,
        names=table.title,
        parameters=sum(each.nbytes // each.dtype.itemsize for each in tensors.values()),
        bytes=sum(each.nbytes for each in raw.values()),
        files=len({each.file for each in raw.values() if isinstance(each, IN_FILES)}),
        dtypes=tuple(_dtype_names(numbers)),
        peculiarities=tuple(_peculiarities(raw, tensors)),
        revision=opened.revision,
    )
    if is_gguf(source):
        tensors = with_stored_bytes(tensors, Path(source))
    if stored_adapter is not None:
        tensors = with_adapter(tensors, stored_adapter)
    return dataclasses.replace(opened, tensors=tensors), detected


def _as_stored(source: Source) -> dict[str, Stored]:
    """Return a source's tensors by the very names of its files, all that the files hold."""
    files = {each.file for each in source.tensors.values() if isinstance(each, StoredTensor)}
    if not files:  # the demo, which is put together in memory
        return dict(source.tensors)
    return dict(read_headers(sorted(files), source.checkpoint.name))


def _best_table(raw: Mapping[str, Stored]) -> NameTable:
    """Return the table that knows most of the keys; the first of several."""
    return max(READABLE, key=lambda table: sum(knows(key, table) for key in raw))


def _kind(source: str | Path) -> str:
    if source == catalog.DEMO.name:
        return "the demo"
    if is_gguf(source):
        return "a GGUF file, brought into a folder of the cache"
    if is_megatron(source):
        return "a folder of Megatron-Core"
    return "a folder" if Path(source).expanduser().is_dir() else "a repository of the hub"


def _dtype_names(numbers: Mapping[str, Stored]) -> list[str]:
    """Return the dtypes by how many weights have them; 4 bits are one of their own."""
    sizes: dict[str, int] = {}
    for each in numbers.values():
        plain = str(each.dtype).removeprefix("torch.")
        label = "4 bits" if isinstance(each, Dequantised) else plain
        sizes[label] = sizes.get(label, 0) + each.nbytes
    return sorted(sizes, key=lambda label: -sizes[label])


def _peculiarities(raw: Mapping[str, Stored], tensors: Mapping[str, Stored]) -> list[str]:
    pieces = [each for each in tensors.values() if isinstance(each, Piece)]
    found = []
    if any("qkv_proj" in key for key in raw):
        found.append("queries, keys and values joined")
    if any("gate_up_proj" in key for key in raw):
        found.append("gate and up projections joined")
    if any(each.layout == TRANSPOSED for each in pieces):
        found.append("projector transposed")
    if any(key.endswith("lm_head.weight") for key in raw):
        found.append("output matrix written out, though it is the embeddings")
    return found
