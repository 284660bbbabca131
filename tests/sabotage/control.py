"""One control: what takes it out of the package, and the test that must then fail."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Control:
    """In `file` of the package, `old` (which stands there once) becomes `new`: it is taken out.

    `threat` is the row of docs/security.md, `test` a node id below tests/.
    """

    threat: str
    says: str
    file: str
    old: str
    new: str
    test: str
