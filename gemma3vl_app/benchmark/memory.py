"""Memory and loading, measured in fresh processes: what the planner forecast against what is used.

`python -m gemma3vl_app.benchmark.memory FOLDER WEIGHTS` is the measured process; `measure` starts
it and watches it from outside, so that watching takes nothing from it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gemma3vl_app.benchmark.models import WORD, noise_picture
from gemma3vl_app.planning.memory import runtime_bytes

SAMPLE_SEC = 0.02
CHAT_TOKENS, CHAT_PICTURES, ANSWER_TOKENS = 2048, 2, 16
CONTEXT_TOKENS = 2640  # pictures, text and answer: what the plan is asked for


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Pss of one process above what its imports took, in bytes.

    `forecast_*` is what the plan said: weights and runtime, and all of it.
    """

    load_peak_bytes: int
    resident_bytes: int
    chat_peak_bytes: int
    forecast_resident_bytes: int
    forecast_peak_bytes: int


def load_sec(folder: Path, weights: str, *, cache: Path) -> float:
    """Return the seconds that loading takes in a fresh process, imports not counted.

    `cache` is the folder for quantised weights: empty before a first load. Nothing watches: reading
    a process's memory map stops its page faults for as long.
    """
    code = (
        "import sys, time, gemma3vl_app.backends.local as local\n"
        "began = time.perf_counter()\n"
        "backend = local.load(sys.argv[1], weights=sys.argv[2])\n"
        "print(time.perf_counter() - began)\n"
        "backend.close()\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, str(folder), weights],
        env={**os.environ, "GEMMA3VL_CACHE": str(cache)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return float(output.split()[-1])


def measure(folder: Path, weights: str, *, cache: Path) -> Footprint:
    """Load the checkpoint `folder` in a fresh process, and chat with it; Linux only."""
    arguments = [sys.executable, "-m", __name__, str(folder), weights]
    environment = {**os.environ, "GEMMA3VL_CACHE": str(cache)}
    with subprocess.Popen(
        arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        watch = _Watch(process.pid, process.stdout)
        watch.until("imported")
        base = watch.bytes
        watch.answer(process.stdin)
        load_peak = watch.until("loaded")
        resident = watch.bytes
        watch.answer(process.stdin)
        chat_peak = watch.until("chatted")
        watch.answer(process.stdin)
        forecast = watch.forecast
        if process.wait() != 0:
            raise RuntimeError(f"the measured process ended with {process.returncode}")
    return Footprint(
        load_peak_bytes=load_peak - base,
        resident_bytes=resident - base,
        chat_peak_bytes=chat_peak - base,
        forecast_resident_bytes=forecast["resident"],
        forecast_peak_bytes=forecast["peak"],
    )


class _Watch:
    """Samples a process's Pss until it says that a stage is over, then lets it go on."""

    def __init__(self, pid: int, said: IO[str]) -> None:
        self._rollup = Path(f"/proc/{pid}/smaps_rollup")
        self._said = said
        self.bytes = 0
        self.forecast: dict[str, int] = {}

    def until(self, stage: str) -> int:
        """Wait for the end of `stage`; returns its peak in bytes."""
        peak = 0
        while True:
            line = self._said.readline()
            if line.startswith("{"):
                self.forecast = json.loads(line)
            if line.strip() == stage:
                self.bytes = self._pss()
                return max(peak, self.bytes)
            peak = max(peak, self._pss())
            time.sleep(SAMPLE_SEC)

    def answer(self, stdin: IO[str]) -> None:
        """Let the process go on."""
        stdin.write("go\n")
        stdin.flush()

    def _pss(self) -> int:
        found = re.search(r"^Pss:\s+(\d+) kB$", self._rollup.read_text(), re.MULTILINE)
        if found is None:
            raise RuntimeError("the measured process is gone")
        return int(found[1]) << 10


def main() -> None:
    """Load and chat, stopping after each stage so that it can be measured."""
    import torch

    from gemma3vl_app.backends.local import load
    from gemma3vl_app.generation import Greedy
    from gemma3vl_app.messages import Conversation

    folder, weights = sys.argv[1:3]
    torch.ones(8, 8) @ torch.ones(8, 8)  # what the libraries set up when first used is no model
    _stage("imported")
    backend = load(folder, weights=weights, context_tokens=CONTEXT_TOKENS)
    _stage("loaded")
    pictures = [noise_picture(number) for number in range(CHAT_PICTURES)]
    conversation = Conversation().user(*pictures, WORD * CHAT_TOKENS)
    stream = backend.stream(conversation, sampling=Greedy(), max_new_tokens=ANSWER_TOKENS)
    if not stream.answer.usage.completion_tokens:
        raise RuntimeError("the model said nothing")
    planned: dict[str, Any] = {
        "resident": sum(
            each.weights + runtime_bytes(device)
            for device, each in backend.plan.bytes_by_device.items()
        ),
        "peak": sum(each.total for each in backend.plan.bytes_by_device.values()),
    }
    sys.stdout.write(json.dumps(planned) + "\n")
    _stage("chatted")


def _stage(name: str) -> None:
    """Say that a stage is over, and wait until it has been measured."""
    sys.stdout.write(name + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


if __name__ == "__main__":
    main()
