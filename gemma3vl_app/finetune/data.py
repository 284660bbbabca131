"""Training data, read and checked before anything is trained: every item usable, or named.

Every picture is opened once, and every conversation turned into tokens, so that nothing can go
wrong hours later. Pictures are not kept: an `Example` opens them when it is used.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gemma3vl_app.errors import ConversationError, PictureError, TrainingDataError
from gemma3vl_app.finetune.collate import encode
from gemma3vl_app.finetune.examples import Example, Problem
from gemma3vl_app.finetune.recipe import Recipe
from gemma3vl_app.finetune.sources import Items, is_local, read_items
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

NAMED = 3  # items that a message names for each kind of problem
CHECKERS = 4  # threads; decoding a picture leaves the interpreter to others


@dataclass(frozen=True)
class TrainingData:
    """The examples to learn from, and those to evaluate on."""

    train: tuple[Example, ...]
    evaluation: tuple[Example, ...]

    @property
    def digest(self) -> str:
        """Changes whenever examples or their order do; pictures count by where they lie."""
        return hashlib.sha256(repr((self.train, self.evaluation)).encode()).hexdigest()


def load_data(
    recipe: Recipe, tokenizer: TextTokenizer, format: PromptFormat, report: Report | None = None
) -> TrainingData:
    """Read and check all that a recipe learns from and evaluates on.

    Without `eval_data` a part of the data is kept for evaluation, chosen by the recipe's seed.
    Raises `TrainingDataError`, which names what is wrong, or logs it where bad items are skipped.
    """

    _check_hub_fields(recipe)

    def load(data: str, split: str) -> list[Example]:
        items = read_items(
            data,
            columns=recipe.columns,
            split=split,
            config=recipe.data_config if data == recipe.data else None,
            question=recipe.question,
        )
        return usable(items, recipe, tokenizer, format, report)

    train = load(recipe.data, recipe.split)
    if recipe.eval_data is not None or recipe.eval_split is not None:
        evaluated = load(recipe.eval_data or recipe.data, recipe.eval_split or recipe.split)
        return TrainingData(tuple(train), tuple(evaluated))
    kept = _kept_for_evaluation(recipe, len(train))
    chosen = set(random.Random(recipe.seed).sample(range(len(train)), kept))
    return TrainingData(
        tuple(each for index, each in enumerate(train) if index not in chosen),
        tuple(each for index, each in enumerate(train) if index in chosen),
    )


def _check_hub_fields(recipe: Recipe) -> None:
    if recipe.data and all(map(is_local, filter(None, (recipe.data, recipe.eval_data)))):
        for name in ("columns", "data_config", "eval_split", "split"):
            if getattr(recipe, name) != getattr(Recipe(), name):
                raise TrainingDataError(
                    f"{name} is stated, and the data are a file or a folder here, which has none. "
                    "Leave it out."
                )
    if recipe.eval_split is not None and recipe.eval_data and is_local(recipe.eval_data):
        raise TrainingDataError(
            "eval_split is stated, and eval_data is a file or a folder here, which has none. "
            "Leave one out."
        )


def _kept_for_evaluation(recipe: Recipe, count: int) -> int:
    """Return how many of `count` examples are evaluated on: of two or more, at least one."""
    if recipe.eval_fraction and count > 1:
        return max(1, int(count * recipe.eval_fraction))
    if recipe.patience:
        raise TrainingDataError(
            "patience is set, and one example alone cannot be both trained and evaluated on. "
            "State eval_data, or patience=0."
        )
    return 0


def usable(
    items: Items,
    recipe: Recipe,
    tokenizer: TextTokenizer,
    format: PromptFormat,
    report: Report | None = None,
) -> list[Example]:
    """Return the items that can be learned from; `recipe.bad_items` decides about the others."""

    def check(item: Example | Problem) -> Example | Problem:
        return item if isinstance(item, Problem) else _checked(item, recipe, tokenizer, format)

    checked: list[Example | Problem] = []
    with ThreadPoolExecutor(CHECKERS) as pool:
        for item in pool.map(check, items):
            checked.append(item)
            if report is not None:
                report(Progress("check", len(checked), len(items), "items", "Checking the data"))
    problems = [item for item in checked if isinstance(item, Problem)]
    examples = [item for item in checked if isinstance(item, Example)]
    if problems:
        summary = _summary(problems, len(items))
        if recipe.bad_items == "refuse" or not examples:
            raise TrainingDataError(
                f"{summary}. Correct or remove them, or set bad_items=skip to leave them out."
            )
        logger.warning("%s; they are left out", summary)
    return examples


def _checked(
    example: Example, recipe: Recipe, tokenizer: TextTokenizer, format: PromptFormat
) -> Example | Problem:
    try:
        tokens = len(encode(example.conversation(), tokenizer, format))
    except PictureError as error:
        return Problem(example.where, f"a picture that cannot be used: {error}")
    except ConversationError as error:
        return Problem(example.where, f"a conversation that cannot be used: {error}")
    if tokens > recipe.max_tokens:
        return Problem(
            example.where, f"too many tokens: {tokens:,}, max_tokens is {recipe.max_tokens:,}"
        )
    return example


def _summary(problems: Sequence[Problem], total: int) -> str:
    """Count the problems by kind, and name the first items of each."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.what.partition(":")[0], []).append(problem)
    parts = []
    for kind, found in kinds.items():
        places = ", ".join(problem.where for problem in found[:NAMED])
        more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
        # What is behind the colon differs from item to item: the first one's is told.
        detail = found[0].what.partition(":")[2]
        parts.append(f"{len(found):,} with {kind} ({places}{more}{detail and ':' + detail})")
    return f"{len(problems):,} of {total:,} items cannot be learned from: {'; '.join(parts)}"
