"""Memory before and after a model; torch is asked only where something has loaded it already."""

from __future__ import annotations

import sys
import traceback


def used_bytes() -> dict[str, int]:
    """Return memory in use by device; empty while nothing has loaded torch: no model is here."""
    if "torch" not in sys.modules:
        return {}
    from gemma3vl_app.engine.memory import used_bytes

    return used_bytes()


def give_back() -> None:
    """Free what nobody refers to any more."""
    if "torch" in sys.modules:
        from gemma3vl_app.engine.memory import give_back

        give_back()


def clear_frames(error: BaseException) -> None:
    """Drop the variables in the frames of an error: half a model may hang there."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
