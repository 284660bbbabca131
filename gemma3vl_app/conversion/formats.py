"""The forms that a checkpoint can be written in: one value each.

To add one, write a module with a `write` and a `needs_bytes`, and put its `Format` into `FORMATS`.
This module is read for the command line's help: what a format needs is imported when it is used.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Protocol, cast

from gemma3vl_app.conversion.options import GGUF_TYPES, PRECISIONS, Options
from gemma3vl_app.errors import ConversionError
from gemma3vl_app.generation import Report

if TYPE_CHECKING:
    from gemma3vl_app.loading.sources import Source


class Writer(Protocol):
    """What writes a format: a module with these two functions, or an object with these methods."""

    def write(self, source: Source, target: Path, options: Options, report: Report) -> None:
        """Write `source` into the folder `target`, and leave alone what is finished there.

        A file has its name when it is whole (`shard_files.whole_file`): a conversion that was
        killed is begun again in the same folder, for the same source and options. Disk space has
        been looked at; the folder takes its final place afterwards. Raises `ConversionError` for
        what the format cannot hold, and `OSError` where the disk refuses.
        """
        ...

    def needs_bytes(self, source: Source, options: Options) -> int:
        """Return how much is going to be written, about; small files do not count."""
        ...


@dataclass(frozen=True, kw_only=True)
class Format:
    """A form of a checkpoint; `writer_name` is a module of this package, or a value in one.

    `lossless` forms give every weight back bit by bit, so that a conversion can be checked. Those
    that `has_shards` are cut into files of a size that can be chosen.
    """

    name: str
    about: str
    lossless: bool
    writer_name: str
    needs_adapter: bool = False
    has_shards: bool = True

    def writer(self) -> Writer:
        """Import and return what writes it."""
        return cast(Writer, resolve_name(f"{__package__}.{self.writer_name}"))


FORMATS = {
    each.name: each
    for each in (
        Format(
            name="hub",
            about="as Google publishes it: for this program and most others",
            lossless=True,
            writer_name="safetensors_folder:AS_PUBLISHED",
        ),
        Format(
            name="transformers5",
            about="names and config of transformers 5 in memory",
            lossless=True,
            writer_name="safetensors_folder:AS_TRANSFORMERS5",
        ),
        Format(
            name="merged",
            about="as hub, with an adapter folded in",
            lossless=True,
            writer_name="safetensors_folder:AS_PUBLISHED",
            needs_adapter=True,
        ),
        Format(
            name="nf4",
            about="as hub, the text layers' matrices in 4 bits by bitsandbytes",
            lossless=False,
            writer_name="nf4_folder",
        ),
        Format(
            name="gguf",
            about="for llama.cpp: a GGUF file, and an mmproj file for pictures",
            lossless=False,
            writer_name="gguf_files",
            has_shards=False,
        ),
        Format(
            name="megatron",
            about="for training with Megatron Bridge: a torch_dist checkpoint",
            lossless=True,
            writer_name="megatron_folder",
            has_shards=False,
        ),
    )
}


def format_named(name: str) -> Format:
    """Return a format; raises `ConversionError` with those that there are."""
    if name in FORMATS:
        return FORMATS[name]
    close = difflib.get_close_matches(name, FORMATS, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    raise ConversionError(
        f"There is no format {ascii(name)[:60]}.{meant} Known are {', '.join(FORMATS)}."
    )


def check_wishes(format: Format, options: Options, *, has_adapter: bool, check: bool) -> None:
    """Raise `ConversionError` for wishes that no source can meet."""
    if options.precision not in PRECISIONS:
        raise ConversionError(
            f"There is no precision {ascii(options.precision)[:40]}. "
            f"Known are {', '.join(PRECISIONS)}."
        )
    if options.gguf_type not in GGUF_TYPES:
        raise ConversionError(
            f"There is no GGUF type {ascii(options.gguf_type)[:40]}. "
            f"Known are {', '.join(GGUF_TYPES)}."
        )
    if options.shard_bytes is not None and options.shard_bytes < 1:
        raise ConversionError("A shard has at least one byte. Give a size such as 2GB.")
    if options.shard_bytes is not None and not format.has_shards:
        raise ConversionError(
            f"The format {format.name!r} is not cut into shards, so shard_bytes has no meaning. "
            "Leave it out."
        )
    if format.needs_adapter and not has_adapter:
        raise ConversionError(
            f"The format {format.name!r} is a model with an adapter in it. Name the adapter's "
            "folder with adapter='FOLDER', or write 'hub'."
        )
    if check and not format.lossless:
        raise ConversionError(
            f"The format {format.name!r} rounds weights, so they cannot be equal bit by bit. "
            "Compare the answers instead, with `gemma3vl verify`."
        )
