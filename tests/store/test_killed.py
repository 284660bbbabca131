"""A process that is killed at any moment loses nothing that it was told is saved."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
@pytest.mark.parametrize("kills", [40, pytest.param(200, marks=pytest.mark.stress)])
def test_what_was_acknowledged_survives_a_kill_at_any_moment(tmp_path, kills):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.store.killed", str(tmp_path / "x"), str(kills), "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20 + 2 * kills,
    )
    assert not ended.returncode, ended.stderr[-3000:]
    print(f"{kills} kills, {int(ended.stdout)} changes acknowledged, none lost")
    assert int(ended.stdout) > kills
