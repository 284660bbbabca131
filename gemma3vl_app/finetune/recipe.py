"""A recipe: what is fine-tuned, on what, and how; as YAML, or from Python."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

from gemma3vl_app import catalog
from gemma3vl_app.errors import LoadError, RecipeError
from gemma3vl_app.finetune.recipe_file import read_scalar, read_yaml
from gemma3vl_app.planning.architecture import Architecture, architecture
from gemma3vl_app.planning.sources import described

Method = Literal["sft", "lora", "dora", "qlora"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The fields of a recipe; a YAML file states those that differ from its `parent`.

    Attributes:
        model: a name of the catalog, a hub id, or a folder.
        revision: a branch, tag or commit on the hub.
        method: sft trains the weights themselves; lora, dora and qlora train an adapter beside
            them, qlora over weights in 4 bits (nf4).
        train_language_model: whether the language model learns.
        train_vision_tower: whether the vision tower learns.
        train_projector: whether the projector between them learns.
        lora_rank: r of the adapter.
        lora_alpha: the adapter's product counts alpha / r times.
        lora_dropout: the part of the adapter's inputs that is dropped while training.
        data: a .jsonl of conversations, a folder of pictures with a text beside each, or a
            data set of the hub.
        data_config: which configuration of `data`, a set of the hub that has several; another
            `eval_data` is read in its own default.
        columns: for a data set of the hub, which column is what: picture, question, answer, or
            messages.
        split: the part of a data set of the hub that is trained on.
        question: what is asked about each picture of a folder.
        eval_data: data to evaluate on; or None, see `eval_split` and `eval_fraction`.
        eval_split: the part of a data set of the hub that is evaluated on: of `eval_data`, or of
            `data` where that is None.
        eval_fraction: the part of `data` that is kept for evaluation where neither is stated.
        bad_items: refuse to train where items are unusable, or skip them.
        max_tokens: the longest conversation in tokens, pictures included; longer ones are bad.
        epochs: how often all data are seen.
        max_steps: ends the training earlier, or later, than `epochs`.
        global_batch: conversations per optimizer step, over all GPUs.
        micro_batch: conversations that one GPU computes at once.
        learning_rate: the highest one.
        schedule: how it falls after the warm-up.
        warmup_ratio: the part of the steps in which it rises.
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
        precision: arithmetic; auto takes bf16 where the machine computes it fast.
        gradient_checkpointing: compute activations twice to keep fewer.
        gpus: how many the recipe is made for.
        sharding: none keeps a whole copy on each GPU (DDP), fsdp shares it out (FSDP2).
        eval_every: optimizer steps between evaluations.
        save_every: optimizer steps between checkpoints, from which an ended training goes on.
        patience: evaluations without a better loss after which training stops, 0 for never; with
            it, checkpoints are written where evaluations are, and `save_every` is not used.
        seed: decides the order of the data, the adapter's start and dropout.
        out: the folder that gets checkpoints and the result.
    """

    model: str = "4b-it"
    revision: str | None = None
    method: Method = "lora"
    train_language_model: bool = True
    train_vision_tower: bool = False
    train_projector: bool = False
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    data: str = ""
    data_config: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str = "train"
    question: str = ""
    eval_data: str | None = None
    eval_split: str | None = None
    eval_fraction: float = 0.05
    bad_items: Literal["refuse", "skip"] = "refuse"
    max_tokens: int = 4096
    epochs: float = 1.0
    max_steps: int | None = None
    global_batch: int = 32
    micro_batch: int = 1
    learning_rate: float = 2e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = True
    gpus: int = 1
    sharding: Literal["none", "fsdp"] = "none"
    eval_every: int = 100
    save_every: int = 100
    patience: int = 0
    seed: int = 0
    out: str = "runs/finetune"


SHIPPED = Path(__file__).parent / "recipes"
PARENT = "parent"
FILE_ENDINGS = (".yaml", ".yml")
COLUMN_ROLES = ("picture", "question", "answer", "messages")
ADAPTER_FIELDS = ("lora_rank", "lora_alpha", "lora_dropout")

_AT_LEAST_ONE = (
    *("lora_rank", "lora_alpha", "max_tokens", "max_steps", "global_batch", "micro_batch"),
    *("gpus", "eval_every", "save_every"),
)
_ABOVE_ZERO = ("epochs", "learning_rate", "max_grad_norm")
_NOT_NEGATIVE = ("weight_decay", "patience", "seed")
_BELOW_ONE = ("lora_dropout", "eval_fraction", "warmup_ratio")


