"""Make the demo model, from nothing to the shipped files: `make demo-model`.

Stages follow each other: the tower on single shapes, the tower on scenes, projector and LoRA on
conversations. Each goes on where it was ended, from checkpoints in the work folder. On another
machine training goes on from the files in the repository: `--resume`.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from gemma3vl_app.finetune import demo_files, demo_language, demo_talks, demo_tower
from gemma3vl_app.hardware import choose_dtype
from gemma3vl_app.loading import demo as shipped_demo
from gemma3vl_app.loading.base_270m import base_270m_folder
from gemma3vl_app.loading.checkpoint import open_checkpoint, read_json, read_tensors
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.tokenizer import TextTokenizer

DATA = shipped_demo.DATA
POOL_PICTURES, TEST_PICTURES = 10_000, 600
LEG = demo_language.Leg(steps=1_350, learning_rate=8e-4)


def main() -> None:
    """Train what is not trained yet, and write the files that are shipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/demo"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=DATA, help="gets the shipped files")
    parser.add_argument("--minutes", type=float, default=1e9, help="of the language stage")
    parser.add_argument("--resume", action="store_true", help="begin at the files in --out")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(0)
    config = Gemma3Config(**read_json(DATA / "config.json", "demo"))
    tower = demo_tower.TowerWithHeads(config)
    begun = demo_files.read_state(options.out) if options.resume else {"stage": "", "step": 0}
    train_tower(tower, begun, options)
    reader, tokenizer, format = make_reader(tower, config)
    step = train_language(reader, tower, tokenizer, format, begun, options)
    demo_files.write_demo(reader, tower, options.out, step, LEG.steps)


def train_tower(
    tower: demo_tower.TowerWithHeads, begun: dict[str, Any], options: argparse.Namespace
) -> None:
    """Run the tower's stages from where training was `begun`."""
    names = [stage.name for stage in demo_tower.STAGES]
    if begun["stage"] == "language":
        demo_files.load_tower(tower, options.out)
        return
    first = 0
    if begun["stage"]:
        first = names.index(begun["stage"])
        demo_files.load_unfinished(tower, options.out)
    for number, stage in enumerate(demo_tower.STAGES[first:], start=first):
        step = begun["step"] if stage.name == begun["stage"] else 0
        demo_tower.train_stage(tower, stage, options.work, first=number == 0, first_step=step)


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
    model.model.language_model.to(getattr(torch, choose_dtype("cpu")[0]))  # quicker, where it is
    model.model.multi_modal_projector.load_state_dict(tower.projector.state_dict())
    return demo_language.Reader(model, format.image_tokens), tokenizer, format


def train_language(
    reader: demo_language.Reader,
    tower: demo_tower.TowerWithHeads,
    tokenizer: TextTokenizer,
    format: PromptFormat,
    begun: dict[str, Any],
    options: argparse.Namespace,
) -> int:
    """Run a leg of the language stage; returns the number of steps done in all."""
    pool = demo_talks.make_pool(tower, POOL_PICTURES, seed=11)
    unseen = demo_talks.make_pool(tower, TEST_PICTURES, seed=12)
    goes_on = begun["stage"] == "language"
    if goes_on:
        demo_files.load_language(reader, options.out)
    else:
        reader.start_projector(pool, tokenizer)
    return demo_language.train(
        reader,
        demo_talks.Talks(pool, tokenizer, format),
        demo_talks.Talks(unseen, tokenizer, format),
        LEG,
        options.work,
        first_step=begun["step"] if goes_on else 0,
        minutes=options.minutes,
    )


if __name__ == "__main__":
    main()
