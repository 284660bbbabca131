"""Stored weights of two models, compared tensor by tensor as they lie in their files.

Reads one tensor of each at a time, so it takes no model in memory; names are those of transformers
5 in memory, whatever the files call them.
"""

from __future__ import annotations

import torch

from gemma3vl_app.faithfulness.measuring import RelativeError
from gemma3vl_app.faithfulness.results import WeightDifference
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.conversion import is_quantised
from gemma3vl_app.loading.sources import open_source

_NUMBERS_AT_ONCE = 1 << 22  # of a tensor, widened: 32 MiB


def compare_weights(
    a: str, b: str, *, revisions: tuple[str | None, str | None], report: Report
) -> tuple[tuple[WeightDifference, ...], int]:
    """Return the tensors that differ, largest relative error first, and how many are not compared.

    Those that one of the two stores in fewer bits have no numbers of their own to compare.
    """
    first, second = (
        open_source(source, revision=revision, report=report).tensors
        for source, revision in zip((a, b), revisions, strict=True)
    )
    found: list[WeightDifference] = []
    unread = 0
    names = sorted(first.keys() | second.keys())
    for done, name in enumerate(names):
        report(Progress("compare", done, len(names), "tensors", "Comparing stored weights"))
        if name not in first or name not in second:
            stored = name.rpartition(".weight.")[0]
            if not stored:  # else a part of a quantised weight, which is counted by its own name
                which = "B" if name in first else "A"
                found.append(WeightDifference(name=name, error=None, reason=f"{which} lacks it"))
        elif is_quantised(name, first) or is_quantised(name, second):
            unread += 1
        elif first[name].shape != second[name].shape:
            reason = f"{tuple(first[name].shape)} in A, {tuple(second[name].shape)} in B"
            found.append(WeightDifference(name=name, error=None, reason=reason))
        elif error := _error(first[name].read(), second[name].read()):
            found.append(WeightDifference(name=name, error=error))
    found.sort(key=lambda each: float("inf") if each.error is None else each.error, reverse=True)
    return tuple(found), unread


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    error = RelativeError()
    a, b = a.reshape(-1), b.reshape(-1)
    for first in range(0, len(a), _NUMBERS_AT_ONCE):
        some = slice(first, first + _NUMBERS_AT_ONCE)
        if not torch.equal(a[some], b[some]):
            error.add(a[some], b[some])
        else:
            error.add(a[some], a[some])
    return error.value
