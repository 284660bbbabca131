"""The tiny checkpoint and changed copies of it, with few prompts: each costs seconds."""

import gc
import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma3vl_app.faithfulness import reader
from gemma3vl_app.faithfulness.prompts import drawn_picture
from gemma3vl_app.loading.loader import LoadedModel

Change = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """A file with one short question."""
    file = tmp_path_factory.mktemp("asked") / "questions.txt"
    file.write_text("Name three colours of the rainbow.\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def long_question(tmp_path_factory) -> Path:
    """A file with one question that the disk cache finds worth keeping."""
    file = tmp_path_factory.mktemp("asked") / "long.txt"
    file.write_text("There is a red barn behind the old mill. " * 8 + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def shown(tmp_path_factory) -> Path:
    """A folder with one wide picture, which is cropped where crops are on."""
    folder = tmp_path_factory.mktemp("shown")
    drawn_picture(3, 640, 320).rgb.save(folder / "wide.png")
    return folder


@pytest.fixture(scope="session")
def copied(tiny, tmp_path_factory) -> Callable[..., Path]:
    """Make a copy of the tiny checkpoint with changed weights or configuration."""

    def copy(change: Change | None = None, **text_config: int) -> Path:
        folder = tmp_path_factory.mktemp("changed") / "tiny"
        folder.mkdir()
        for file in tiny.iterdir():
            os.link(file, folder / file.name)
        if change is not None:
            weights = load_file(tiny / "model.safetensors")
            change(weights)
            (folder / "model.safetensors").unlink()  # a link: the original stays
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        if text_config:
            config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
            config["text_config"] |= text_config
            (folder / "config.json").unlink()
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    yield copy
    shutil.rmtree(tmp_path_factory.getbasetemp() / "changed", ignore_errors=True)


class Watched:
    """Loads models, and notes at each load whether any of those before is still in memory."""

    def __init__(self) -> None:
        self.alive: list[bool] = []
        self.models: list[weakref.ref] = []
        self._load = reader.load_model

    def load_model(self, *arguments: Any, **options: Any) -> LoadedModel:
        """Stand in for `loader.load_model`."""
        gc.collect()
        self.alive.append(any(model() is not None for model in self.models))
        loaded = self._load(*arguments, **options)
        self.models.append(weakref.ref(loaded.model))
        return loaded


def louder(name: str) -> Change:
    """Make one weight 5 % larger."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[name] = (weights[name].float() * 1.05).to(torch.bfloat16)

    return change
