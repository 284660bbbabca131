"""Where training data lie: a JSON lines file, a folder of pictures and texts, the hub.

Each reader returns an `Example` or a `Problem` for every item, in the order of the source; nothing
is checked here but how an item is written, and no picture is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import HfHubHTTPError

from gemma3vl_app.errors import PictureError, TrainingDataError
from gemma3vl_app.finetune.examples import Example, Problem, example_from
from gemma3vl_app.finetune.recipe import COLUMN_ROLES
from gemma3vl_app.folders.find import find_pictures
from gemma3vl_app.lazy_pictures import (
    DatasetPicture,
    LazyPicture,
    PictureFile,
    datasets_package,
    undecoded,
)

Items = list[Example | Problem]

UTF8 = "utf-8-sig"  # UTF-8, with the mark in front that editors on Windows write or without


def read_items(
    data: str,
    *,
    columns: Mapping[str, str],
    split: str = "train",
    config: str | None = None,
    question: str = "",
) -> Items:
    """Read all items of `data`: a .jsonl file, a folder, or the name of a data set on the hub.

    `columns`, `split` and `config` are for the hub, `question` is asked where an item has none.
    Raises `TrainingDataError` where there is nothing to read.
    """
    path = Path(data).expanduser()
    if not data:
        raise TrainingDataError("The recipe names no data. Set `data=FILE.jsonl` or `data=FOLDER`.")
    if not is_local(data):
        items = read_hub(data, columns, split, question, config)
    elif path.is_dir():
        items = read_folder(path, question)
    else:
        items = read_jsonl(path, question)
    if not items:
        raise TrainingDataError(f"There is nothing to learn from in {path.name!r}: it is empty.")
    return items


def is_local(data: str) -> bool:
    """Tell whether `data` is a folder or a file here, not a name of the hub."""
    path = Path(data).expanduser()
    return path.exists() or path.suffix in (".jsonl", ".json")


def read_jsonl(path: Path, question: str = "") -> Items:
    """Read a file with an item a line; paths of pictures count from the file's folder."""

    def open_picture(named: Any) -> LazyPicture:
        return PictureFile(path.parent / named)

    items: Items = []
    try:
        with path.open(encoding=UTF8) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path.name}:{number}"
                item = _parsed(line)
                if isinstance(item, dict):
                    items.append(example_from(where, item, open_picture, question))
                else:
                    items.append(Problem(where, "no JSON object"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise TrainingDataError(
            f"The data {path.name!r} cannot be read: {why}. Check its path."
        ) from error
    return items


def read_folder(folder: Path, question: str = "") -> Items:
    """Read pictures with a text of the same name beside each: a.jpg and a.txt, at any depth."""
    try:
        found = find_pictures(folder, recursive=True)
    except PictureError as error:
        raise TrainingDataError(str(error)) from error
    items: Items = []
    for name in found.names:
        where = f"{folder.name}/{name}"
        picture = found.path(name)
        try:
            answer = picture.with_suffix(".txt").read_text(encoding=UTF8)
        except FileNotFoundError:
            items.append(Problem(where, "no text beside its picture"))
            continue
        except (OSError, UnicodeDecodeError):
            items.append(Problem(where, "a text that cannot be read"))
            continue
        item = {"picture": picture, "answer": answer}
        items.append(example_from(where, item, PictureFile, question))
    return items


# --- the hub --------------------------------------------------------------------------------------


def read_hub(
    name: str,
    columns: Mapping[str, str],
    split: str,
    question: str = "",
    config: str | None = None,
) -> Items:
    """Read a data set of the hub through a column map.

    `columns` says which column is the picture, question and answer, or the messages; `config`
    which of the data set's configurations is meant, where it has several.
    """
    dataset = _load_dataset(name, config, split)
    known = set(dataset.column_names)
    columns = columns or {each: each for each in COLUMN_ROLES if each in known}
    if unknown := [each for each in columns.values() if each not in known]:
        raise TrainingDataError(
            f"The data set {name!r} has no column {unknown[0]!r}; it has {', '.join(sorted(known))}"
            ". Set `columns` to what is the picture, question and answer, or the messages."
        )
    if "messages" not in columns and "answer" not in columns:
        raise TrainingDataError(
            f"Nothing says which column of {name!r} is the answer; it has "
            f"{', '.join(sorted(known))}. Set columns.answer, or columns.messages."
        )
    picture = columns.get("picture")
    texts = dataset.select_columns([c for role, c in columns.items() if role != "picture"])
    pictures = None if picture is None else undecoded(dataset.select_columns([picture]), picture)
    items: Items = []
    for row in range(len(dataset)):
        values = texts[row]
        item = {role: values[c] for role, c in columns.items() if role != "picture"}
        where = f"{name}:{row}"
        if picture is not None:
            found = _pictures_of(pictures, row, picture)
            if not found and "messages" not in item:
                items.append(Problem(where, "a row without a picture"))
                continue
            item["images" if "messages" in item else "picture"] = found
        items.append(example_from(where, item, _as_it_is, question))
    return items


def _load_dataset(name: str, config: str | None, split: str) -> Any:
    try:
        datasets = datasets_package()
    except ImportError as error:
        raise TrainingDataError(
            f"{name!r} is neither a file nor a folder here. To read it from the hub, install the "
            "package `datasets`: pip install 'gemma3vl-app[train]'."
        ) from error
    # What it raises itself, for a wrong split or name, without a network, for old script sets
    known = (datasets.exceptions.DatasetsError, HfHubHTTPError, OSError, ValueError, RuntimeError)
    try:
        return datasets.load_dataset(name, config, split=split)
    except known as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise TrainingDataError(
            f"The data set {name!r} (split {split!r}) cannot be read: {why}"
        ) from error


def _pictures_of(dataset: Any, row: int, column: str) -> list[DatasetPicture]:
    """Return a lazy picture for each that a row has: none, one, or a list of some."""
    value = dataset[row][column]
    if isinstance(value, list):
        return [DatasetPicture(dataset, row, column, index) for index in range(len(value))]
    return [] if value is None else [DatasetPicture(dataset, row, column)]


def _as_it_is(named: Any) -> LazyPicture:
    if not isinstance(named, DatasetPicture):
        raise TypeError("no picture of this data set")
    return cast(LazyPicture, named)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
