"""Where items come from: a JSON lines file, a saved data set, the hub, or the drawing of scenes.

Rows are read by a suite's column names, or by those of one's own files (`OWN`). All of them are
looked at before anything is asked, but no picture is opened.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError

from gemma3vl_app.errors import EvaluationError, TrainingError
from gemma3vl_app.evaluation.items import ALL, LETTERS, Item
from gemma3vl_app.evaluation.metrics.vqa import ENOUGH
from gemma3vl_app.evaluation.suites import SUITES, Columns, Published, Suite
from gemma3vl_app.lazy_pictures import (
    DatasetPicture,
    LazyPicture,
    PictureFile,
    datasets_package,
    undecoded,
)
from gemma3vl_app.pictures import Picture
from gemma3vl_app.scenes import items as scenes

logger = logging.getLogger(__name__)

OWN = Columns(
    id=("id",),
    question=("question",),
    answers=("answers", "answer"),
    kinds=("kinds", "kind"),
    pictures=("picture", "pictures", "image", "images"),
)
SCENES_OF_A_KIND = 100  # unless more are asked for
PROBLEMS_SHOWN = 3
_ROWS_AT_ONCE = 1_000

Loaded = TypeVar("Loaded")
OpenPictures = Callable[[str, Any], Sequence[LazyPicture]]  # a column and its value


@dataclass(frozen=True)
class Data:
    """Items to choose from. `sha256` is that of questions and answers: others are other data.

    `config` and `split` say which part of a data set they are, None where it has no parts.
    """

    name: str
    items: tuple[Item, ...]
    sha256: str
    notes: tuple[str, ...] = ()
    config: str | None = None
    split: str | None = None

    def chosen(self, limit: int | None, seed: int) -> tuple[Item, ...]:
        """Return `limit` items drawn at random, in their order; a larger limit holds them too."""
        if limit is None or limit >= len(self.items):
            return self.items
        order = list(range(len(self.items)))
        random.Random(seed).shuffle(order)
        return tuple(self.items[index] for index in sorted(order[:limit]))


def read_data(
    suite: Suite,
    source: str | Path | None = None,
    *,
    config: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Data:
    """Read all items of `source` for `suite`, or of the suite's own data.

    `source` is a .jsonl file, a folder that the package `datasets` wrote or can read, or the name
    of a data set on the hub; `config` and `split` say which part of it. `limit` says how many
    scenes are drawn, which have no end. Raises `EvaluationError` where rows cannot be used; names
    the first of them.
    """
    if suite.drawn:
        if source is not None:
            raise EvaluationError(f"The suite {suite.name!r} draws its own pictures; give no data.")
        return _draw_scenes(limit)
    if source is None and suite.published is None:
        raise EvaluationError(f"The suite {suite.name!r} has no data of its own. Give data=FILE.")
    given = Path(source).expanduser() if source is not None else None
    if given is not None and given.suffix == ".jsonl":
        return _made(given.name, _read_jsonl(given, suite))
    wanted = split or (suite.published.split if suite.published else "test")
    if given is not None and given.exists():
        dataset, config, found = _load_folder(given, config, wanted)
        return _made(given.name, _read_dataset(dataset, suite, given.name), config, found)
    if given is not None:
        published = Published(name=str(source), config=config, split=wanted)
    else:
        assert suite.published is not None
        config = config or suite.published.config
        published = Published(name=suite.published.name, config=config, split=wanted)
    rows = _read_dataset(_load(published), suite, published.name)
    return _made(published.name, rows, published.config, published.split)


def _made(
    name: str, items: Iterable[Item | str], config: str | None = None, split: str | None = None
) -> Data:
    """Return data of items; a text among them says what is wrong with a row."""
    found = list(items)
    if problems := [each for each in found if isinstance(each, str)]:
        more = "; ..." if len(problems) > PROBLEMS_SHOWN else ""
        shown = "; ".join(problems[:PROBLEMS_SHOWN]) + more
        raise EvaluationError(
            f"{len(problems):,} of {len(found):,} rows of {name!r} cannot be used: {shown}. "
            "Mend or remove them."
        )
    if not found:
        raise EvaluationError(f"There is nothing to ask in {name!r}: it is empty.")
    ready = tuple(each for each in found if isinstance(each, Item))
    if len({item.id for item in ready}) < len(ready):  # such as one per picture, not per question
        ready = tuple(replace(item, id=f"{item.id}-{row}") for row, item in enumerate(ready))
    digest = hashlib.sha256()
    for item in ready:
        told = [item.id, item.question, item.answers, item.options, len(item.pictures)]
        digest.update(json.dumps(told).encode() + b"\n")
    return Data(name, ready, digest.hexdigest(), config=config, split=split)


# --- rows -----------------------------------------------------------------------------------------


def item_from(
    where: str, row: Mapping[str, Any], suite: Suite, open_pictures: OpenPictures
) -> Item | str:
    """Return the item of a row, or what is wrong with it, beginning with `where`."""
    columns = suite.columns
    try:
        options = _options(row.get("options"))
        if options and not suite.choices:
            asking = ", ".join(each.name for each in SUITES.values() if each.choices)
            raise _Unusable(f"options, which {suite.name} does not ask for; use {asking} for them")
        answers = _answers(_first(row, columns.answers + OWN.answers), options, suite)
        question = _first(row, columns.question + OWN.question)
        if question is not None and not isinstance(question, str):
            raise _Unusable("a question that is no text")
        pictures = [
            picture
            for name in dict.fromkeys(columns.pictures + OWN.pictures)
            if row.get(name) is not None
            for picture in open_pictures(name, row[name])
        ]
        if not pictures and not question:
            raise _Unusable("neither a picture nor a question")
    except _Unusable as error:
        return f"{where} has {error}"
    named = _first(row, columns.id + OWN.id)
    id = where.rpartition(":")[2] if named is None else str(named)
    return Item(id, question or "", answers, tuple(pictures), _kinds(row, columns), options)


class _Unusable(Exception):
    """What is wrong with a row: the words that follow "has"."""


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _answers(given: Any, options: tuple[str, ...], suite: Suite) -> tuple[str, ...]:
    """Return references: texts, numbers, or VQA's objects with an "answer".

    Blank ones are left out: every answer would be like them. A person who voted so stays one.
    """
    listed = given if isinstance(given, list | tuple) else [] if given is None else [given]
    texts = [each.get("answer") if isinstance(each, Mapping) else each for each in listed]
    if len(texts) == 1 and str(texts[0]).startswith("['"):  # MMMU's, written as Python does
        texts = list(_options(texts[0]) or texts)
    answers = tuple(str(text) for text in texts if isinstance(text, str | int | float))
    if not any(answer.strip() for answer in answers):
        raise _Unusable("no answer that is right; splits for submission have none")
    if not suite.votes:
        answers = tuple(answer for answer in answers if answer.strip())
    elif 1 < len(answers) <= ENOUGH:
        raise _Unusable(
            f"the answers of {len(answers)} people, of whom nobody can be fully right; "
            f"give one answer, or those of {ENOUGH + 1} people or more"
        )
    if options and not set(answers) <= set(LETTERS[: len(options)]):
        raise _Unusable("an answer that is no letter of its options")
    return answers


def _options(given: Any) -> tuple[str, ...]:
    """Return the options of a multiple choice; MMMU writes its list as Python does, in a text."""
    if isinstance(given, str):
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise _Unusable("options that are no list") from None
    if given is None or given == []:
        return ()
    if not isinstance(given, list) or not 2 <= len(given) <= len(LETTERS):
        raise _Unusable(f"options that are no list of 2 to {len(LETTERS)}")
    return tuple(str(each) for each in given)


def _kinds(row: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    given = _first(row, columns.kinds + OWN.kinds)
    if given is None and columns.kind_of is not None:
        given = columns.kind_of(row)
    listed = given if isinstance(given, list | tuple) else [given]
    named = [str(each) for each in listed if each not in (None, "")]
    return tuple(f"{kind} (kind)" if kind == ALL else kind for kind in named)


def _read_jsonl(path: Path, suite: Suite) -> Iterable[Item | str]:
    """Yield an item a line; paths of pictures count from the file's folder."""

    def open_pictures(_: str, named: Any) -> list[LazyPicture]:
        listed = named if isinstance(named, list) else [named]
        if not all(isinstance(each, str) for each in listed):
            raise _Unusable("a picture that is named by no path")
        return [PictureFile(path.parent / each) for each in listed]

    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path.name}:{number}"
                row = _parsed(line)
                if isinstance(row, dict):
                    yield item_from(where, row, suite, open_pictures)
                else:
                    yield f"{where} has no JSON object"
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise EvaluationError(
            f"The data {path.name!r} cannot be read: {why}. Check its path."
        ) from error


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


