"""Use a store again and again, killed at a random moment each time, and look at what is left.

`python -m tests.store.killed FOLDER KILLS SEED`. Each use is a fork, so that it is a process of its
own that starts at once. It acknowledges on a pipe each change that the store has taken; after each
kill, all that was acknowledged must be there. Half of the kills come between two lines of the
store, half at a moment of the clock, wherever SQLite or the system is then.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from gemma3vl_app.store import ConversationStore, database, picture_files
from tests.conversation_file.chats import drawn
from tests.store.talks import is_intact, picture_names, talk, texts

OWNER = "anna"
TRACED = (os.sep + "store" + os.sep, "atomic_file.py")
GONE = -1
PICTURES = [drawn(shade) for shade in range(50)]


def text(id: str, place: int) -> str:
    return f"{id} says {place} " + "and so on " * (place * 37 % 300)


def transcript_of(id: str, turns: int):
    """The conversation `id` after so many turns; pictures are shared by some conversations."""
    pictures = [PICTURES[int(id[:2], 16) % 8], PICTURES[turns // 3 % 50]]
    return talk(*(text(id, place) for place in range(turns)), pictures=pictures)


def use(folder: Path, rng: random.Random, known: dict[str, int], acknowledge: int) -> None:
    """Change conversations until killed; begun and acknowledged changes go to the pipe."""

    def note(kind: str, id: str, turns: int) -> None:
        os.write(acknowledge, json.dumps([kind, id, turns]).encode() + b"\n")

    with ConversationStore(folder) as store:
        while True:
            alive = [id for id, turns in known.items() if turns != GONE]
            if len(alive) < 3 or rng.random() < 0.1:
                id, turns = store.create(OWNER).id, 0
            elif rng.random() < 0.15:
                id, turns = rng.choice(alive), GONE
                note("begun", id, GONE)
                store.delete(OWNER, id)
            else:
                id = rng.choice(alive)
                turns = known[id] + 1
                note("begun", id, turns)
                store.save(OWNER, id, transcript_of(id, turns))
            known[id] = turns
            note("done", id, turns)


def kill_at(line: int) -> None:
    """Send this process SIGKILL when it is about to execute its `line`-th line of the store."""
    left = line

    def step(frame, event, _):
        nonlocal left
        if event == "line":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return step

    def enter(frame, event, argument):
        name = frame.f_code.co_filename
        return step(frame, event, argument) if any(part in name for part in TRACED) else None

    sys.settrace(enter)


def killed_use(
    folder: Path, rng: random.Random, known: dict[str, int]
) -> tuple[int, dict[str, int]]:
    """Let a process use the store and kill it.

    Returns how many changes it acknowledged, and what it had begun without an answer.
    """
    reader, writer = os.pipe()
    seed, by_line = rng.random(), rng.random() < 0.5
    line, seconds = rng.randint(1, 4000), rng.uniform(0, 0.25)
    child = os.fork()
    if not child:
        os.close(reader)
        if by_line:
            kill_at(line)
        use(folder, random.Random(seed), dict(known), writer)
    os.close(writer)
    if not by_line:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, f"ended with {status}"
    acknowledged, begun = 0, {}
    with os.fdopen(reader) as said:
        for kind, id, turns in map(json.loads, said):
            if kind == "begun":
                begun = {id: turns}
            else:
                known[id], begun = turns, {}
                acknowledged += 1
    return acknowledged, begun


def check(folder: Path, known: dict[str, int], begun: dict[str, int]) -> None:
    """Compare the store with what was acknowledged; what was only begun is there whole or not."""
    assert is_intact(folder), "the database is damaged"
    with ConversationStore(folder) as store:
        assert store.notice is None, store.notice
        entries = {entry.id: entry for entry in store.list(OWNER, limit=10_000)}
        for id, turns in known.items():
            found = entries[id].turns if id in entries else GONE
            assert found in (turns, begun.get(id, turns)), f"{id}: {found} turns, not {turns}"
            known[id] = found
        for id, entry in entries.items():
            if id not in known:  # created, and killed before it could say so
                assert entry.turns == 0
                known[id] = 0
            transcript = store.load(OWNER, id)
            assert texts(transcript) == [text(id, place) for place in range(entry.turns)]
            if entry.turns:
                assert transcript == transcript_of(id, entry.turns)
        named = {file for (file,) in store._database._db.execute("SELECT file FROM pictures")}
        assert set(picture_names(folder)) == named
        left = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
        gone = [id for id, turns in known.items() if turns == GONE]
        assert not [id for id in gone if f"{id} says".encode() in left], "deleted text is left"


def main(folder: str, kills: str, seed: str) -> None:
    database.SYNCHRONOUS = "OFF"  # SIGKILL takes nothing back that was written
    os.fsync = lambda _: None
    picture_files.ORPHAN_SECONDS = -1.0  # nobody else is at work when a store is opened
    rng = random.Random(int(seed))
    known: dict[str, int] = {}
    total = 0
    for _ in range(int(kills)):
        acknowledged, begun = killed_use(Path(folder), rng, known)
        total += acknowledged
        check(Path(folder), known, begun)
    print(total)


if __name__ == "__main__":
    main(*sys.argv[1:])
