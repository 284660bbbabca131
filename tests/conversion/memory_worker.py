"""Run as a program: prints how far memory peaked above where it was, for each way to convert.

What is counted is resident memory with the pages of files that are mapped in, as the kernel counts
it. Linux only: the peak is set back before each conversion, so that imports do not hide it.
"""

import ctypes
import sys
from pathlib import Path

from gemma3vl_app.conversion.converting import convert

ADAPTER = "adapter"  # a folder in that of a model


def resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) << 10


def ways(model: Path, out: Path, shards: dict[str, int]):
    """Yield what each way is called, and a function that goes it from `model` into `out`."""
    yield "transformers5", lambda: convert(model, out / "5", "transformers5", **shards)
    yield "nf4", lambda: convert(model, out / "nf4", "nf4", **shards)
    yield "hub, checked", lambda: convert(model, out / "hub", "hub", check=True, **shards)
    adapter = {"adapter": model / ADAPTER}
    yield "merged", lambda: convert(model, out / "merged", "merged", **adapter, **shards)
    yield "gguf", lambda: convert(model, out / "gguf", "gguf", gguf_type="q8_0")
    yield "megatron", lambda: convert(model, out / "megatron", "megatron")
    yield "hub of megatron", lambda: convert(out / "megatron", out / "back", "hub", **shards)


def main(warm_up: str, model: str, out: str, shard_bytes: str) -> None:
    for name, convert_little in ways(Path(warm_up), Path(out, "warm-up"), {}):
        convert_little()  # what is imported late is there afterwards
        convert_all = dict(ways(Path(model), Path(out), {"shard_bytes": int(shard_bytes)}))[name]
        # What was freed before and is still held would hide as much of the peak
        getattr(ctypes.CDLL(None), "malloc_trim", lambda kept: 0)(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        convert_all()
        print(f"{name}: {resident_bytes('VmHWM') - before}")


if __name__ == "__main__":
    main(*sys.argv[1:])
