"""The table of suites: where each lies, how its rows are read, what is asked, how it is scored.

Prompts and limits are those that the sets are published with, or that lmms-eval uses for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gemma3vl_app.errors import EvaluationError
from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.anls import ANLS
from gemma3vl_app.evaluation.metrics.captions import CIDER
from gemma3vl_app.evaluation.metrics.choices import CHOICE_ACCURACY
from gemma3vl_app.evaluation.metrics.drawn import SCENE_ACCURACY
from gemma3vl_app.evaluation.metrics.metric import Metric
from gemma3vl_app.evaluation.metrics.reading import (
    CHARACTER_ERRORS,
    CONTAINS,
    RECOGNITION_CHARACTER_ERRORS,
    RECOGNITION_WORD_ERRORS,
    WORD_ERRORS,
)
from gemma3vl_app.evaluation.metrics.relaxed import RELAXED_ACCURACY
from gemma3vl_app.evaluation.metrics.vqa import TEXTVQA_ACCURACY, VQA_ACCURACY
from gemma3vl_app.tasks.prompts import READ

SHORT = "{question}\nAnswer the question using a single word or phrase."


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where a suite is published: a data set of the hub, its configuration and split."""

    name: str
    split: str
    config: str | None = None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a suite's columns are called, the first that a row has; `data.OWN` are added to these.

    `kind_of` says the kind where no column does.
    """

    id: tuple[str, ...] = ()
    question: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ("image",)
    kind_of: Callable[[Mapping[str, Any]], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Questions of one sort. The first of `metrics` is the one that answers are ordered by.

    `prompt` is what the model is told, with `{question}` and `{options}` filled in; `free_prompt`
    takes its place for questions without options in a suite of multiple choice (`choices`), the
    only ones whose items may have options. In a suite of `votes`, references are the answers of
    several people, each of whom counts. Without `published` and unless `drawn`, data have to be
    given.
    """

    name: str
    about: str
    prompt: str
    metrics: tuple[Metric, ...]
    max_new_tokens: int
    columns: Columns = field(default_factory=Columns)
    published: Published | None = None
    free_prompt: str = ""
    choices: bool = False
    votes: bool = False
    drawn: bool = False

    def ask(self, item: Item) -> str:
        """Return the text that goes with an item's pictures."""
        options = "\n".join(
            f"{letter}. {option}" for letter, option in zip(item.letters, item.options, strict=True)
        )
        template = self.prompt if item.options or not self.free_prompt else self.free_prompt
        return template.format(question=item.question, options=options)


def _subject(row: Mapping[str, Any]) -> str:
    """Return MMMU's subject from an id such as "validation_Art_Theory_3"."""
    found = re.fullmatch(r"[a-z]+_(.+)_\d+", str(row.get("id", "")))
    return found[1].replace("_", " ") if found else ""


def _half(row: Mapping[str, Any]) -> str:
    """Return ChartQA's half: "human_test" is the kind "human" of the split "test"."""
    told = (row.get(name) for name in ("type", "human_or_machine"))
    return str(next((each for each in told if each is not None), "")).removesuffix("_test")


_ALL = (
    Suite(
        name="docvqa",
        about="questions about scanned documents",
        prompt=SHORT,
        metrics=(ANLS,),
        max_new_tokens=32,
        columns=Columns(id=("questionId",), kinds=("question_types",)),
        published=Published(name="lmms-lab/DocVQA", config="DocVQA", split="validation"),
    ),
    Suite(
        name="textvqa",
        about="questions about text in photos",
        prompt=SHORT,
        metrics=(TEXTVQA_ACCURACY,),
        max_new_tokens=16,
        votes=True,
        columns=Columns(id=("question_id",)),
        published=Published(name="lmms-lab/textvqa", split="validation"),
    ),
    Suite(
        name="vqav2",
        about="questions about photos",
        prompt=SHORT,
        metrics=(VQA_ACCURACY,),
        max_new_tokens=16,
        votes=True,
        columns=Columns(id=("question_id",), kinds=("answer_type",)),
        published=Published(name="lmms-lab/VQAv2", split="validation"),
    ),
    Suite(
        name="chartqa",
        about="questions about charts, asked by people or made from the data",
        prompt="{question}\nAnswer the question with a single word.",
        metrics=(RELAXED_ACCURACY,),
        max_new_tokens=16,
        columns=Columns(question=("query",), answers=("label",), kind_of=_half),
        published=Published(name="lmms-lab/ChartQA", split="test"),
    ),
    Suite(
        name="ocrbench",
        about="reading words, digits, documents and formulas",
        prompt="{question}",
        metrics=(CONTAINS, RECOGNITION_CHARACTER_ERRORS, RECOGNITION_WORD_ERRORS),
        max_new_tokens=128,
        columns=Columns(kinds=("question_type",)),
        published=Published(name="echo840/OCRBench", split="test"),
    ),
    Suite(
        name="reading",
        about="reading all the text of pages; data of yours",
        prompt=READ["plain"].text,
        metrics=(CHARACTER_ERRORS, WORD_ERRORS),
        max_new_tokens=2048,
        columns=Columns(answers=("text",)),
    ),
    Suite(
        name="coco",
        about="captions of photos",
        prompt="Provide a one-sentence caption for the provided image.",
        metrics=(CIDER,),
        max_new_tokens=64,
        columns=Columns(id=("question_id",)),
        published=Published(name="lmms-lab/COCO-Caption2017", split="val"),
    ),
    Suite(
        name="mmmu",
        about="college questions, most of them multiple choice",
        prompt="{question}\n{options}\n\n"
        "Answer with the option's letter from the given choices directly.",
        free_prompt="{question}\n\nAnswer the question using a single word or phrase.",
        metrics=(CHOICE_ACCURACY,),
        max_new_tokens=128,
        choices=True,
        columns=Columns(
            kind_of=_subject, pictures=tuple(f"image_{number}" for number in range(1, 8))
        ),
        published=Published(name="lmms-lab/MMMU", split="validation"),
    ),
    Suite(
        name="scenes",
        about="drawn shapes and printed words, which the demo knows; made here, nothing is loaded",
        prompt="{question}",
        metrics=(SCENE_ACCURACY,),
        max_new_tokens=200,
        drawn=True,
    ),
)
SUITES = {suite.name: suite for suite in _ALL}


def find_suite(name: str) -> Suite:
    """Return the suite of that name; raises `EvaluationError` with the names there are."""
    if name not in SUITES:
        raise EvaluationError(f"There is no suite {name!r}. There are: {', '.join(SUITES)}.")
    return SUITES[name]
