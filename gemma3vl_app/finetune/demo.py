"""Make the demo model, from nothing to the shipped files: `make demo-model`.

Stages follow each other: the tower on single shapes, the tower on scenes, projector and LoRA on
conversations. Each goes on where it was ended, from checkpoints in the work folder. Legs on another
machine begin at the shipped weights: `--resume`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from gemma3vl_app.finetune import demo_language, demo_tower
from gemma3vl_app.loading import demo as shipped_demo
from gemma3vl_app.loading.base_270m import base_270m_folder
from gemma3vl_app.loading.checkpoint import open_checkpoint, read_json, read_tensors
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.tokenizer import TextTokenizer

DATA = shipped_demo.DATA.parent / "demo_v1"
TOWER, ADAPTER, STATE = "tower_projector.safetensors", "adapter_model.safetensors", "training.json"
POOL_PICTURES, TEST_PICTURES = 8_000, 600
LEG = demo_language.Leg(steps=2_000)

_TOWER_PREFIX, _PROJECTOR_PREFIX = "vision_tower.vision_model.", "multi_modal_projector."


def main() -> None:
    """Train what is not trained yet, and write the files that are shipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/demo"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=DATA, help="gets the shipped files")
    parser.add_argument("--minutes", type=float, default=1e9, help="of the language stage")
    parser.add_argument("--resume", action="store_true", help="begin at the files in --out")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = Gemma3Config(**read_json(DATA / "config.json", "demo"))
    tower = demo_tower.TowerWithHeads(config)
    if options.resume:
        load_tower(tower, options.out)
    else:
        for number, stage in enumerate(demo_tower.STAGES):
            demo_tower.train_stage(tower, stage, options.work, first=number == 0)
    reader, tokenizer, format = make_reader(tower, config)
    step = train_language(reader, tower, tokenizer, format, options)
    write(reader, tower, options.out, step)


def make_reader(
    tower: demo_tower.TowerWithHeads, config: Gemma3Config
) -> tuple[demo_language.Reader, TextTokenizer, PromptFormat]:
    """Return the 270M base with the tower in front of it, ready to be taught."""
    base = open_checkpoint(base_270m_folder(), "demo")
    tokenizer = TextTokenizer.from_file(base.folder / "tokenizer.json")
    preprocessor = read_json(DATA / "preprocessor_config.json", "demo")
    format = PromptFormat.from_config(config.to_dict(), preprocessor, tokenizer)
    model: Any = Gemma3ForConditionalGeneration(config)  # transformers leaves `to` unannotated
    model.to(torch.float32)
    language = {
        name.removeprefix("model."): tensor.float() for name, tensor in read_tensors(base).items()
    }
    model.model.language_model.load_state_dict(language)
    model.model.multi_modal_projector.load_state_dict(tower.projector.state_dict())
    return demo_language.Reader(model, format.image_tokens), tokenizer, format


def train_language(
    reader: demo_language.Reader,
    tower: demo_tower.TowerWithHeads,
    tokenizer: TextTokenizer,
    format: PromptFormat,
    options: argparse.Namespace,
) -> int:
    """Run the language stage for a leg; returns the number of steps done in all."""
    pool = demo_language.make_pool(tower, POOL_PICTURES, seed=11)
    plain = demo_language.make_pool(tower, TEST_PICTURES, seed=12)
    if options.resume:
        load_language(reader, options.out)
    else:
        reader.start_projector(pool, tokenizer)
    talks = demo_language.Talks(pool, tokenizer, format)
    test = demo_language.Talks(plain, tokenizer, format)
    first = read_state(options.out)["step"] if options.resume else 0
    return demo_language.train(
        reader, talks, test, LEG, options.work, first_step=first, minutes=options.minutes
    )


# --- the shipped files ----------------------------------------------------------------------------


def write(
    reader: demo_language.Reader, tower: demo_tower.TowerWithHeads, out: Path, step: int
) -> None:
    """Write tower, projector and LoRA in bf16 under the hub's names, with their SHA-256."""
    tensors = {f"{_TOWER_PREFIX}{key}": t for key, t in tower.tower.state_dict().items()}
    projector = reader.projector.state_dict()
    tensors |= {f"{_PROJECTOR_PREFIX}{key}": t for key, t in projector.items()}
    adapter = get_peft_model_state_dict(reader.peft)
    adapter = {key: t for key, t in adapter.items() if ".lora_" in key}
    for name, found in ((TOWER, tensors), (ADAPTER, adapter)):
        rounded = {key: t.detach().to(torch.bfloat16).contiguous() for key, t in found.items()}
        save_file(rounded, out / name, metadata={"format": "pt"})
    state: dict[str, Any] = {"step": step, "of_steps": LEG.steps, "sequences": LEG.sequences}
    state |= {"sha256": {name: sha256(out / name) for name in (TOWER, ADAPTER)}}
    (out / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def sha256(file: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_state(folder: Path) -> dict[str, Any]:
    """Return how far the shipped weights were trained, and their hashes."""
    return read_json(folder / STATE, "demo")


def load_tower(tower: demo_tower.TowerWithHeads, folder: Path) -> None:
    """Take tower and projector from shipped files."""
    tensors = load_file(folder / TOWER)
    for prefix, module in ((_TOWER_PREFIX, tower.tower), (_PROJECTOR_PREFIX, tower.projector)):
        mine = {
            k.removeprefix(prefix): t.float() for k, t in tensors.items() if k.startswith(prefix)
        }
        module.load_state_dict(mine)


def load_language(reader: demo_language.Reader, folder: Path) -> None:
    """Take projector and LoRA from shipped files."""
    weight = load_file(folder / TOWER)[f"{_PROJECTOR_PREFIX}mm_input_projection_weight"]
    reader.projector.mm_input_projection_weight.data.copy_(weight)
    adapter = {key: t.float() for key, t in load_file(folder / ADAPTER).items()}
    set_peft_model_state_dict(reader.peft, adapter)


if __name__ == "__main__":
    main()
