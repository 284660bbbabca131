"""Files that were valid until something was done to them; the same from the same seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

from tests.picture_files import every_sort

# What a parser takes for a length, an offset or a count when it is told these.
_ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_FORMATS = ("B", ">H", "<H", ">I", "<I")


def mutated(
    count: int, seed: int, valid: dict[str, bytes] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield `count` damaged files, each with a name that says which sort it was."""
    chance = random.Random(seed)
    valid = valid or {name: data for name, data in every_sort().items() if len(data) > 30}
    names = sorted(valid)
    for number in range(count):
        name = names[number % len(names)]
        damage = chance.choice((_flip, _flip, _cut, _splice, _repeat, _renumber, _renumber))
        yield f"{number} {damage.__name__[1:]} {name}", damage(valid[name], chance, valid)


def _flip(data: bytes, chance: random.Random, valid: dict[str, bytes]) -> bytes:
    """Change 1 to 16 bytes."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 4, 16))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _cut(data: bytes, chance: random.Random, valid: dict[str, bytes]) -> bytes:
    """Leave the end out."""
    return data[: chance.randrange(1, len(data))]


def _splice(data: bytes, chance: random.Random, valid: dict[str, bytes]) -> bytes:
    """Go on with a piece of another file."""
    other = valid[chance.choice(sorted(valid))]
    start = chance.randrange(len(other))
    return data[: chance.randrange(8, len(data))] + other[start:]


def _repeat(data: bytes, chance: random.Random, valid: dict[str, bytes]) -> bytes:
    """Say a piece many times over."""
    start = chance.randrange(len(data))
    end = min(len(data), start + chance.randrange(1, 64))
    return data[:end] + data[start:end] * chance.choice((1, 10, 1000)) + data[end:]


def _renumber(data: bytes, chance: random.Random, valid: dict[str, bytes]) -> bytes:
    """Write odd numbers where lengths, sizes and offsets stand: mostly near the start."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 3))):
        format = chance.choice(_FORMATS)
        size = struct.calcsize(format)
        number = chance.choice(_ODD_NUMBERS) & (1 << 8 * size) - 1
        reach = len(changed) - size
        at = chance.randrange(min(reach, 128)) if chance.random() < 0.7 else chance.randrange(reach)
        changed[at : at + size] = struct.pack(format, number)
    return bytes(changed)
