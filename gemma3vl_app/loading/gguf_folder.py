"""GGUF files as a checkpoint folder: converted once into the cache, then read like any other.

Which files make a model, `gguf_model` knows; what is in them, `gguf_text` and `gguf_vision`.
Nothing is lost but what bf16 rounds off.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.cache import cached_folder
from gemma3vl_app.loading.gguf_header import check_gguf, stored_shape
from gemma3vl_app.loading.gguf_model import GgufModel, open_model
from gemma3vl_app.loading.gguf_text import read_weights
from gemma3vl_app.loading.gguf_values import optional
from gemma3vl_app.loading.gguf_vision import read_vision_weights
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
INDEX = "model.safetensors.index.json"
SMALL_FILES_BYTES = 100 << 20  # tokenizer and configs, generously
INSTRUCTION_STOP_IDS = {1, 106}  # <eos> and <end_of_turn>


def gguf_folder(text: Path, *, mmproj: Path | None = None, progress: Report | None = None) -> Path:
    """Return the folder of the converted model; the first call on a machine converts it.

    `text` is the language model (any part of it, where it comes in several files); pictures need
    the mmproj file, which is found where it lies beside and `mmproj` names none. What the result
    lacks or assumes is reported to `progress`, each time; see `gguf_notes`. Raises `LoadError` for
    files that are damaged, missing, or of another model, before anything is written.
    """
    report = progress or (lambda step: None)
    text = text.expanduser()
    model = open_model(text, mmproj.expanduser() if mmproj is not None else None)
    tensors = [*model.text.tensors, *(model.mmproj.tensors if model.mmproj else ())]
    weights_bytes = sum(2 * math.prod(stored_shape(each)) for each in tensors)
    folder = cached_folder(
        _cache_name(model.files),
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


def _cache_name(files: tuple[Path, ...]) -> str:
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


def _convert(model: GgufModel, folder: Path, report: Report) -> None:
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


def _config(model: GgufModel, stop_ids: list[int]) -> dict[str, Any]:
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


def _shards(model: GgufModel) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the weights in groups as they lie in the files: a layer each, the tower as one."""
    shard: dict[str, torch.Tensor] = {}
    layer = ""
    for name, weight in read_weights(model.text):
        found = re.match(r"model\.layers\.\d+\.|", name)
        if shard and found is not None and found[0] != layer:
            yield shard
            shard = {}
        layer = found[0] if found is not None else ""
        shard[model.memory_name(name)] = weight
    yield shard
    if model.mmproj is not None:
        yield dict(read_vision_weights(model.mmproj))
