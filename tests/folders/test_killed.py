"""A batch that is killed at any point, again and again, ends as one that never was."""

import subprocess
import sys
from pathlib import Path

import pytest

import gemma3vl_app as gv
from tests.folders.killed import UNWRITTEN
from tests.folders.naming_backend import NamingBackend, draw_pictures

ROOT = Path(__file__).parents[2]
NAMES = [f"{number:02}.png" for number in range(20)]
SIDECARS, JSON_LINES = "sidecars", "answers.jsonl"


def place(tmp_path: Path, name: str, out: str) -> tuple[Path, str]:
    """A folder of pictures, and where the answers about it go."""
    folder = draw_pictures(tmp_path / name / "photos", *NAMES)
    (folder / "07.png").write_bytes(b"This is no picture.")
    return folder, out if out == SIDECARS else str(tmp_path / name / out)


def files(folder: Path) -> dict[str, bytes]:
    """Everything below `folder` that is written for people or kept for the next run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.mark.parametrize("kind", ["", "with schema "])
@pytest.mark.parametrize("out", [JSON_LINES, "answers.csv", SIDECARS])
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_line_nothing_is_lost_repeated_or_different(tmp_path, kind, out, seed):
    folder, undisturbed = place(tmp_path, f"{kind}whole", out)
    gv.batch(NamingBackend(), folder, prompt="What?", out=undisturbed, schema={} if kind else None)
    folder, disturbed = place(tmp_path, f"{kind}killed", out)
    log = tmp_path / "log"

    subprocess.run(
        [sys.executable, "-m", "tests.folders.killed", str(folder), disturbed, str(seed), str(log)],
        cwd=ROOT,
        check=True,
        timeout=60,
    )

    assert files(folder.parent) == files(tmp_path / f"{kind}whole")
    asked = log.read_text().split()
    kills = asked.count("killed")
    assert kills >= 2
    assert set(asked) == set(NAMES) - {"07.png"} | {"killed"}
    assert len(asked) - kills <= len(NAMES) + kills * UNWRITTEN
