"""One GGUF file, written tensor by tensor: only some rows of one are in memory as numbers.

Knows what the two files of a model have in common. The header is written by the `gguf` package,
whose own way of writing tensors wants them whole.
"""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType
from gguf.gguf_writer import WriterState

from gemma3vl_app import catalog
from gemma3vl_app.conversion.gguf_blocks import encode, fits, stored_bytes
from gemma3vl_app.conversion.gguf_source import stored_alike
from gemma3vl_app.conversion.options import GgufType
from gemma3vl_app.conversion.shard_files import unfinished, whole_file
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.conversion import Stored
from gemma3vl_app.loading.sources import Source

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT  # of each tensor's data
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

    One that was left half-way under the same header is gone on with. Raises `OSError` where the
    disk refuses.
    """
    header = _header(writer, entries)
    starts = _starts(len(header), entries)
    there = _tensors_there(unfinished(path), header, starts)
    total = sum(each.nbytes for each in entries)
    done = sum(each.nbytes for each in entries[:there])
    with whole_file(path, keep_bytes=starts[there] if there else 0) as file:
        if there:
            message = f"{there} tensors of {path.name} are there already"
            report(Progress("convert", done, total, "bytes", message))
        else:
            file.write(header)
        for each, end in zip(entries[there:], starts[there + 1 :], strict=True):
            report(Progress("convert", done, total, "bytes", f"Writing {path.name}"))
            file.writelines(_chunks(each))
            file.write(bytes(end - file.tell()))
            done += each.nbytes
    report(Progress("convert", total, total, "bytes", f"{path.name} is written"))


def _header(writer: gguf.GGUFWriter, entries: Sequence[Entry]) -> bytes:
    """Return all that stands before the tensors."""
    for each in entries:
        shape = tuple(each.weight.shape)
        writer.add_tensor_info(each.name, shape, np.dtype(np.float32), each.nbytes, each.kind)
    header = io.BytesIO()
    file: io.BufferedWriter = io.BufferedWriter(header)
    writer.fout, writer.state = [file], WriterState.EMPTY  # as if it had opened one itself
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(file, file.tell())
    file.flush()
    return header.getvalue()


def _starts(first: int, entries: Sequence[Entry]) -> list[int]:
    """Return where each tensor begins in the file, and at last where the file ends."""
    sizes = (gguf.GGUFWriter.ggml_pad(each.nbytes, ALIGNMENT) for each in entries)
    return list(itertools.accumulate(sizes, initial=first))


def _tensors_there(file: Path, header: bytes, starts: Sequence[int]) -> int:
    """Return how many tensors of a file need not be written again: all whole ones but the last.

    They are written one after the other, so that a file that was left is right as far as it goes.
    Which source and options it is of, the recipe beside the folder says (`work_folder`).
    """
    if not file.is_file():
        return 0
    with file.open("rb") as opened:
        if opened.read(len(header)) != header:
            return 0
    whole = bisect.bisect_right(starts, file.stat().st_size) - 1
    return max(0, whole - 1)


def _chunks(each: Entry) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a tensor, some rows at a time."""
    if (source := stored_alike(each.weight, each.kind)) is not None:
        yield from source.stored()
        return
    rows = each.weight.read().reshape(-1, each.weight.shape[-1])
    step = max(1, CHUNK_NUMBERS // rows.shape[1])
    for start in range(0, len(rows), step):
        yield np.ascontiguousarray(encode(rows[start : start + step], each.kind)).data.cast("B")
