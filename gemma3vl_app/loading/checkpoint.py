"""A checkpoint folder on disk: its configs, its tokenizer file and its tensors, all checked.

Reads safetensors only, runs no code from the folder and never touches the network. Knows the key
names of three layouts; knows nothing of devices or dtypes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gemma3vl_app.errors import ConversationError, LoadError
from gemma3vl_app.generation import Greedy, Sample, Sampling
from gemma3vl_app.loading.shards import StoredTensor, read_headers

# <eos> and <end_of_turn> in every Gemma 3 vocabulary. Base checkpoints name only the first.
STOP_IDS = frozenset({1, 106})

# What `generate` of transformers takes for a setting that generation_config.json leaves open
OPEN_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}

# Key prefixes of the hub's layout, and of what transformers 5's `save_pretrained` writes (its tower
# has no `vision_model`), to the names that transformers 5 uses in memory, which pass unchanged.
PREFIXES = (
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(model\.)?vision_tower\.(vision_model\.)?"), "model.vision_tower."),
    (re.compile(r"^(model\.)?multi_modal_projector\."), "model.multi_modal_projector."),
)
HUB_PREFIXES = (  # and back
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
LARGEST_JSON_BYTES = 64 << 20  # an index of the largest model has some 100 KB
LONGEST_FILE_NAME = 200
LONGEST_ECHO = 80  # characters of a file's own text in an error message
GIVE_ITS_FOLDER = "Give the model's own folder."
# In a folder of Megatron-Core's checkpoints, or in one of its iterations
MEGATRON_FILES = ("latest_checkpointed_iteration.txt", ".metadata", "*/.metadata")
EMBEDDINGS = re.compile(r"^model\.(language_model\.)?embed_tokens\.weight$")


@dataclass(frozen=True)
class Checkpoint:
    """What a folder says about its model, before any tensor is read.

    `config` and `preprocessor` are the JSON files as they are; `preprocessor` is None where there
    is none. `sampling` is the checkpoint's own default.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    preprocessor: dict[str, Any] | None
    tokenizer_file: Path
    sampling: Sampling
    stop_ids: frozenset[int]


def open_checkpoint(folder: Path, name: str | None = None) -> Checkpoint:
    """Read the small files of `folder`; raises `LoadError` where one is missing or not readable."""
    name = name or folder.resolve().name
    if not (folder / "config.json").is_file():
        what = "an adapter" if (folder / "adapter_config.json").is_file() else "no checkpoint"
        raise LoadError(
            f"The folder {name!r} holds {what}: config.json is missing. "
            f"{_other_form(folder) or GIVE_ITS_FOLDER}"
        )
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise LoadError(
            f"The folder {name!r} lacks tokenizer.json. Copy it from the original model."
        )
    config = read_json(folder / "config.json", name)
    generation = _read_optional_json(folder / "generation_config.json", name)
    return Checkpoint(
        folder=folder,
        name=name,
        config=config,
        preprocessor=_read_preprocessor(folder, name),
        tokenizer_file=tokenizer_file,
        sampling=default_sampling(generation, name),
        stop_ids=STOP_IDS | _ids(config.get("eos_token_id")) | _ids(generation.get("eos_token_id")),
    )


def stored_tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Return the folder's tensors, not read yet, under transformers 5's in-memory names.

    An output matrix that only repeats the embeddings is left out. Raises `LoadError` for files that
    are missing, damaged or of another kind.
    """
    found = read_headers(weight_files(checkpoint), checkpoint.name)
    tensors = {in_memory_name(key): tensor for key, tensor in found.items()}
    if len(tensors) != len(found):
        raise LoadError(
            f"{checkpoint.name!r} holds some weights twice, under old and new names. "
            "Keep one of the two sets of files."
        )
    return _without_tied_head(tensors, checkpoint.name)


def read_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the folder's tensors, memory-mapped, under transformers 5's in-memory names."""
    return {key: tensor.read() for key, tensor in stored_tensors(checkpoint).items()}


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """Return the safetensors files to read: those of an index, or the only one."""
    folder, name = checkpoint.folder, checkpoint.name
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        files = [folder / "model.safetensors"]
    else:
        weight_map = read_json(index, name).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise LoadError(f"model.safetensors.index.json of {name!r} has no weight_map.")
        named = sorted({str(file) for file in weight_map.values()})
        files = [folder / _plain_file_name(file, name) for file in named]
    if missing := [file.name for file in files if not file.is_file()]:
        raise LoadError(f"{name!r} lacks {missing[0]}. {_what_is_there(folder)}")
    return files


