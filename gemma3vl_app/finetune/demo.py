"""Make the demo model, from nothing to the shipped files: `make demo-model`.

Stages follow each other: the tower on single shapes, on scenes, and with more layers on text; then
projector and LoRA on conversations. Each goes on where it was ended, from checkpoints in the work
folder. On another machine training goes on from the files in the repository: `--resume`, with the
stages that they have not been through, first of the tower and then of the language model.
"""

from __future__ import annotations

import argparse
import copy
import logging
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from gemma3vl_app.finetune import demo_files, demo_language
from gemma3vl_app.finetune.demo_talks import PoolDrawing, PoolStage, Speech, Topics
from gemma3vl_app.finetune.demo_tower import TowerWithHeads, take_tower
from gemma3vl_app.finetune.tower_drawing import draw_stage, several_processes
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
_REFITTED = 4_000  # pictures, to put the projector behind a tower that was trained on
_KINDS: Kinds = (("scene", 0.6), ("print", 0.32), ("chart", 0.08))
TEST_POOL = PoolStage(600, 300, seed=12, kinds=_KINDS)

# What is learned last, for hundreds of steps after all the rest: yes or no to "left of", and how
# many there are of one colour or shape. Mostly these, and enough of all others not to forget them.
_LAST_LEARNED = Topics(
    itself=0.04,
    one_picture=0.82,
    one_after_the_other=0.04,
    turns=9,
    text_turns=9,
    shares={
        **{"yes_or_no": 20, "count_some": 8, "relation": 2, "count": 1.5, "shape": 3},
        **{"colour": 1.5, "describe": 1.2, "is_there": 2, "where": 0.7, "what_is": 0.7},
        **{"size": 0.3, "filled": 0.3, "not_there": 1, "describe_in_detail": 0.3},
        **{"background": 0.3},
    },
)
# A print teaches reading once: what it says can be copied from the answer before.
_MOSTLY_READING = replace(
    _LAST_LEARNED,
    itself=0.03,
    one_picture=0.88,
    one_after_the_other=0.03,
    text_turns=2,
    print_shares={"read": 12, "words": 1, "text_colour": 1, "describe_text": 3, "not_there": 1},
)
# Then all of them again: a stage of mostly one thing lets others slip, most of all counting.
_ALL_TOGETHER = replace(
    _MOSTLY_READING,
    turns=10,
    shares={
        **{"count_some": 12, "count": 3, "shape": 7, "is_there": 7, "yes_or_no": 3, "relation": 3},
        **{"colour": 2, "describe": 1.5, "where": 1.5, "what_is": 0.8, "not_there": 1},
        **{"size": 0.4, "filled": 0.3, "describe_in_detail": 0.4, "background": 0.3},
    },
)
# And again for a tower that reads better, with more about shapes; what is asked less is lost soon.
_WITH_BETTER_EYES = replace(
    _ALL_TOGETHER,
    shares={**_ALL_TOGETHER.shares, "shape": 13, "count_some": 9, "colour": 3},
)
_ALL_ONCE_MORE = replace(_ALL_TOGETHER, shares={**_ALL_TOGETHER.shares, "shape": 10, "colour": 3})


@dataclass(frozen=True)
class LanguageStage:
    """A part of the language model's curriculum: what is talked about, and how it is learned."""

    pool: PoolStage
    leg: demo_language.Leg


LANGUAGE_STAGES = (
    # Sized for a GPU, where a step takes a quarter of a second.
    LanguageStage(
        PoolStage(60_000, 180_000, seed=11, kinds=_KINDS),
        demo_language.Leg(*("language", 1_011, 64, 1e-3), tested=192, at_once=64, padded_to=32),
    ),
    # Sized for 2 cores with bf16 arithmetic, where it takes 20 seconds.
    LanguageStage(
        PoolStage(
            8_000,
            16_000,
            seed=13,
            kinds=(("scene", 0.85), ("print", 0.12), ("chart", 0.03)),
            topics=_LAST_LEARNED,
        ),
        demo_language.Leg(*("last learned", 100, 32, 5e-4), tested=100, at_once=8),
    ),
    LanguageStage(
        PoolStage(
            8_000,
            9_000,
            seed=14,
            kinds=(("scene", 0.36), ("print", 0.6), ("chart", 0.04)),
            topics=_MOSTLY_READING,
        ),
        demo_language.Leg(*("mostly reading", 98, 48, 6e-4), tested=100, at_once=12),
    ),
    LanguageStage(
        PoolStage(
            9_000,
            14_000,
            seed=15,
            kinds=(("scene", 0.66), ("print", 0.3), ("chart", 0.04)),
            topics=_ALL_TOGETHER,
        ),
        demo_language.Leg(*("all together", 220, 48, 6e-4), tested=100, at_once=12),
    ),
    # For a tower that has been through "each letter once" since.
    LanguageStage(
        PoolStage(
            7_000,
            6_000,
            seed=17,
            kinds=(("scene", 0.46), ("print", 0.5), ("chart", 0.04)),
            topics=_WITH_BETTER_EYES,
        ),
        demo_language.Leg(*("with better eyes", 42, 48, 5e-4), tested=100, at_once=12, fall=0.8),
    ),
    LanguageStage(
        PoolStage(
            9_000,
            9_000,
            seed=20,
            kinds=(("scene", 0.56), ("print", 0.4), ("chart", 0.04)),
            topics=_ALL_ONCE_MORE,
        ),
        demo_language.Leg(*("all once more", 100, 48, 5e-4), tested=100, at_once=12, fall=0.8),
    ),
)


