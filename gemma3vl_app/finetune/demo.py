"""Make the demo model, from nothing to the shipped files: `make demo-model`.

Stages follow each other: the tower on single shapes, on scenes, and with more layers on text; then
projector and LoRA on conversations. Each goes on where it was ended, from checkpoints in the work
folder. On another machine training goes on from the files in the repository: `--resume`.
"""

from __future__ import annotations

import argparse
import copy
import logging
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from gemma3vl_app.finetune import demo_files, demo_language
from gemma3vl_app.finetune.demo_talks import PoolDrawing, PoolStage, Speech
from gemma3vl_app.finetune.demo_tower import TowerWithHeads, take_tower
from gemma3vl_app.finetune.tower_drawing import several_processes
from gemma3vl_app.finetune.tower_pictures import Kinds
from gemma3vl_app.finetune.tower_training import READING_STAGES, STAGES, train_stage
from gemma3vl_app.hardware import choose_dtype
from gemma3vl_app.loading import demo as shipped_demo
from gemma3vl_app.loading.base_270m import base_270m_folder
from gemma3vl_app.loading.checkpoint import open_checkpoint, read_json, read_tensors
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.tokenizer import TextTokenizer

DATA = shipped_demo.DATA
FIRST_LAYERS = 6  # of the tower, until it learns to read
_KINDS: Kinds = (("scene", 0.6), ("print", 0.32), ("chart", 0.08))
POOL = PoolStage(60_000, 180_000, seed=11, kinds=_KINDS)
TEST_POOL = PoolStage(600, 300, seed=12, kinds=_KINDS)
LEG = demo_language.Leg(
    steps=1_011, sequences=64, learning_rate=1e-3, tested=192, at_once=64, padded_to=32
)


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
    begun = demo_files.read_state(options.out) if options.resume else {"stage": "", "step": 0}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with several_processes() as executor:
        tower = train_tower(config, device, begun, options, executor)
        reader, tokenizer, speech = make_reader(tower, config)
        step = train_language(reader, tower, tokenizer, speech, begun, options, executor)
    demo_files.write_demo(reader, tower, options.out, step, LEG.steps)


def train_tower(
    config: Gemma3Config,
    device: str,
    begun: dict[str, Any],
    options: argparse.Namespace,
    executor: Executor,
) -> TowerWithHeads:
    """Run the tower's stages from where training was `begun`."""
    whole = TowerWithHeads(config, device)
    if begun["stage"] == "language":
        demo_files.load_tower(whole, options.out)
        return whole
    tower = TowerWithHeads(with_layers(config, FIRST_LAYERS), device)
    names = [stage.name for stage in (*STAGES, *READING_STAGES)]
    first = names.index(begun["stage"]) if begun["stage"] else 0
    for number, stage in enumerate((*STAGES, *READING_STAGES)):
        if number == len(STAGES):
            take_tower(whole, tower.state_dict())
            tower = whole
        if number < first:
            continue
        step = 0
        if stage.name == begun["stage"]:
            demo_files.load_unfinished(tower, options.out)
            step = begun["step"]
        train_stage(tower, stage, options.work, executor, first=number == 0, first_step=step)
    return tower


def with_layers(config: Gemma3Config, layers: int) -> Gemma3Config:
    """Return the config of the same model with so many layers in its tower."""
    changed = copy.deepcopy(config)
    vision: Any = changed.vision_config  # transformers types it as anything
    vision.num_hidden_layers = layers
    return changed


def make_reader(
    tower: TowerWithHeads, config: Gemma3Config
) -> tuple[demo_language.Reader, TextTokenizer, Speech]:
    """Return the 270M base with the tower in front of it, ready to be taught."""
    base = open_checkpoint(base_270m_folder(), "demo")
    tokenizer_file = base.folder / "tokenizer.json"
    tokenizer = TextTokenizer.from_file(tokenizer_file)
    preprocessor = read_json(DATA / "preprocessor_config.json", "demo")
    format = PromptFormat.from_config(config.to_dict(), preprocessor, tokenizer)
    model: Any = Gemma3ForConditionalGeneration(config)  # transformers leaves `to` unannotated
    model.to(torch.float32)
    language = {
        name.removeprefix("model."): tensor.float() for name, tensor in read_tensors(base).items()
    }
    model.model.language_model.load_state_dict(language)
    quick = choose_dtype(str(tower.device))[0]
    model.model.language_model.to(getattr(torch, quick))  # quicker, where it is
    model.model.multi_modal_projector.load_state_dict(tower.projector.state_dict())
    model.to(tower.device)
    reader = demo_language.Reader(model, format.image_tokens)
    return reader, tokenizer, Speech(tokenizer_file, format)


def train_language(
    reader: demo_language.Reader,
    tower: TowerWithHeads,
    tokenizer: TextTokenizer,
    speech: Speech,
    begun: dict[str, Any],
    options: argparse.Namespace,
    executor: Executor,
) -> int:
    """Run a leg of the language stage; returns the number of steps done in all."""
    drawings = [PoolDrawing(s, tower, speech, options.work, executor) for s in (POOL, TEST_POOL)]
    pool, unseen = (drawing.pool() for drawing in drawings)
    goes_on = begun["stage"] == "language"
    if goes_on:
        demo_files.load_language(reader, options.out)
    else:
        reader.start_projector(pool, tokenizer)
    return demo_language.train(
        reader,
        pool,
        unseen,
        LEG,
        options.work,
        first_step=begun["step"] if goes_on else 0,
        minutes=options.minutes,
    )


if __name__ == "__main__":
    main()
