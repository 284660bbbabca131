"""Small things to learn: eight plain pictures, and what is said about each."""

import dataclasses
import json

import pytest
from PIL import Image

from gemma3vl_app.finetune.recipe import Recipe

COLOURS = {
    **{"red": (220, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 220)},
    **{"yellow": (230, 220, 40), "black": (0, 0, 0), "white": (255, 255, 255)},
    **{"pink": (250, 150, 200), "grey": (128, 128, 128)},
}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of eight pictures, named by their colours, and `data.jsonl` with a question each."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 40), colour).save(folder / f"{name}.png")
        line = {"picture": f"{name}.png", "question": "What colour?", "answer": f"It is {name}."}
        lines.append(json.dumps(line))
    (folder / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A checkpoint like the tiny one, of two layers: one of each kind. Read only."""
    from gemma3vl_app.testing import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "small", layers=2)


@pytest.fixture(scope="session")
def loaded(tiny):
    """The tiny checkpoint in fp32. Read only."""
    from gemma3vl_app.loading import load_model

    return load_model(tiny, weights="fp32")


@pytest.fixture(scope="session")
def tokenizer(loaded):
    from gemma3vl_app.prompting import TextTokenizer

    return TextTokenizer.from_file(loaded.tokenizer_file)


@pytest.fixture(scope="session")
def format(loaded, tokenizer):
    from gemma3vl_app.prompting import PromptFormat

    return PromptFormat.from_config(loaded.config, loaded.preprocessor, tokenizer)


@pytest.fixture
def recipe(small, pictures, tmp_path):
    """A recipe that trains the small checkpoint on eight pictures; change it with `but`."""
    return recipe_for(small, pictures, tmp_path / "run")


def recipe_for(model, pictures, out):
    return Recipe(
        model=str(model),
        data=str(pictures / "data.jsonl"),
        out=str(out),
        eval_fraction=0.0,
        global_batch=4,
        micro_batch=4,
        max_steps=4,
        learning_rate=1e-2,
        warmup_ratio=0.0,
        schedule="constant",
        precision="fp32",
        gradient_checkpointing=False,
        lora_rank=8,
        save_every=100,
    )


@pytest.fixture
def tower():
    """A tower like the demo's, of 8 x 8 patches and 4 x 4 cells."""
    import torch

    from gemma3vl_app.finetune.demo_tower import TowerWithHeads

    torch.manual_seed(0)
    return TowerWithHeads(tower_config(layers=2))


def tower_config(layers):
    """Return a config like the demo's: pictures of 64 pixels, 8 x 8 patches, 4 x 4 cells."""
    from transformers import Gemma3Config, SiglipVisionConfig
    from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig

    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        vision_use_head=False,
    )
    text = Gemma3TextConfig(hidden_size=48, num_hidden_layers=1, head_dim=8)
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16)


def but(recipe, **changes):
    """Return the recipe with some fields changed."""
    return dataclasses.replace(recipe, **changes)