def shipped_recipes() -> tuple[str, ...]:
    """Return the names of the recipes that come with this package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def read_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe with its parents, and change it by `key=value` overrides.

    A name that ends in .yaml is a file, and so is such a `parent`, beside the file that names it;
    other names are shipped recipes. Raises `RecipeError` in one line for what is unknown, of the
    wrong type, or contradicts itself, and `LoadError` for a model that does not exist.
    """
    levels = [*_with_parents(str(name_or_path)), _Level("the command line", _split(overrides))]
    values: dict[str, Any] = {}
    stated: dict[str, int] = {}  # the nearest level that states a field
    for number, level in enumerate(levels):
        for key, value in level.values.items():
            values[key] = _checked(key, value, level.source)
            stated[key] = number
    recipe = Recipe(**values)
    check_recipe(recipe)
    for contradiction in _stated_contradictions(recipe, stated):
        raise RecipeError(contradiction)
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Raise `RecipeError` for values that make no sense, each alone or together."""
    for name in _AT_LEAST_ONE:
        _hold(recipe, name, lambda value: value >= 1, "at least 1")
    for name in _ABOVE_ZERO:
        _hold(recipe, name, lambda value: 0 < value < math.inf, "above 0")
    for name in _NOT_NEGATIVE:
        _hold(recipe, name, lambda value: 0 <= value < math.inf, "at least 0")
    for name in _BELOW_ONE:
        _hold(recipe, name, lambda value: 0 <= value < 1, "at least 0 and below 1")
    for contradiction in _contradictions(recipe):
        raise RecipeError(contradiction)


# --- files to levels ---


@dataclass(frozen=True)
class _Level:
    """What one file, or the command line, states; `source` is how messages call it."""

    source: str
    values: Mapping[str, Any]


def _with_parents(name: str) -> list[_Level]:
    """Return a recipe's levels, the furthest parent first."""
    levels: list[_Level] = []
    path, seen = _path(name, Path()), set[Path]()
    while True:
        if path.resolve() in seen:
            raise RecipeError(f"{path.name} is its own parent. Let the first recipe have none.")
        seen.add(path.resolve())
        values = read_yaml(path)
        parent = values.pop(PARENT, None)
        levels.insert(0, _Level(path.name, values))
        if parent is None:
            return levels
        if not isinstance(parent, str):
            raise RecipeError(f"{PARENT} is {_short(parent)} in {path.name}; it must be a name.")
        path = _path(parent, path.parent)


def _path(name: str, folder: Path) -> Path:
    """Return the file of a recipe; `folder` is where paths begin."""
    if name.endswith(FILE_ENDINGS):
        path = folder / Path(name).expanduser()
        if not path.is_file():
            raise RecipeError(f"There is no recipe file {path.name!r}. Give its path.")
        return path
    if name not in shipped_recipes():
        raise RecipeError(
            f"There is no recipe {name[:80]!r}.{_nearest(name, shipped_recipes())} "
            "`gemma3vl finetune --list` shows all; a file of yours ends in .yaml."
        )
    return SHIPPED / f"{name}.yaml"