def in_memory_name(key: str) -> str:
    """Return transformers 5's in-memory name of a checkpoint's key."""
    for pattern, prefix in PREFIXES:
        if pattern.match(key):
            return pattern.sub(prefix, key, count=1)
    return key


def hub_name(name: str) -> str:
    """Return the hub's name of a tensor that transformers 5 calls `name` in memory."""
    for prefix, published in HUB_PREFIXES:
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return name


def default_sampling(generation: dict[str, Any], name: str) -> Sampling:
    """Return the sampling that generation_config.json asks for, as transformers would read it."""
    if not generation.get("do_sample"):
        return Greedy()
    found = {key: generation.get(key) for key in OPEN_SAMPLING}
    values = {key: OPEN_SAMPLING[key] if value is None else value for key, value in found.items()}
    try:
        return Sample(
            temperature=float(values["temperature"]),
            top_k=int(values["top_k"]),
            top_p=float(values["top_p"]),
        )
    except (TypeError, ValueError, OverflowError, ConversationError) as error:
        raise LoadError(
            f"generation_config.json of {name!r} asks for an impossible sampling: "
            f"{ascii(values)[:LONGEST_ECHO]}. "
            "Correct it, or delete the file to always take the most likely token."
        ) from error


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file of the model `name`; raises `LoadError`."""
    try:
        if path.stat().st_size > LARGEST_JSON_BYTES:
            raise LoadError(f"{path.name} of {name!r} is far too large for what it should be.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{path.name} of {name!r} is not readable JSON. Copy it again.") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path.name} of {name!r} is not a JSON object. Copy it again.")
    return value


def _read_optional_json(path: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file, empty where there is no such file."""
    return read_json(path, name) if path.is_file() else {}


def _read_preprocessor(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the picture settings: a file of their own, or (transformers 5) a part of another."""
    own = folder / "preprocessor_config.json"
    if own.is_file():
        return read_json(own, name)
    inner = _read_optional_json(folder / "processor_config.json", name).get("image_processor")
    return inner if isinstance(inner, dict) else None


def _ids(value: object) -> frozenset[int]:
    ids = value if isinstance(value, list) else [value]
    return frozenset(id_ for id_ in ids if isinstance(id_, int))


def _plain_file_name(file: str, name: str) -> str:
    plain = Path(file).name == file and file.endswith(".safetensors")
    if not plain or len(file) > LONGEST_FILE_NAME or "\0" in file:
        raise LoadError(
            f"model.safetensors.index.json of {name!r} points outside its folder or to another "
            f"kind of file: {file[:LONGEST_ECHO]!a}."
        )
    return file


def _what_is_there(folder: Path) -> str:
    return _other_form(folder) or "Copy or download the checkpoint again."


def _other_form(folder: Path) -> str:
    """Return what to do with weights of another form than safetensors; empty where none are."""
    if any(found for pattern in MEGATRON_FILES for found in folder.glob(pattern)):
        return (
            "It holds a checkpoint of Megatron-Core: convert it back first, with "
            "`gemma3vl convert FOLDER NEW_FOLDER --to hub`."
        )
    others = sorted(
        (path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf")),
        key=lambda name: (name.startswith("mmproj"), name),
    )
    if ggufs := [name for name in others if name.endswith(".gguf")]:
        return f"It holds {ggufs[0]}: load that file itself."
    if others:
        return f"It holds {others[0]}, but only safetensors are read: convert the weights first."
    return ""


def _without_tied_head(tensors: dict[str, StoredTensor], name: str) -> dict[str, StoredTensor]:
    head = tensors.get("lm_head.weight")
    if head is None:
        return tensors
    for key, table in tensors.items():
        # A quantised head is a rounded copy of the embeddings; only a plain one can be compared.
        comparable = head.shape == table.shape and head.dtype == table.dtype
        if (
            EMBEDDINGS.match(key)
            and head.dtype.is_floating_point
            and not (comparable and torch.equal(head.read(), table.read()))
        ):
            raise LoadError(
                f"{name!r} has an output matrix (lm_head.weight) of its own; Gemma 3 shares it "
                "with the embeddings. This is another kind of model, or it was saved wrongly."
            )
    return {key: each for key, each in tensors.items() if not key.startswith("lm_head.")}
