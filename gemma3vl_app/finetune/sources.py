"""Where training data lie: a JSON lines file, a folder of pictures and texts, the hub.

Each reader returns an `Example` or a `Problem` for every item, in the order of the source; nothing
is checked here but how an item is written, and no picture is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from gemma3vl_app.errors import PictureError, TrainingDataError
from gemma3vl_app.finetune.examples import (
    Example,
    LazyPicture,
    PictureFile,
    Problem,
    example_from,
)
from gemma3vl_app.folders.find import find_pictures
from gemma3vl_app.pictures import Picture

Items = list[Example | Problem]

COLUMNS = ("picture", "question", "answer", "messages")


def read_items(
    data: str, *, columns: Mapping[str, str], split: str = "train", question: str = ""
) -> Items:
    """Read all items of `data`: a .jsonl file, a folder, or the name of a data set on the hub.

    `columns` and `split` are for the hub, `question` is asked where an item has none. Raises
    `TrainingDataError` where there is nothing to read.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        items = read_folder(path, question)
    elif path.is_file() or path.suffix in (".jsonl", ".json"):
        items = read_jsonl(path, question)
    elif data:
        items = read_hub(data, columns, split, question)
    else:
        raise TrainingDataError("The recipe names no data. Set data=FILE.jsonl or data=FOLDER.")
    if not items:
        raise TrainingDataError(f"There is nothing to learn from in {path.name!r}: it is empty.")
    return items


def read_jsonl(path: Path, question: str = "") -> Items:
    """Read a file with an item a line; paths of pictures count from the file's folder."""

    def open_picture(named: Any) -> LazyPicture:
        return PictureFile(path.parent / named)

    items: Items = []
    try:
        with path.open(encoding="utf-8") as lines:
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
            answer = picture.with_suffix(".txt").read_text(encoding="utf-8")
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


@dataclass(frozen=True)
class DatasetPicture:
    """The picture of a row, or the one at `index` of a list of them."""

    dataset: Any
    row: int
    column: str
    index: int | None = None

    def open(self) -> Picture:
        """Read the row and return its picture; raises `PictureError`."""
        value = self.dataset[self.row][self.column]
        if self.index is not None and isinstance(value, list):
            value = value[self.index] if self.index < len(value) else None
        if isinstance(value, Mapping):  # what `datasets.Image(decode=False)` gives
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise PictureError(f"Row {self.row} has no picture in column {self.column!r}.")
        return Picture.open(value, name=f"row {self.row}")


def read_hub(name: str, columns: Mapping[str, str], split: str, question: str = "") -> Items:
    """Read a data set of the hub, or of a folder that `datasets` saved, through a column map.

    `columns` says which column is the picture, question and answer, or the messages.
    """
    dataset = _load_dataset(name, split)
    known = set(dataset.column_names)
    columns = columns or {each: each for each in COLUMNS if each in known}
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
    pictures = None if picture is None else _undecoded(dataset.select_columns([picture]), picture)
    items: Items = []
    for row in range(len(dataset)):
        values = texts[row]
        item = {role: values[c] for role, c in columns.items() if role != "picture"}
        if pictures is not None and picture is not None:
            whole = DatasetPicture(pictures, row, picture)
            if "messages" in item:
                item["images"] = _one_a_place(item["messages"], whole)
            else:
                item["picture"] = whole
        items.append(example_from(f"{name}:{row}", item, _as_it_is, question))
    return items


def _load_dataset(name: str, split: str) -> Any:
    try:
        datasets = _datasets()
    except ImportError as error:
        raise TrainingDataError(
            f"{name!r} is neither a file nor a folder here. To read it from the hub, install the "
            "package `datasets`: pip install 'gemma3vl-app[train]'."
        ) from error
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError) as error:  # datasets has no error class of its own for these
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise TrainingDataError(
            f"The data set {name!r} (split {split!r}) cannot be read: {why}"
        ) from error


def _undecoded(dataset: Any, column: str) -> Any:
    """Return the data set with pictures as encoded bytes, which `Picture` decodes itself."""
    image_kind = _datasets().Image
    if isinstance(dataset.features[column], image_kind):
        return dataset.cast_column(column, image_kind(decode=False))
    return dataset


def _datasets() -> Any:
    """Return the module `datasets`, which is an optional extra and has no types."""
    return import_module("datasets")


def _one_a_place(messages: Any, picture: DatasetPicture) -> list[DatasetPicture]:
    """Return a lazy picture for each place in the messages: the rows' lists are not read yet."""
    contents = [each.get("content") for each in messages if isinstance(each, Mapping)]
    parts = [part for each in contents if isinstance(each, list) for part in each]
    places = sum(1 for part in parts if isinstance(part, Mapping) and part.get("type") == "image")
    return [
        DatasetPicture(picture.dataset, picture.row, picture.column, index)
        for index in range(places)
    ]


def _as_it_is(named: Any) -> LazyPicture:
    if not isinstance(named, DatasetPicture):
        raise TypeError("no picture of this data set")
    return cast(LazyPicture, named)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