def _split(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the values of `key=value` words; a later one for the same key counts."""
    found: dict[str, Any] = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals:
            raise RecipeError(f"{word[:80]!r} changes nothing: write key=value, as in epochs=2.")
        # A text is taken as it stands: a question may look like a number, or like YAML.
        is_text = _types().get(key) in (str, str | None) and text != "null"
        found[key] = (
            text if is_text else _column_map(text) if key == "columns" else read_scalar(text)
        )
    return found


def _column_map(text: str) -> dict[str, str]:
    """Return columns written as picture:image,answer:caption."""
    pairs = [part.partition(":") for part in text.split(",") if part]
    return {name.strip(): column.strip() for name, _, column in pairs}


# --- values ---


@cache
def _types() -> dict[str, Any]:
    return {each.name: get_type_hints(Recipe)[each.name] for each in fields(Recipe)}


def _checked(key: str, value: Any, source: str) -> Any:
    """Return the value if the field exists and is of this type."""
    from pydantic import TypeAdapter, ValidationError

    if key not in _types():
        raise RecipeError(
            f"{source} states {key[:80]!r}, which no recipe has.{_nearest(key, list(_types()))}"
        )
    try:
        return TypeAdapter(_types()[key]).validate_python(value, strict=True)
    except ValidationError as error:
        wanted = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise RecipeError(f"{key} is {_short(value)} in {source}; it must be {wanted}.") from error


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _hold(recipe: Recipe, name: str, holds: Any, wanted: str) -> None:
    value = getattr(recipe, name)
    if value is not None and not holds(value):
        raise RecipeError(f"{name} is {value}; it must be {wanted}.")


# --- contradictions ---


def _contradictions(recipe: Recipe) -> Iterator[str]:
    adapter = recipe.method != "sft"
    if not (recipe.train_language_model or recipe.train_vision_tower or recipe.train_projector):
        yield (
            "train_language_model, train_vision_tower and train_projector are all false: "
            "nothing would learn. Set one to true."
        )
    at_once = recipe.micro_batch * recipe.gpus
    if recipe.global_batch % at_once:
        yield (
            f"global_batch {recipe.global_batch} cannot be shared out: it must be a multiple of "
            f"micro_batch x gpus, {recipe.micro_batch} x {recipe.gpus} = {at_once}."
        )
    if recipe.sharding == "fsdp" and recipe.gpus == 1:
        yield "sharding is fsdp and gpus is 1: there is nothing to share out. Use sharding: none."
    if recipe.sharding == "fsdp" and recipe.method == "qlora":
        yield (
            "method is qlora and sharding is fsdp: 4-bit weights are not shared out, so each GPU "
            "would hold all of them. Use sharding: none, or method: lora."
        )
    if recipe.sharding == "fsdp" and recipe.gradient_checkpointing and recipe.lora_dropout:
        yield (
            f"lora_dropout is {recipe.lora_dropout} and gradient_checkpointing is true: with "
            "sharding: fsdp, what is computed twice would drop other inputs the second time. "
            "Leave one out."
        )
    yield from _data_contradictions(recipe)
    if adapter and recipe.train_projector:
        yield (
            f"method is {recipe.method} and train_projector is true: the projector has no linear "
            "layer for an adapter. Use method: sft, or train_projector: false."
        )
    found = _known_architecture(recipe.model)
    if found is None:
        return
    name, model = found
    if recipe.max_tokens > model.context_tokens:
        yield (
            f"max_tokens is {recipe.max_tokens:,}, and {name} was made for "
            f"{model.context_tokens:,} tokens. Ask for fewer."
        )
    if model.vision is None and (recipe.train_vision_tower or recipe.train_projector):
        yield f"{name} has no vision tower and no projector to train: it is text only."


def _data_contradictions(recipe: Recipe) -> Iterator[str]:
    if unknown := [role for role in recipe.columns if role not in COLUMN_ROLES]:
        yield (
            f"columns names {unknown[0][:80]!r}, and a column can be {', '.join(COLUMN_ROLES)}."
            f"{_nearest(unknown[0], COLUMN_ROLES)} Write columns=picture:image,answer:caption."
        )
    if "messages" in recipe.columns and {"question", "answer"} & set(recipe.columns):
        yield (
            "columns names messages, which hold questions and answers, and one for either. "
            "Leave one out."
        )
    evaluated = (recipe.eval_data or recipe.data, recipe.eval_split or recipe.split)
    apart = recipe.eval_data is not None or recipe.eval_split is not None
    if apart and recipe.data and evaluated == (recipe.data, recipe.split):
        yield (
            "What is evaluated is what is trained on: the same data, and the same split. "
            "State another eval_data or eval_split, or an eval_fraction alone."
        )
    if recipe.patience and not apart and not recipe.eval_fraction:
        yield (
            f"patience is {recipe.patience} and nothing is evaluated. "
            "State eval_data, eval_split or an eval_fraction above 0."
        )


def _stated_contradictions(recipe: Recipe, stated: Mapping[str, int]) -> Iterator[str]:
    """Yield what contradicts only because somebody wrote it down: defaults do not.

    What a parent states may be made idle by a recipe below it, not the other way round.
    """
    for name in ADAPTER_FIELDS if recipe.method == "sft" else ():
        if stated.get(name, -1) >= stated["method"]:
            yield f"{name} is stated and method is sft, which has no adapter. Leave one out."
    for name in ("eval_data", "eval_split"):
        if getattr(recipe, name) is not None and stated.get("eval_fraction", -1) >= stated[name]:
            yield (
                f"{name} and eval_fraction are both stated. Leave eval_fraction out: what is "
                f"evaluated comes from {name}."
            )


def _known_architecture(model: str) -> tuple[str, Architecture] | None:
    """Return a model's name and sizes if they are known without a download; a wrong name raises."""
    catalog.check_source(model)
    try:
        name, config, _ = described(model)
        return name, architecture(config)
    except LoadError:  # on the hub, or a GGUF file: loading will say
        return None
