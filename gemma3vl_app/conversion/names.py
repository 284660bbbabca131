"""What each format calls a weight: one table per format, read in both directions.

A row pairs names in memory (those of transformers 5) with the name in the file. `{layer}` stands
for a layer's number, `{part}` for `weight` or `bias`. Several names in memory are one joined tensor
in the file. None in memory: dropped on purpose. What is in no row is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from gemma3vl_app.conversion.layouts import ROWS, SAME, TRANSPOSED, Joined, Layout, Piece, Shape
from gemma3vl_app.errors import ConversionError
from gemma3vl_app.loading.conversion import Stored

PLACES = {"layer": r"\d+", "part": "weight|bias"}


@dataclass(frozen=True)
class Row:
    """Weights in memory (None: dropped on purpose), and the tensor that a file holds for them."""

    memory: tuple[str, ...] | None
    file: str
    layout: Layout = SAME


@dataclass(frozen=True)
class NameTable:
    """All names of a format: `rows` are written and read, `also_read` are other ways to say it."""

    title: str
    rows: tuple[Row, ...]
    also_read: tuple[Row, ...] = ()


# --- the rows that formats of transformers' kind share, below their prefixes ---

ATTENTION = ("q_proj", "k_proj", "v_proj")
GATES = ("gate_proj", "up_proj")
TEXT = (
    "embed_tokens.weight",
    "norm.weight",
    *(f"layers.{{layer}}.self_attn.{each}.weight" for each in (*ATTENTION, "o_proj")),
    *(f"layers.{{layer}}.self_attn.{each}.weight" for each in ("q_norm", "k_norm")),
    *(f"layers.{{layer}}.mlp.{each}.weight" for each in (*GATES, "down_proj")),
    "layers.{layer}.input_layernorm.weight",
    "layers.{layer}.post_attention_layernorm.weight",
    "layers.{layer}.pre_feedforward_layernorm.weight",
    "layers.{layer}.post_feedforward_layernorm.weight",
)
TEXT_JOINED = (  # how servers join matrices that are multiplied with the same input
    ("layers.{layer}.self_attn.", ATTENTION, "qkv_proj"),
    ("layers.{layer}.mlp.", GATES, "gate_up_proj"),
)
TOWER = (
    "embeddings.patch_embedding.{part}",
    "embeddings.position_embedding.weight",
    "post_layernorm.{part}",
    *(f"encoder.layers.{{layer}}.layer_norm{n}.{{part}}" for n in (1, 2)),
    *(f"encoder.layers.{{layer}}.self_attn.{each}.{{part}}" for each in (*ATTENTION, "out_proj")),
    *(f"encoder.layers.{{layer}}.mlp.fc{n}.{{part}}" for n in (1, 2)),
)
PROJECTOR = ("mm_input_projection_weight", "mm_soft_emb_norm.weight")
PROJECTION = PROJECTOR[0]  # (vision width, text width) in memory

MEMORY_TEXT, MEMORY_TEXT_ONLY = "model.language_model.", "model."
MEMORY_TOWER, MEMORY_PROJECTOR = "model.vision_tower.", "model.multi_modal_projector."


def _same(memory_prefix: str, file_prefix: str, names: tuple[str, ...]) -> tuple[Row, ...]:
    return tuple(Row((memory_prefix + name,), file_prefix + name) for name in names)


def _also_read(memory_text: str, text: str, head: str, tower: str) -> tuple[Row, ...]:
    """Return rows for files of other programs: joined matrices, repeated and computed values."""
    joined = tuple(
        Row(tuple(f"{memory_text}{place}{part}.weight" for part in parts),
            f"{text}{place}{whole}.weight", ROWS)
        for place, parts, whole in TEXT_JOINED
    )  # fmt: skip
    dropped = (
        head,  # the embeddings again, which opening has made sure of
        text + "layers.{layer}.self_attn.rotary_emb.inv_freq",  # computed from the config
        *((tower + "embeddings.position_ids",) if tower else ()),  # 0, 1, 2, ...
    )
    return joined + tuple(Row(None, name) for name in dropped)


def _table(title: str, text: str, head: str, tower: str, projector: str) -> NameTable:
    """Return the table of a format that differs from memory in its prefixes only.

    The text-only class has one set of names everywhere.
    """
    rows = (
        *_same(MEMORY_TEXT, text, TEXT),
        *_same(MEMORY_TOWER, tower, TOWER),
        *_same(MEMORY_PROJECTOR, projector, PROJECTOR),
        *_same(MEMORY_TEXT_ONLY, MEMORY_TEXT_ONLY, TEXT),
    )
    as_linear = Row(  # a layer's matrix has its outputs first
        (MEMORY_PROJECTOR + PROJECTION,), f"{projector}mm_input_projection.weight", TRANSPOSED
    )
    also_read = (
        *_also_read(MEMORY_TEXT, text, head, tower),
        as_linear,
        *_also_read(MEMORY_TEXT_ONLY, MEMORY_TEXT_ONLY, "lm_head.weight", ""),
    )
    return NameTable(title, rows, tuple(dict.fromkeys(also_read)))


HUB = _table(
    "the hub's names",
    text="language_model.model.",
    head="language_model.lm_head.weight",
    tower="vision_tower.vision_model.",
    projector="multi_modal_projector.",
)
TRANSFORMERS5 = _table(
    "transformers 5's names",
    text=MEMORY_TEXT,
    head="lm_head.weight",
    tower=MEMORY_TOWER,
    projector=MEMORY_PROJECTOR,
)
# What save_pretrained of transformers 5 writes for a model that was not read from the hub's names
TRANSFORMERS5_SAVED = _table(
    "names as transformers 5 saves them",
    text="language_model.model.",
    head="language_model.lm_head.weight",
    tower="vision_tower.",
    projector="multi_modal_projector.",
)
# In memory from transformers 4.52 on, until 5 left `vision_model` out
TRANSFORMERS4 = _table(
    "transformers 4's names",
    text=MEMORY_TEXT,
    head="lm_head.weight",
    tower=MEMORY_TOWER + "vision_model.",
    projector=MEMORY_PROJECTOR,
)
READABLE = (HUB, TRANSFORMERS5, TRANSFORMERS5_SAVED, TRANSFORMERS4)


# --- both directions ---


def to_file(tensors: Mapping[str, Stored], table: NameTable) -> dict[str, Stored]:
    """Return tensors by their names in a file of `table`, joined where it joins them.

    `tensors` have their names in memory; the order stays. Raises `ConversionError` for one that the
    format has no name for, or whose partners are missing.
    """
    found: dict[str, Stored] = {}
    for name in tensors:
        row, places = _row_of_memory(name, table)
        members = tuple(_filled(each, places) for each in row.memory or ())
        key = _filled(row.file, places)
        if key in found:
            continue
        if missing := [each for each in members if each not in tensors]:
            raise ConversionError(
                f"{missing[0]} is missing, which is joined with {name}. "
                "Copy the model again from where it came from."
            )
        weights = tuple(tensors[each] for each in members)
        found[key] = weights[0] if row.layout == SAME else Joined(weights, row.layout)
    return found


def to_memory(
    stored: Mapping[str, Stored], table: NameTable, shapes: Mapping[str, Shape], name: str
) -> dict[str, Stored]:
    """Return tensors of a file by their names in memory, split where they are joined.

    `shapes` are those that the model has in memory, by name, and say the order. Raises
    `ConversionError` for a key that is in no row, for a weight that is missing, comes twice or has
    another shape; `name` is the model's, for messages.
    """
    found: dict[str, Stored] = {}
    for key, whole in stored.items():
        row, places = _row_of_file(key, table, name)
        members = tuple(_filled(each, places) for each in row.memory or ())
        if unknown := [each for each in members if each not in shapes]:
            raise ConversionError(
                f"{name!r} holds {ascii(key)[:80]}, but by its config.json it has no {unknown[0]}. "
                "The two do not belong together: copy the model again."
            )
        sizes = tuple(shapes[each] for each in members)
        for index, member in enumerate(members):
            if member in found:
                raise ConversionError(
                    f"{name!r} holds {member} twice, under two names. Keep one set of files."
                )
            layout = _layout_in_file(row, whole, sizes, key, name)
            is_same = layout == SAME
            found[member] = whole if is_same else Piece(whole, layout, sizes, index)
    if missing := [each for each in shapes if each not in found]:
        raise ConversionError(f"{name!r} lacks weights: {missing[0]}. Copy it again.")
    return {each: found[each] for each in shapes}


def knows(key: str, table: NameTable) -> bool:
    """Whether a key of a file is in a row of the table, to be kept or dropped."""
    return any(_matched(row.file, key) is not None for row in (*table.rows, *table.also_read))


def _layout_in_file(
    row: Row, whole: Stored, sizes: tuple[Shape, ...], key: str, name: str
) -> Layout:
    """Return the row's layout, or for a projection that somebody has transposed, the other one."""
    if tuple(whole.shape) == tuple(row.layout.joined_shape(sizes)):
        return row.layout
    if key.endswith(PROJECTION) and tuple(whole.shape) == sizes[0][::-1]:
        return TRANSPOSED
    wanted = " x ".join(map(str, row.layout.joined_shape(sizes)))
    raise ConversionError(
        f"{ascii(key)[:80]} of {name!r} is {' x '.join(map(str, whole.shape))}, and config.json "
        f"makes it {wanted}. The two do not belong together: copy the model again."
    )


