"""Takes out controls one by one in a copy of the package, and runs the tests that must fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.sabotage.control import Control

ROOT = Path(__file__).parents[2]
LONGEST_SEC = 180
LONGEST_WHOLE_SEC = 1800
Verdict = Literal["noticed", "NOT NOTICED", "BROKEN"]
_FAILED, _PASSED = 1, 0  # how pytest ends


@dataclass(frozen=True)
class Result:
    """What became of one control."""

    control: Control
    verdict: Verdict
    says: str = ""


def node(control: Control) -> str:
    """Return what pytest calls the control's test."""
    return f"tests/{control.test}"


def without(control: Control, text: str) -> str:
    """Return the file's text without the control; raises `ValueError` unless it is there once."""
    if text.count(control.old) != 1:
        raise ValueError(f"{control.file} has {control.old!r} {text.count(control.old)} times")
    return text.replace(control.old, control.new)


@contextmanager
def copied() -> Iterator[Path]:
    """Lend a copy of what tests need; the working tree is never changed."""
    with tempfile.TemporaryDirectory(prefix="gemma3vl-sabotage-") as folder:
        copy = Path(folder)
        for name in ("gemma3vl_app", "tests"):
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=leave, copy_function=_copy)
        shutil.copy(ROOT / "pyproject.toml", copy)
        yield copy


def _copy(source: str, target: str) -> None:
    """Copy what may be changed; link to the rest, which is large."""
    if Path(source).suffix in (".py", ".js"):
        shutil.copy(source, target)
    else:
        os.symlink(source, target)


def run_tests(copy: Path, nodes: list[str], longest_sec: float) -> tuple[int | None, str]:
    """Run tests in the copy; return how pytest ended (None: not in time) and its last words."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *nodes]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command,
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=longest_sec)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None, "not in time"
    return process.returncode, said[-1500:]


def take_out(control: Control, copy: Path) -> Result:
    """Take one control out, run its test, put it back."""
    file = copy / "gemma3vl_app" / control.file
    whole = file.read_text(encoding="utf-8")
    try:
        file.write_text(without(control, whole), encoding="utf-8")
        ended, said = run_tests(copy, [node(control)], LONGEST_SEC)
    finally:
        file.write_text(whole, encoding="utf-8")
    if ended == _FAILED:
        return Result(control, "noticed")
    return Result(control, "NOT NOTICED" if ended == _PASSED else "BROKEN", said)


def check_whole(copy: Path, chosen: Sequence[Control]) -> str:
    """Return "" where their tests pass with all controls in place, or what pytest says."""
    nodes = sorted({node(control) for control in chosen})
    ended, said = run_tests(copy, nodes, LONGEST_WHOLE_SEC)
    return "" if ended == _PASSED else said
