"""One GGUF file, written tensor by tensor: only some rows of one are in memory as numbers.

Knows what the two files of a model have in common. The header is written by the `gguf` package,
whose own way of writing tensors wants them whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType

from gemma3vl_app import catalog
from gemma3vl_app.conversion.gguf_blocks import encode, fits, stored_bytes
from gemma3vl_app.conversion.gguf_source import stored_alike
from gemma3vl_app.conversion.options import GgufType
from gemma3vl_app.conversion.shard_files import UNFINISHED
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.conversion import Stored
from gemma3vl_app.loading.sources import Source

CHUNK_NUMBERS = 1 << 20  # encoded at a time
REVISION_KEY = "gemma3vl_app.source_revision"  # llama.cpp has no key of its own for it


@dataclass(frozen=True)
class StoredType:
    """How a language model's numbers are stored: `matrices` of layers, and the embeddings' `table`.

    `label` is part of the file's name, `file_type` llama.cpp's number for it.
    """

    label: str
    matrices: Kind
    table: Kind
    file_type: LlamaFileType


F32 = StoredType("F32", Kind.F32, Kind.F32, LlamaFileType.ALL_F32)
F16 = StoredType("F16", Kind.F16, Kind.F16, LlamaFileType.MOSTLY_F16)
BF16 = StoredType("BF16", Kind.BF16, Kind.BF16, LlamaFileType.MOSTLY_BF16)
Q8_0 = StoredType("Q8_0", Kind.Q8_0, Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0)
# The table is the output matrix, too, which llama.cpp never stores in four bits
Q4_0 = StoredType("Q4_0", Kind.Q4_0, Kind.Q8_0, LlamaFileType.MOSTLY_Q4_0)
TEXT_TYPES: Mapping[GgufType, StoredType] = {
    **{"f32": F32, "f16": F16, "bf16": BF16},
    **{"q8_0": Q8_0, "q4_0": Q4_0},
}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its name there, its numbers, and how they are stored."""

    name: str
    weight: Stored
    kind: Kind

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return stored_bytes(self.kind, tuple(self.weight.shape))


def entry(name: str, weight: Stored, kind: Kind) -> Entry:
    """Return a tensor as `kind`, or as what its shape allows: vectors are fp32, as is all of ggml.

    Rows that do not come out even in blocks are stored in bf16.
    """
    shape = tuple(weight.shape)
    if len(shape) == 1:
        return Entry(name, weight, Kind.F32)
    return Entry(name, weight, kind if fits(kind, shape) else Kind.BF16)


def add_general(
    writer: gguf.GGUFWriter, source: Source, stored: StoredType, kind: str, parameters: int
) -> None:
    """Put into the header what any model has: its name, where it came from, its licence."""
    checkpoint = source.checkpoint
    writer.add_type(kind)
    writer.add_name(checkpoint.name)
    writer.add_size_label(gguf.size_label(parameters, 0, 0, 0))
    writer.add_license("gemma")
    writer.add_license_name(catalog.LICENCE)
    writer.add_license_link(catalog.LICENCE_LINK)
    if (known := catalog.find(checkpoint.name)) is not None and known.repo:
        writer.add_source_url(known.card)
        writer.add_source_repo_url(known.card)
    writer.add_string(REVISION_KEY, source.revision)
    writer.add_file_type(stored.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def write_file(
    path: Path, writer: gguf.GGUFWriter, entries: Sequence[Entry], report: Report
) -> None:
    """Write a header and its tensors to `path`, which appears when it is whole.

    Raises `OSError` where the disk refuses.
    """
    for each in entries:
        shape = tuple(each.weight.shape)
        writer.add_tensor_info(each.name, shape, np.dtype(np.float32), each.nbytes, each.kind)
    aside = path.with_name(path.name + UNFINISHED)
    total, done = sum(each.nbytes for each in entries), 0
    try:
        writer.write_header_to_file(aside)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        for each in entries:
            report(Progress("convert", done, total, "bytes", f"Writing {path.name}"))
            writer.write_padding(file, file.tell())
            file.writelines(_chunks(each))
            done += each.nbytes
        writer.write_padding(file, file.tell())
        file.flush()
        os.fsync(file.fileno())
    finally:
        writer.close()
    aside.rename(path)
    report(Progress("convert", total, total, "bytes", f"{path.name} is written"))


def _chunks(each: Entry) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a tensor, some rows at a time."""
    if (source := stored_alike(each.weight, each.kind)) is not None:
        yield from source.stored()
        return
    rows = each.weight.read().reshape(-1, each.weight.shape[-1])
    step = max(1, CHUNK_NUMBERS // rows.shape[1])
    for start in range(0, len(rows), step):
        yield np.ascontiguousarray(encode(rows[start : start + step], each.kind)).data.cast("B")