# --- the package datasets -------------------------------------------------------------------------


def _load(published: Published) -> Any:
    """Return a data set of the hub, downloaded by `datasets` into its own cache."""
    return _telling(
        published.name,
        lambda datasets: datasets.load_dataset(
            published.name, published.config, split=published.split
        ),
    )


def _load_folder(
    folder: Path, config: str | None, split: str
) -> tuple[Any, str | None, str | None]:
    """Return what `save_to_disk` wrote into `folder`, or the data files that lie in it.

    Then which configuration and split that is, None where the folder does not tell.
    """

    def load(datasets: Any) -> tuple[Any, str | None, str | None]:
        if (folder / "dataset_dict.json").exists():
            splits = datasets.load_from_disk(str(folder))
            if split not in splits:
                raise ValueError(f"it has the splits {', '.join(sorted(splits))}")
            return splits[split], None, split
        if (folder / "state.json").exists():
            whole = datasets.load_from_disk(str(folder))
            return whole, None, None if whole.split is None else str(whole.split)
        return datasets.load_dataset(str(folder), config, split=split), config, split

    return _telling(folder.name, load)


def _telling(name: str, load: Callable[[Any], Loaded]) -> Loaded:
    """Load with the package `datasets`, and tell what it says in one line."""
    try:
        datasets = datasets_package()
    except ImportError as error:
        raise EvaluationError(
            f"{name!r} is read with the package `datasets`. Install it: "
            "pip install 'gemma3vl-app[evaluate]'"
        ) from error
    known = (datasets.exceptions.DatasetsError, HfHubHTTPError, OSError, ValueError, RuntimeError)
    try:
        return load(datasets)
    except known as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise EvaluationError(f"The data set {name!r} cannot be read: {why}") from error


