"""What `gemma3vl verify` shows on a terminal: tables, and what they come to in a sentence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from gemma3vl_app.plain import plain

if TYPE_CHECKING:
    from gemma3vl_app.faithfulness.path_results import PathResult, PathsVerification
    from gemma3vl_app.faithfulness.results import (
        Agreement,
        Compared,
        Deep,
        Spot,
        Verification,
    )

_FIGURES = ("places", "difference", "mean KL", "max KL", "same top-1", "near ties")
_LONG_HEADINGS = ("same top-1", "near ties", "own pass")  # two lines, so that 80 columns do
_MOST_WEIGHTS = 10
_BEGINS = {
    "nowhere": "Picture features and language model are the same.",
    "picture features": "The difference begins in the picture features: tower or projector.",
    "language model": "The difference begins in the language model; picture features are the same.",
    "both": "Picture features and language model differ, each by itself.",
}


def two_report(found: Verification) -> Iterator[Table | Text]:
    """Yield what was found about two models."""
    yield _line(f"A: {_model(found.a)}")
    yield _line(f"B: {_model(found.b)}")
    table = _table("prompt", "crops", *_FIGURES, "features")
    for each in found.prompts:
        cells = (each.name, each.crops, *_figures(each.agreement))
        table.add_row(*map(_cell, (*cells, _number(each.features_error))))
    table.add_section()
    table.add_row(*map(_cell, ("all", "", *_figures(found.total), "")))
    yield table
    for note in found.notes:
        yield _line(note)
    if found.total.worst is not None:
        yield _line(_worst(found.total.worst))
    no_pictures = all(each.features_error is None for each in found.prompts)
    if found.begins != "nowhere" or not no_pictures:
        yield _line(_BEGINS[found.begins])
    if found.deep is not None:
        yield from _deep(found.deep)
    if found.within:
        yield _line(f"Every bound holds: {found.bounds}.")


def paths_report(found: PathsVerification) -> Iterator[Table | Text]:
    """Yield what was found about a model's forms and paths."""
    yield _line(f"Reference: {_model(found.reference)}, by transformers")
    yield _line(f"Chosen by itself on this machine: {found.chosen}")
    for weights, results in itertools.groupby(found.results, key=lambda each: each.weights):
        yield from _form(weights, list(results))
    yield _line("")
    own_bounds = {each.own_bounds: None for each in found.results if each.own_bounds}
    if own_bounds:
        yield _line(f"Next to transformers in the same form: {'; '.join(own_bounds)}.")
    if found.within:
        yield _line("Every bound holds.")


def _form(weights: str, results: Sequence[PathResult]) -> Iterator[Table | Text]:
    """Yield a table of one form of the weights, and below it what the paths have to say."""
    measured = [each for each in results if each.agreement is not None]
    why = next((each.bounds for each in measured if each.bounds), "")
    yield _line(f"\n{weights} (bound: {why})" if why else f"\n{weights}")
    table = _table("path", *_FIGURES[:-1], "own pass", "features")
    for each in measured:
        verdict = "\nover the bound" if each.exceeded else ""
        figures = _figures(each.agreement)[:-1] if each.agreement else []
        own = _number(each.own_pass.mean_kl if each.own_pass else None)
        cells = (_row(each) + verdict, *figures, own, _number(each.features_error))
        table.add_row(*map(_cell, cells))
    if measured:
        yield table
    for each in results:
        told = "; ".join(part for part in ("failed" if each.failed else "", each.note) if part)
        if told:
            yield _line(f"{_row(each)}: {told}")


def _row(result: PathResult) -> str:
    return f"{result.path}, crops {result.crops}" if result.crops else result.path


def _deep(deep: Deep) -> Iterator[Table | Text]:
    table = _table("output of", "relative error", "times the one before")
    for each in deep.layers:
        growth = "" if each.growth is None else f"{each.growth:.3g}"
        table.add_row(*map(_cell, (each.name, _number(each.error), growth)))
    yield table
    if deep.first:
        yield _line(f"The first part whose output differs: {deep.first}")
    else:
        yield _line("No layer's output differs.")
    for weight in deep.weights[:_MOST_WEIGHTS]:
        error = weight.reason if weight.error is None else f"relative error {weight.error:.3g}"
        yield _line(f"Stored weights differ: {weight.name} ({error})")
    if len(deep.weights) > _MOST_WEIGHTS:
        yield _line(f"and {len(deep.weights) - _MOST_WEIGHTS:,} more.")
    if not deep.weights:
        yield _line("All stored weights that were compared are equal.")
    if deep.unread:
        yield _line(f"Stored in fewer bits, so not compared: {deep.unread:,} tensors.")


def _table(*columns: str) -> Table:
    """Return an empty table with these columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        is_long = column in _LONG_HEADINGS
        table.add_column(column.replace(" ", "\n") if is_long else column, overflow="fold")
    return table


def _model(model: Compared) -> str:
    return f"{model.source} ({model.weights}; {model.arithmetic})"


def _worst(spot: Spot) -> str:
    """Say where KL is largest."""
    where = "in the answer" if spot.in_answer else "in the prompt"
    same = spot.expected == spot.found
    found = "which stays likeliest" if same else f"here {spot.found!r} is"
    return (
        f"Furthest apart: {spot.prompt!r}, after token {spot.position}, {spot.token!r}, {where}: "
        f"{spot.expected!r} was likeliest, {found}."
    )


def _figures(found: Agreement) -> list[str]:
    ties = f"{found.near_ties_kept} of {found.near_ties}" if found.near_ties else ""
    return [
        f"{found.positions:,}",
        _number(found.max_difference),
        _number(found.mean_kl),
        _number(found.max_kl),
        _share(found.top1),
        ties,
    ]


def _share(share: float | None) -> str:
    """Return a share in percent, rounded down: 100 % is all of them."""
    return "" if share is None else f"{math.floor(share * 1000) / 10:.1f}%"


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.2g}"


def _cell(text: str) -> Text:
    return Text(plain(text))


def _line(text: str) -> Text:
    return Text(plain(text))
