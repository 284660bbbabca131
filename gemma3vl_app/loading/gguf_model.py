"""The GGUF files of one model: which belong together, opened and checked.

Knows how the files are named and lie together; what is in them, `gguf_text` and `gguf_vision` know.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.gguf_header import MAGIC, Reader, open_gguf
from gemma3vl_app.loading.gguf_sampling import read_sampling
from gemma3vl_app.loading.gguf_text import (
    SCALED_FACTOR,
    check_architecture,
    check_tensors,
    factor_is_assumed,
    read_config,
    standard_name,
)
from gemma3vl_app.loading.gguf_vision import VisionSettings, is_tower, read_vision, vision_names
from gemma3vl_app.loading.gguf_vocabulary import BEGIN_OF_IMAGE, END_OF_IMAGE, token_id

PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.IGNORECASE)
MAX_PARTS = 999


@dataclass(frozen=True)
class GgufModel:
    """The opened `files` of one model, and what they say.

    `config` is a config.json of the language model, `sampling` a part of generation_config.json;
    `notes` are sentences that people should know.
    """

    files: tuple[Path, ...]
    text: Reader
    config: dict[str, Any]
    sampling: dict[str, Any]
    mmproj: Reader | None
    vision: VisionSettings | None
    notes: tuple[str, ...]

    def memory_name(self, standard: str) -> str:
        """Return the in-memory name of a weight of the language model, from the text class's."""
        prefix = "model.language_model." if self.vision is not None else "model."
        return prefix + standard.removeprefix("model.")

    def memory_names(self) -> dict[str, str]:
        """Return the in-memory names of all tensors by their names in the files."""
        names = {
            each.name: self.memory_name(standard_name(each.name)) for each in self.text.tensors
        }
        return names | (vision_names(self.mmproj) if self.mmproj is not None else {})


def is_gguf(source: str | Path) -> bool:
    """Whether `source` names a GGUF file: by its ending, or by its first bytes."""
    path = Path(source).expanduser()
    if path.suffix.lower() == ".gguf":
        return not path.is_dir()
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def text_parts(path: Path) -> list[Path]:
    """Return all files of the model that `path` is a part of; raises `LoadError` if one is missing.

    llama.cpp names them `name-00001-of-00003.gguf`.
    """
    found = PART.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found["parts"])
    if not 1 <= int(found["part"]) <= count <= MAX_PARTS:
        raise LoadError(f"{path.name!r} is numbered as no part of a model is. Check its name.")
    # The ending as it is written: file systems may tell .gguf from .GGUF
    names = [
        f"{found['stem']}-{part:05}-of-{count:05}{path.suffix}" for part in range(1, count + 1)
    ]
    if missing := [name for name in names if not path.with_name(name).is_file()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise LoadError(
            f"The model comes in {count} files, and some are missing: {', '.join(missing[:3])}"
            f"{more}. Put all of them into one folder."
        )
    return [path.with_name(name) for name in names]


def open_model(text: Path, mmproj: Path | None = None) -> GgufModel:
    """Open and check the files of the model that the file `text` is a part of.

    Where `mmproj` names no tower, the one that lies beside and fits is taken. Raises `LoadError`
    for files that are damaged, missing, or of another model.
    """
    parts = text_parts(text)
    # 1) The language model
    opened = open_gguf(parts)
    with _naming(parts[0]):
        check_architecture(opened)
        config = read_config(opened)
        check_tensors(opened, config)
        sampling = read_sampling(opened)
    notes = []
    if factor_is_assumed(opened):
        notes.append(
            "The file does not say how positions are scaled; the factor of the released model, "
            f"{SCALED_FACTOR:g} in global layers, is used."
        )
    # 2) The tower that belongs to it
    reader, vision, path, note = _matching_tower(parts[0], mmproj, config["hidden_size"])
    if note:
        notes.append(note)
    if reader is not None and path is not None:
        with _naming(path):
            vision_names(reader)
        for token in (BEGIN_OF_IMAGE, END_OF_IMAGE):
            if token_id(opened, token) is None:
                raise LoadError(
                    f"{parts[0].name!r} knows no {token}, so it cannot take pictures. Move the "
                    "mmproj file away to load the language model alone."
                )
    files = (*parts, *([path] if path is not None else []))
    return GgufModel(files, opened, config, sampling, reader, vision, tuple(notes))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file an error is about: who reads its contents does not know."""
    try:
        yield
    except LoadError as error:
        raise LoadError(f"{path.name!r}: {error}") from error


def _matching_tower(
    text: Path, mmproj: Path | None, width: int
) -> tuple[Reader | None, VisionSettings | None, Path | None, str]:
    """Return the mmproj to use, or none and a sentence that says why."""
    if mmproj is not None:
        reader = open_gguf([mmproj])
        with _naming(mmproj):
            vision = read_vision(reader)
        if vision.text_width != width:
            raise LoadError(
                f"{mmproj.name!r} belongs to a model of width {vision.text_width}, and "
                f"{text.name!r} is {width} wide. Take the mmproj that was published with it."
            )
        return reader, vision, mmproj, ""
    towers = [(path, open_gguf([path])) for path in _mmproj_files_beside(text)]
    opened = []
    for path, reader in towers:
        if is_tower(reader):  # a folder may hold those of other kinds of models, too
            with _naming(path):
                opened.append((path, reader, read_vision(reader)))
    fitting = [each for each in opened if each[2].text_width == width]
    if len(fitting) > 1:
        names = ", ".join(repr(path.name) for path, *_ in fitting)
        raise LoadError(
            f"Several mmproj files beside {text.name!r} fit it: {names}. Leave one of them in the "
            "folder, or name the one to use."
        )
    if fitting:
        path, reader, vision = fitting[0]
        return reader, vision, path, ""
    why = (
        f"{opened[0][0].name!r} beside it belongs to a model of another size"
        if opened
        else "there is no mmproj file beside it"
    )
    return None, None, None, f"Text only, no pictures: {why}."


def _mmproj_files_beside(text: Path) -> list[Path]:
    try:
        return sorted(
            path
            for path in text.parent.iterdir()
            if "mmproj" in path.name.lower() and path.suffix.lower() == ".gguf" and path != text
        )
    except OSError:  # a folder that may be entered and not listed
        return []
