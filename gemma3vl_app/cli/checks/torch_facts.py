"""What the installed torch can do, asked in a process of its own: it may crash, or hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

LIMIT_SEC = 120  # the first import from a slow disk takes long
QUESTION = """
import json, torch
usable = torch.cuda.is_available()
print(json.dumps({
    "cuda_build": torch.version.cuda or "",
    "cuda_usable": usable,
    "gpus": torch.cuda.device_count() if usable else 0,
    "mps": torch.backends.mps.is_available(),
}))
"""


@dataclass(frozen=True, kw_only=True)
class TorchFacts:
    """What torch says of itself; `error` says in a few words why it does not start.

    `cuda_build` is the CUDA version that it was built for, empty for none.
    """

    cuda_build: str = ""
    cuda_usable: bool = False
    gpus: int = 0
    mps: bool = False
    error: str = ""


def ask_torch(question: str = QUESTION, limit_sec: float = LIMIT_SEC) -> TorchFacts:
    """Start Python, import torch there and return what it says."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", question],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_sec,
        )
    except subprocess.TimeoutExpired:
        return TorchFacts(error=f"no answer within {limit_sec:.0f} s")
    if done.returncode < 0:
        return TorchFacts(error=f"it crashes (signal {-done.returncode})")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return TorchFacts(error=last.replace(os.path.expanduser("~"), "~")[:200])
    try:
        return TorchFacts(**json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, TypeError, IndexError):
        return TorchFacts(error="its answer cannot be read")
