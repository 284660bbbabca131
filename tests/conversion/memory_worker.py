"""Run as a program: prints how far memory peaked above where it was, while a model was converted.

What is counted is resident memory with the pages of files that are mapped in, as the kernel counts
it. Linux only: the peak is set back before the conversion, so that imports do not hide it.
"""

import sys
from pathlib import Path

from gemma3vl_app.conversion.converting import convert


def resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) << 10


def main(warm_up: str, source: str, target: str, shard_bytes: str) -> None:
    for to in ("transformers5", "nf4"):
        convert(warm_up, f"{target}/warm-up-{to}", to)  # what is imported late is there afterwards
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        convert(source, f"{target}/{to}", to, shard_bytes=int(shard_bytes))
        print(to, resident_bytes("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
