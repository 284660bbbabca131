"""A process that is killed at any moment loses nothing that it was told is saved.

GEMMA3VL_KILLS=200 kills more often.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("GEMMA3VL_KILLS", "40"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
def test_what_was_acknowledged_survives_a_kill_at_any_moment(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.store.killed", str(tmp_path / "x"), str(KILLS), "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20 + 2 * KILLS,
    )
    assert not ended.returncode, ended.stderr[-3000:]
    assert int(ended.stdout) > KILLS  # changes that were acknowledged
