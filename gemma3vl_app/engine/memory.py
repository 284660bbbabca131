"""Memory of this process, as the system and torch count it, and giving back what is unused.

Knows nothing of models.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

import psutil
import torch

_ROLLUP = Path("/proc/self/smaps_rollup")


def used_bytes() -> dict[str, int]:
    """Return the bytes in use by device: of the process on "cpu", of torch's tensors on GPUs.

    On Linux a memory map counts with the pages that are in memory, shared ones by share (Pss).
    """
    used = {"cpu": _process_bytes()}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            used[f"cuda:{index}"] = torch.cuda.memory_allocated(index)
    if torch.backends.mps.is_available():
        used["mps"] = torch.mps.current_allocated_memory()
    return used


def give_back() -> None:
    """Free what nobody refers to any more, and hand what allocators keep back to the system."""
    is_frozen = gc.get_freeze_count() > 0  # a server sets aside what it has, models too
    gc.unfreeze()
    gc.collect()  # models hold references in circles
    if is_frozen:
        gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Hand back to the system what the C heap keeps free, where that is glibc's."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _process_bytes() -> int:
    try:
        pss = re.search(r"^Pss:\s+(\d+) kB", _ROLLUP.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:  # not Linux, or an old kernel
        pss = None
    return int(pss[1]) << 10 if pss else int(psutil.Process().memory_info().rss)
