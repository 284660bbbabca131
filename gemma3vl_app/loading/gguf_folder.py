"""GGUF files as a checkpoint folder: converted once into the cache, then read like any other.

Knows how the files of one model are named and lie together; what is in them, `gguf_text` and
`gguf_vision` know. Nothing is lost but what bf16 rounds off.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.cache import cached_folder
from gemma3vl_app.loading.gguf_header import MAGIC, Reader, check_gguf, open_gguf, stored_shape
from gemma3vl_app.loading.gguf_sampling import read_sampling
from gemma3vl_app.loading.gguf_text import (
    SCALED_FACTOR,
    check_architecture,
    check_tensors,
    factor_is_assumed,
    read_config,
    read_weights,
)
from gemma3vl_app.loading.gguf_values import optional
from gemma3vl_app.loading.gguf_vision import (
    VisionSettings,
    is_tower,
    read_vision,
    read_vision_weights,
    vision_names,
)
from gemma3vl_app.loading.gguf_vocabulary import (
    BEGIN_OF_IMAGE,
    END_OF_IMAGE,
    IMAGE_TOKEN,
    read_tokenizer,
    token_id,
)

logger = logging.getLogger(__name__)

CONVERTER = 2  # raise when the conversion changes, so that old results are not taken for new ones
NOTES = "gguf_notes.json"
PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.IGNORECASE)
MAX_PARTS = 999
INDEX = "model.safetensors.index.json"
SMALL_FILES_BYTES = 100 << 20  # tokenizer and configs, generously
INSTRUCTION_STOP_IDS = {1, 106}  # <eos> and <end_of_turn>


@dataclass(frozen=True)
class _Model:
    """The opened files of one model, and what the conversion needs to know of them."""

    text: Reader
    config: dict[str, Any]
    sampling: dict[str, Any]
    mmproj: Reader | None
    vision: VisionSettings | None
    notes: tuple[str, ...]


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


def gguf_folder(text: Path, *, mmproj: Path | None = None, progress: Report | None = None) -> Path:
    """Return the folder of the converted model; the first call on a machine converts it.

    `text` is the language model (any part of it, where it comes in several files); pictures need
    the mmproj file, which is found where it lies beside and `mmproj` names none. What the result
    lacks or assumes is reported to `progress`, each time; see `gguf_notes`. Raises `LoadError` for
    files that are damaged, missing, or of another model, before anything is written.
    """
    report = progress or (lambda step: None)
    text = text.expanduser()
    model, files = _open(text_parts(text), mmproj.expanduser() if mmproj is not None else None)
    tensors = [*model.text.tensors, *(model.mmproj.tensors if model.mmproj else ())]
    weights_bytes = sum(2 * math.prod(stored_shape(each)) for each in tensors)
    folder = cached_folder(
        _cache_name(files),
        lambda work: _convert(model, work, report),
        hashed=False,  # of many GiB
        needs_bytes=weights_bytes + SMALL_FILES_BYTES,
    )
    for note in model.notes:
        logger.info("%s: %s", text.name, note)
        report(Progress("convert", 1, 1, "steps", note))
    return folder


def gguf_notes(folder: Path) -> tuple[str, ...]:
    """Return the sentences that people should know of a converted folder; empty for others."""
    path = folder / NOTES
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ()


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


# --- opening ---


def _open(parts: list[Path], mmproj: Path | None) -> tuple[_Model, list[Path]]:
    """Return the checked model, and the files it consists of."""
    # 1) The language model
    text = open_gguf(parts)
    with _naming(parts[0]):
        check_architecture(text)
        config = read_config(text)
        check_tensors(text, config)
        sampling = read_sampling(text)
    notes = []
    if factor_is_assumed(text):
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
            if token_id(text, token) is None:
                raise LoadError(
                    f"{parts[0].name!r} knows no {token}, so it cannot take pictures. Move the "
                    "mmproj file away to load the language model alone."
                )
    files = [*parts, *([path] if path is not None else [])]
    return _Model(text, config, sampling, reader, vision, tuple(notes)), files


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


def _cache_name(files: list[Path]) -> str:
    """Return a name that changes with the files' headers, sizes and times, not read whole."""
    stamps = hashlib.sha256(f"converter {CONVERTER}\n".encode())
    for path in files:
        stat = path.stat()
        stamps.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            stamps.update(file.read(check_gguf(path, path.name).data_start))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", files[0].stem)[:40].strip("._-") or "model"
    return f"gguf-{stem}-{stamps.hexdigest()[:16]}"


# --- converting ---


def _convert(model: _Model, folder: Path, report: Report) -> None:
    # 1) The small files
    report(Progress("convert", 0, 0, "files", "Building the tokenizer"))
    instructed = optional(model.text, "tokenizer.chat_template") is not None
    stop_ids = {model.config["eos_token_id"]} | (INSTRUCTION_STOP_IDS if instructed else set())
    small: dict[str, object] = {
        "tokenizer.json": read_tokenizer(model.text),
        "config.json": _config(model, sorted(stop_ids)),
        "generation_config.json": {
            "bos_token_id": model.config["bos_token_id"],
            "pad_token_id": model.config["pad_token_id"],
            "eos_token_id": sorted(stop_ids),
            **model.sampling,
        },
        NOTES: model.notes,
    }
    if model.vision is not None:
        small["preprocessor_config.json"] = model.vision.preprocessor
    for name, content in small.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    # 2) The weights, one layer in memory at a time
    where: dict[str, str] = {}
    total = model.config["num_hidden_layers"] + 2 + (model.vision is not None)
    for number, shard in enumerate(_shards(model)):
        report(Progress("convert", min(number, total), total, "files", "Dequantising the weights"))
        file = f"model-{number + 1:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    report(Progress("convert", total, total, "files", "The GGUF file is converted"))


def _config(model: _Model, stop_ids: list[int]) -> dict[str, Any]:
    """Return config.json: of the text class alone, or of the vision-language class around it."""
    if model.vision is None:
        return model.config | {"eos_token_id": stop_ids}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "dtype": model.config["dtype"],
        "boi_token_index": token_id(model.text, BEGIN_OF_IMAGE),
        "eoi_token_index": token_id(model.text, END_OF_IMAGE),
        "image_token_index": token_id(model.text, IMAGE_TOKEN),
        "eos_token_id": stop_ids,
        "mm_tokens_per_image": model.vision.image_tokens,
        "tie_word_embeddings": True,
        "text_config": {k: v for k, v in model.config.items() if k != "architectures"},
        "vision_config": model.vision.config,
    }


def _shards(model: _Model) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the weights in groups as they lie in the files: a layer each, the tower as one."""
    prefix = "model.language_model." if model.vision is not None else "model."
    shard: dict[str, torch.Tensor] = {}
    layer = ""
    for name, weight in read_weights(model.text):
        found = re.match(r"model\.layers\.\d+\.|", name)
        if shard and found is not None and found[0] != layer:
            yield shard
            shard = {}
        layer = found[0] if found is not None else ""
        shard[prefix + name.removeprefix("model.")] = weight
    yield shard
    if model.mmproj is not None:
        yield dict(read_vision_weights(model.mmproj))
