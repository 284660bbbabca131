"""Let the system refuse memory to a real engine: `python -m tests.faults.short_of_memory FOLDER`.

After a first answer all that the process has and does not use is taken away, but for room for a
short prompt; a long one gets none. Prints as JSON what was said to the long one, and whether the
answers to a short one before and after are the same, with and without that limit.
"""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress

import psutil

from gemma3vl_app.backends.local import LocalBackend, load
from gemma3vl_app.errors import MemoryLimitError
from gemma3vl_app.generation import Greedy
from gemma3vl_app.messages import Conversation

ROOM_BYTES = 16 << 20
BLOCK_SIZES = (4 << 20, 1 << 20, 1 << 18, 1 << 16)
LONG = "word " * 2_000  # 20 MB a layer in the model of the test


def answer(backend: LocalBackend, text: str) -> str:
    stream = backend.stream(Conversation().user(text), sampling=Greedy(), max_new_tokens=8)
    return stream.answer.text


def take_memory() -> list[bytearray]:
    """Let the process have no more than now, and use what it has; leaves `ROOM_BYTES` free."""
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + ROOM_BYTES, -1))
    taken: list[bytearray] = []
    for size in BLOCK_SIZES:
        with suppress(MemoryError):
            while True:
                taken.append(bytearray(size))
    del taken[: ROOM_BYTES // BLOCK_SIZES[0]]
    return taken


def main(folder: str) -> None:
    with load(folder, weights="fp32", speculation="off") as backend:
        before, refused = answer(backend, "Who is next?"), []
        taken = take_memory()
        for _ in range(3):
            try:
                answer(backend, LONG)
            except MemoryLimitError as error:
                refused.append(str(error))
        short = answer(backend, "Who is next?")
        taken.clear()
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        after = answer(backend, "Who is next?")
        answer(backend, LONG)
    print(json.dumps({"refused": refused, "is_same": before == short == after}))


if __name__ == "__main__":
    main(*sys.argv[1:])
