"""Run a batch again and again, killed at a random line each time, until a run comes to its end.

`python -m tests.folders.killed FOLDER OUT SEED LOG`. Each run is a fork, so that it is a process of
its own that starts at once. LOG gets the name of each picture asked about, and "killed" after each
kill.
"""

import itertools
import os
import random
import signal
import sys
from pathlib import Path

import gemma3vl_app as gv
from gemma3vl_app import atomic_file
from gemma3vl_app.folders import asking, journal
from tests.folders.naming_backend import NamingBackend

TRACED = ("folders", "atomic_file.py", Path(__file__).name)
IN_FLIGHT, UNWRITTEN = 3, 5


def log(path: str, line: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{line}\n")


class Logging(NamingBackend):
    log_file = ""

    def stream(self, conversation, **options):
        log(self.log_file, conversation.pictures[0].name)
        return super().stream(conversation, **options)


def write_in_two_steps(file: int, data: bytes) -> None:
    half = len(data) // 2
    os.write(file, data[:half])
    os.write(file, data[half:])


def kill_at(line: int) -> None:
    """Send this process SIGKILL when it is about to execute its `line`-th line of what we wrote."""
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


def run(folder: str, out: str, log_file: str) -> None:
    backend = Logging(seconds={"03.png": 0.01})
    backend.log_file = log_file
    gv.batch(backend, folder, prompt="What?", out=out, schema={} if "with" in folder else None)


def main(folder: str, out: str, seed: str, log_file: str) -> None:
    asking.IN_FLIGHT, asking.UNWRITTEN = IN_FLIGHT, UNWRITTEN
    journal._write_all = write_in_two_steps
    atomic_file.os.fsync = lambda _: None  # SIGKILL takes nothing back that was written
    rng = random.Random(int(seed))
    for longest in itertools.count(2000, 100):  # more and more, so that a run does come to its end
        line = rng.randint(1, longest)
        child = os.fork()
        if not child:
            kill_at(line)
            run(folder, out, log_file)
            sys.settrace(None)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
        log(log_file, "killed")


if __name__ == "__main__":
    main(*sys.argv[1:])
