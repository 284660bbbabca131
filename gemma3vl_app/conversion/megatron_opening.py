"""Checkpoints of Megatron-Core, opened like other sources: weights by Megatron's names.

What the model is, config.json and tokenizer.json say, which Megatron does not write: a conversion
puts them beside its iterations, and they have to be there to come back.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from gemma3vl_app import catalog
from gemma3vl_app.conversion.dcp_reader import DIRECTORY, open_dcp
from gemma3vl_app.conversion.megatron_folder import RELEASE, TRACKER
from gemma3vl_app.conversion.megatron_layers import by_layer
from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.checkpoint import open_checkpoint
from gemma3vl_app.loading.loader import build_skeleton
from gemma3vl_app.loading.sources import Source

ITERATION = re.compile(r"iter_\d{7,18}|release")


def is_megatron(source: str | Path) -> bool:
    """Whether `source` is a folder of Megatron-Core's checkpoints."""
    folder = Path(source).expanduser()
    if catalog.find(str(source)) or not folder.is_dir() or any(folder.glob("model*.safetensors")):
        return False
    return (
        _is_iteration(folder)
        or (folder / TRACKER).is_file()
        or any(_is_iteration(each) for each in folder.iterdir())
    )


def open_megatron(source: str | Path) -> Source:
    """Open an iteration's folder, or the latest iteration in a folder of Megatron-Core's.

    Nothing large is read. Raises `LoadError` where the model's own small files are missing, and for
    weights that are damaged or of another format.
    """
    given = Path(source).expanduser().resolve()
    folder = given.parent if _is_iteration(given) else given
    name = folder.name
    if missing := [n for n in ("config.json", "tokenizer.json") if not (folder / n).is_file()]:
        raise LoadError(
            f"{name!r} holds Megatron's weights without {missing[0]}. Copy all small files "
            "of the model that was trained into it, beside its iterations: the .json files (not "
            "conversion.json), chat_template.jinja and tokenizer.model."
        )
    checkpoint = open_checkpoint(folder)
    iteration = given if given != folder else _latest(folder, name)
    if not (iteration / DIRECTORY).is_file():
        raise LoadError(
            f"{iteration.name} of {name!r} is not in the format torch_dist, or not complete: "
            f"{DIRECTORY} is missing. Save it with ckpt_format=torch_dist."
        )
    text = build_skeleton(checkpoint).config.get_text_config()
    stored = open_dcp(iteration, name)
    digest = hashlib.sha256((iteration / DIRECTORY).read_bytes()).hexdigest()
    return Source(
        checkpoint=checkpoint,
        tensors=by_layer(stored.tensors, vocabulary=text.vocab_size, layers=text.num_hidden_layers),
        knows=f"A Gemma 3 checkpoint of Megatron-Core, {name!r}.",
        fingerprint=digest,
        revision=f"files:{digest[:16]}",
    )


def _is_iteration(folder: Path) -> bool:
    return bool(ITERATION.fullmatch(folder.resolve().name)) and (folder / DIRECTORY).is_file()


def _latest(folder: Path, name: str) -> Path:
    """Return the folder of the iteration that the tracker names, or else of the highest one."""
    found = [each.name for each in folder.iterdir() if ITERATION.fullmatch(each.name)]
    there = sorted(found, key=lambda each: (each != RELEASE, len(each), each))
    try:
        said = (folder / TRACKER).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        said = ""
    number = said.lstrip("0").zfill(7)
    wanted = f"iter_{number}" if said.isdecimal() else said or (there or [""])[-1]
    if wanted not in there:
        raise LoadError(f"{name!r} lacks the iteration {ascii(wanted)[:40]}. Copy it again.")
    return folder / wanted
