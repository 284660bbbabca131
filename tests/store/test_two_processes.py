"""Two processes write into the same folder at the same time, and nothing is lost."""

import subprocess
import sys
from pathlib import Path

from gemma3vl_app.store import ConversationStore
from tests.store.talks import ask, is_intact, picture_names
from tests.store.writer import TURNS, said

ROOT = Path(__file__).parents[2]
WRITES = 500


def test_two_processes_with_500_writes_each_lose_nothing(folder):
    names = ("anna", "bert")
    writers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.store.writer", str(folder), name, str(WRITES)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert (writer.returncode, errors) == (0, "")

    with ConversationStore(folder) as store:
        for name in names:
            entries = store.list(name, limit=WRITES)[::-1]
            kept = [number for number in range(WRITES // TURNS) if number % 10 != 9]
            assert len(entries) == len(kept)
            for entry, number in zip(entries, kept, strict=True):
                assert store.load(name, entry.id) == said(name, number, TURNS)
    assert is_intact(folder)
    assert set(picture_names(folder)) == {f for (f,) in ask(folder, "SELECT file FROM pictures")}