def main() -> None:
    """Train what is not trained yet, and write the files that are shipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/demo"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=DATA, help="gets the shipped files")
    parser.add_argument("--minutes", type=float, default=1e9, help="of each language stage")
    parser.add_argument("--resume", action="store_true", help="begin at the files in --out")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(0)
    config = Gemma3Config(**read_json(DATA / "config.json", "demo"))
    begun = begun_with(options.out) if options.resume else Begun()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with several_processes() as executor:
        tower = train_tower(config, device, begun, options, executor)
        reader, tokenizer, speech = make_reader(tower, config)
        stage, step = train_language(reader, tower, tokenizer, speech, begun, options, executor)
    done: dict[str, str | int] = {
        "stage": stage.leg.name,
        "step": step,
        "of_steps": stage.leg.steps,
        "tower": READING_STAGES[-1].name,
    }
    demo_files.write_demo(reader, tower, options.out, done)


@dataclass(frozen=True)
class Begun:
    """How far the training of files is that it goes on from: their `stage`, and steps of it.

    `tower` is the last stage that a finished tower has been through, "" for one that is not.
    """

    stage: str = ""
    step: int = 0
    tower: str = ""


def begun_with(folder: Path) -> Begun:
    """Return how far the training of the files in `folder` is."""
    state = demo_files.read_state(folder)
    return Begun(state["stage"], state["step"], state.get("tower", ""))


def train_tower(
    config: Gemma3Config,
    device: str,
    begun: Begun,
    options: argparse.Namespace,
    executor: Executor,
) -> TowerWithHeads:
    """Run the tower's stages from where training was `begun`."""
    whole = TowerWithHeads(config, device)
    if begun.tower:
        demo_files.load_tower(whole, options.out)
        train_tower_on(whole, begun.tower, options, executor)
        return whole
    tower = TowerWithHeads(with_layers(config, FIRST_LAYERS), device)
    names = [stage.name for stage in (*STAGES, *READING_STAGES)]
    first = names.index(begun.stage) if begun.stage else 0
    for number, stage in enumerate((*STAGES, *READING_STAGES)):
        if number == len(STAGES):
            take_tower(whole, tower.state_dict())
            tower = whole
        if number < first:
            continue
        step = 0
        if stage.name == begun.stage:
            demo_files.load_unfinished(tower, options.out)
            step = begun.step
        train_stage(tower, stage, options.work, executor, first=number == 0, first_step=step)
    return tower


def train_tower_on(
    tower: TowerWithHeads, reached: str, options: argparse.Namespace, executor: Executor
) -> None:
    """Run the stages after the one a finished tower has `reached`, and put its projector behind."""
    names = [stage.name for stage in READING_STAGES]
    stages = READING_STAGES[names.index(reached) + 1 :]
    if not stages:
        return
    sizes = {"patch": tower.patch, "pooled": tower.pooled}
    pictures = draw_stage(stages[-1], _REFITTED, seed=0, **sizes).pixels
    before = tower.look_at_all(pictures)
    for stage in stages:
        train_stage(tower, stage, options.work, executor, first=False)
    tower.refit_projector(before, tower.look_at_all(pictures))


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
    begun: Begun,
    options: argparse.Namespace,
    executor: Executor,
) -> tuple[LanguageStage, int]:
    """Run the language stages from where training was `begun`; returns the last and its steps.

    Ends with the stage in which `--minutes` are over.
    """
    first, step = 0, 0
    if begun.tower:
        demo_files.load_adapter(reader, options.out)
        first, step = [stage.leg.name for stage in LANGUAGE_STAGES].index(begun.stage), begun.step
        if step >= LANGUAGE_STAGES[first].leg.steps:
            first, step = first + 1, 0
    for stage in LANGUAGE_STAGES[first:]:
        if not demo_language.take_finished(reader, stage.leg, options.work):
            stages = (stage.pool, TEST_POOL)
            drawings = [PoolDrawing(s, tower, speech, options.work, executor) for s in stages]
            pool, unseen = (drawing.pool() for drawing in drawings)
            if stage is LANGUAGE_STAGES[0] and step == 0:
                reader.start_projector(pool, tokenizer)
            step = demo_language.train(
                reader,
                pool,
                unseen,
                stage.leg,
                options.work,
                first_step=step,
                minutes=options.minutes,
            )
            if step < stage.leg.steps:
                return stage, step
        step = 0
    return LANGUAGE_STAGES[-1], LANGUAGE_STAGES[-1].leg.steps


if __name__ == "__main__":
    main()
