"""A model for llama.cpp: a GGUF file of the language model, and an mmproj file of the tower."""

from __future__ import annotations

import re
from pathlib import Path

from gemma3vl_app.conversion.gguf_file import TEXT_TYPES
from gemma3vl_app.conversion.gguf_mmproj import (
    TOWER_TYPES,
    mmproj_entries,
    takes_pictures,
    write_mmproj,
)
from gemma3vl_app.conversion.gguf_text import text_entries, write_text
from gemma3vl_app.conversion.options import Options
from gemma3vl_app.generation import Report
from gemma3vl_app.loading.sources import Source

LONGEST_NAME = 100  # of a file, without type and ending


def write(source: Source, target: Path, options: Options, report: Report) -> None:
    """Write `source` into the folder `target`; a file that is finished there stays as it is."""
    text = target / text_name(source, options)
    if not text.is_file():
        write_text(text, source, TEXT_TYPES[options.gguf_type], report)
    if not takes_pictures(source):
        return
    tower = TOWER_TYPES[options.gguf_type]
    mmproj = target / f"mmproj-{_stem(source)}-{tower.label}.gguf"
    if not mmproj.is_file():
        write_mmproj(mmproj, source, tower, report)


def needs_bytes(source: Source, options: Options) -> int:
    """Return the size of the weights in both files."""
    entries = text_entries(source, TEXT_TYPES[options.gguf_type])
    if takes_pictures(source):
        entries += mmproj_entries(source, TOWER_TYPES[options.gguf_type])
    return sum(each.nbytes for each in entries)


def text_name(source: Source, options: Options) -> str:
    """Return the name of the language model's file, as llama.cpp's files are named."""
    return f"{_stem(source)}-{TEXT_TYPES[options.gguf_type].label}.gguf"


def _stem(source: Source) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", source.checkpoint.name)[-LONGEST_NAME:].strip("-.")
    return plain or "gemma-3"
