"""The small files of a checkpoint folder, written: configs, tokenizer, picture settings.

What trained and what converted weights lie beside; the weights themselves are written elsewhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from gemma3vl_app.generation import Sample, Sampling

SHARD_BYTES = 2 << 30
# What other programs want to have beside tokenizer.json, where the source has it
TOKENIZER_FILES = (
    *("tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.json", "chat_template.jinja", "processor_config.json"),
)
OF_STORED_WEIGHTS = ("quantization_config", "dtype", "torch_dtype")  # what config.json says of them


class CheckpointFacts(Protocol):
    """What a checkpoint says beside its weights: a `LoadedModel` does, and a `Checkpoint`."""

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        ...

    @property
    def preprocessor(self) -> dict[str, Any] | None:
        """Its preprocessor_config.json, if it takes pictures."""
        ...

    @property
    def tokenizer_file(self) -> Path:
        """Its tokenizer.json, with other files of the tokenizer beside it."""
        ...

    @property
    def sampling(self) -> Sampling:
        """Its own default."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end its answers."""
        ...


def config_for(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return a config.json for weights that are stored in `dtype`, and not quantised."""
    kept = {key: value for key, value in config.items() if key not in OF_STORED_WEIGHTS}
    return {**kept, "torch_dtype": str(dtype).removeprefix("torch.")}


def write_small_files(folder: Path, facts: CheckpointFacts, config: Mapping[str, Any]) -> None:
    """Write all of a checkpoint but its weights into `folder`; `config` becomes its config.json."""
    write_json(folder / "config.json", config)
    generation: dict[str, Any] = {"eos_token_id": sorted(facts.stop_ids)}
    if isinstance(facts.sampling, Sample):
        generation |= {"do_sample": True, "temperature": facts.sampling.temperature}
        generation |= {"top_k": facts.sampling.top_k, "top_p": facts.sampling.top_p}
    write_json(folder / "generation_config.json", generation)
    if facts.preprocessor is not None:
        write_json(folder / "preprocessor_config.json", facts.preprocessor)
    shutil.copyfile(facts.tokenizer_file, folder / "tokenizer.json")
    for name in TOKENIZER_FILES:
        source = facts.tokenizer_file.with_name(name)
        if source.is_file():
            shutil.copyfile(source, folder / name)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON; sets become lists, other objects their text."""

    def plain(each: Any) -> Any:
        return sorted(each) if isinstance(each, set | frozenset) else str(each)

    path.write_text(json.dumps(value, indent=2, default=plain) + "\n", encoding="utf-8")