def _read_dataset(dataset: Any, suite: Suite, name: str) -> Iterable[Item | str]:
    """Yield an item a row; pictures stay encoded, and in the file, until they are asked about."""
    known = list(dataset.column_names)
    shown = [c for c in dict.fromkeys(suite.columns.pictures + OWN.pictures) if c in known]
    pictures = dataset.select_columns(shown)
    for column in shown:
        pictures = undecoded(pictures, column)
    held = {column: _pictures_of(pictures, column) for column in shown}
    texts = dataset.remove_columns(shown)
    names = {c: kind.int2str for c, kind in texts.features.items() if hasattr(kind, "int2str")}
    for number, row in enumerate(texts):
        told = {c: names[c](v) if c in names and v is not None else v for c, v in row.items()}
        told |= {column: lazy[number] for column, lazy in held.items()}
        yield item_from(f"{name}:{number}", told, suite, lambda _, lazy: lazy)


def _pictures_of(dataset: Any, column: str) -> list[list[LazyPicture]]:
    """Return the lazy pictures of each row: none, one, or a list of some; reads no picture."""
    compute = import_module("pyarrow.compute")  # comes with `datasets`
    found: list[list[LazyPicture]] = []
    for batch in dataset.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        cells = batch.column(column)
        is_list = hasattr(cells.type, "value_type")
        counts = compute.list_value_length(cells) if is_list else compute.is_valid(cells)
        for count in counts.to_pylist():
            row = len(found)
            indexes = range(count or 0) if is_list else [None] * count
            found.append([DatasetPicture(dataset, row, column, index) for index in indexes])
    return found


# --- scenes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    """A picture that was drawn, and is kept encoded."""

    picture: Picture

    def open(self) -> Picture:
        return self.picture


def _draw_scenes(limit: int | None) -> Data:
    """Draw scenes of all kinds in turns; without the fonts for words to read, without these."""
    kinds, notes = list(scenes.KINDS), []
    try:
        next(scenes.items("read"))
    except TrainingError as error:
        kinds.remove("read")
        notes.append(f"The kind 'read' is left out. {error}")
        logger.warning(notes[0])
    wanted = SCENES_OF_A_KIND * len(kinds) if limit is None else limit
    made = {kind: scenes.items(kind) for kind in kinds}
    in_turns = ((kind, number) for number in range(wanted) for kind in kinds)
    items = []
    for kind, number in islice(in_turns, wanted):
        drawn = next(made[kind])
        pictures = tuple(_Drawn(picture) for picture in drawn.pictures)
        answers = (drawn.turn.answer,)
        items.append(Item(f"{kind}-{number}", drawn.turn.question, answers, pictures, (kind,)))
    digest = hashlib.sha256(f"scenes 1 {kinds}".encode()).hexdigest()
    return Data("scenes", tuple(items), digest, tuple(notes))
