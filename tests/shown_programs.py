"""Programs of the pages, each run in a process of its own as `python -c` would.

Importing torch and transformers takes longer than most of them: it is done once, in a process from
which theirs are forked.
"""

import multiprocessing
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a program ended, and all that it printed."""

    code: int | None  # None where it took too long
    out: str
    err: str


def run(program: str, folder: Path, timeout_sec: float) -> Ended:
    """Run a program in `folder`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    out, err = folder / ".stdout", folder / ".stderr"
    process = context.Process(target=_run, args=(program, folder, out, err))
    process.start()
    process.join(timeout_sec)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return Ended(code, *(file.read_text("utf-8") if file.exists() else "" for file in (out, err)))


def _run(program: str, folder: Path, out: Path, err: Path) -> None:
    os.chdir(folder)
    for file, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    sys.argv = ["-c"]
    sys.path.insert(0, "")
    try:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()