def _row_of_memory(name: str, table: NameTable) -> tuple[Row, dict[str, str]]:
    for row in table.rows:
        for pattern in row.memory or ():
            if (places := _matched(pattern, name)) is not None:
                return row, places
    raise ConversionError(
        f"{ascii(name)[:80]} has no name among {table.title}. "
        "This is another kind of model than Gemma 3."
    )


def _row_of_file(key: str, table: NameTable, name: str) -> tuple[Row, dict[str, str]]:
    for row in (*table.rows, *table.also_read):
        if (places := _matched(row.file, key)) is not None:
            return row, places
    raise ConversionError(
        f"{name!r} holds {ascii(key)[:80]}, which is not among {table.title}. "
        "It is another kind of model, or was saved with something added: remove that first."
    )


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", pattern)
    return re.compile("".join(_pieces(pieces)))


def _pieces(pieces: list[str]) -> Iterator[str]:
    for number, piece in enumerate(pieces):
        yield f"(?P<{piece}>{PLACES[piece]})" if number % 2 else re.escape(piece)


def _matched(pattern: str, name: str) -> dict[str, str] | None:
    found = _expression(pattern).fullmatch(name)
    return None if found is None else found.groupdict()


def _filled(pattern: str, places: Mapping[str, str]) -> str:
    return pattern.format(**places)
