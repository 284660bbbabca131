"""Whether a written checkpoint has every weight of its source, bit by bit."""

from __future__ import annotations

from pathlib import Path

import torch

from gemma3vl_app.conversion.opening import open_for_conversion
from gemma3vl_app.errors import ConversionError
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.sources import Source


def check_same(source: Source, written: Path, report: Report) -> None:
    """Read the checkpoint in the folder `written` back, and compare each weight with `source`'s.

    Raises `ConversionError` with the first weight that differs.
    """
    result, _ = open_for_conversion(written)
    total = source.weight_bytes
    done = 0
    for name, expected in source.tensors.items():
        report(Progress("check", done, total, "bytes", "Comparing with the source"))
        found = result.tensors.get(name)
        if found is None or not _equal(expected.read(), found.read()):
            raise ConversionError(
                f"{name} was written wrongly: it is not what the source holds. The disk or the "
                "memory may be faulty; nothing was put in place. Try again on another disk."
            )
        done += expected.nbytes
    report(Progress("check", total, total, "bytes", "Every weight is the source's, bit by bit"))


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same bits: not-a-number equals itself, and -0 is not 0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = [each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other)]
    return torch.equal(*bits)
