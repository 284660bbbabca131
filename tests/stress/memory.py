"""How much memory a server may come to need under bad input, and how much of that is growth."""

from __future__ import annotations

from collections.abc import Sequence

GROWTH = 0.1
# What is there once everything has been asked for: 256 MiB of pictures are kept decoded, two
# workers hold what large ones need, the second takes 40 MiB, tables for schemas 30.
LOADED_LATE_BYTES = 400 << 20


def check(resident_bytes: Sequence[int]) -> None:
    """Look at what a server had before the first batch and after each one.

    The first tenth of them shows all that is loaded late; from there on nothing may grow.
    """
    first, settled, last = (resident_bytes[at] for at in (0, -(-len(resident_bytes) // 11), -1))
    print([each >> 20 for each in resident_bytes], "MiB")
    assert settled - first <= LOADED_LATE_BYTES
    assert last <= settled * (1 + GROWTH)
