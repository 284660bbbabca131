"""Wishes about a load, as people write them, checked: precision, sizes of memory, devices."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gemma3vl_app.errors import LoadError
from gemma3vl_app.hardware import Machine

WEIGHTS = ("auto", "bf16", "fp32", "w16", "int8", "nf4", "int4")
CPU_ONLY = ("w16", "int4")  # kinds with kernels for processors alone
HALVES = ("fp16", "float16", "half", "f16")
LLM_INT8 = ("llm.int8", "llm_int8", "load_in_8bit", "bnb-int8", "bitsandbytes-int8")
UNITS = {
    **{"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40},
}
UNLIMITED_BYTES = 1 << 60
DEVICE = re.compile(r"cuda:(0|[1-9]\d?)|mps|cpu|disk")


def check_weights(weights: str) -> None:
    """Raise `LoadError` unless `weights` is a kind that can be loaded."""
    if weights in WEIGHTS:
        return
    known = ", ".join(repr(kind) for kind in WEIGHTS)
    if str(weights).lower() in HALVES:
        raise LoadError(
            f"weights={weights!r} is refused: Gemma 3's activations overflow float16, and answers "
            "come out empty. Use 'auto', 'bf16' or 'fp32'."
        )
    if str(weights).lower() in LLM_INT8:
        raise LoadError(
            f"weights={weights!r} is refused: bitsandbytes' LLM.int8 computes in float16, which "
            "Gemma 3's activations overflow. Use 'int8': 8-bit weights, computed in bf16 or fp32."
        )
    raise LoadError(f"weights={weights!r} is not known. Choose one of {known}.")


def parse_bytes(size: str | int | float) -> int:
    """Return a size in bytes: a number, or text such as "24GiB", "24 GB" or "512MiB"."""
    if isinstance(size, int | float) and not isinstance(size, bool) and 0 <= size < float("inf"):
        return int(size)
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?i?b?)\s*", str(size).lower())
    if found is None or found[2] not in UNITS:
        raise LoadError(f"{size!r} is no size of memory. Write it as 24GiB, 24GB or in bytes.")
    return int(float(found[1]) * UNITS[found[2]])


def parse_max_memory(text: str) -> dict[str, str | int]:
    """Return the sizes by device of a line such as "cuda:0=24GiB,cpu=64GiB".

    Raises `LoadError` for what makes sense on no machine.
    """
    sizes: dict[str, str | int] = {}
    for part in text.split(","):
        device, equals, size = part.strip().rpartition("=")
        if not equals or not size:
            raise LoadError(
                f"{part.strip()!r} is no device and size. Write it as cuda:0=24GiB,cpu=64GiB."
            )
        sizes[device.strip()] = size.strip()
    _checked_sizes(sizes)
    return sizes


def check_device(device: str) -> str:
    """Return a device's name; raises `LoadError` where no machine has such a device."""
    if not isinstance(device, str) or not DEVICE.fullmatch(device):
        raise LoadError(f"{device!r} is no device. Known are cuda:0, cuda:1, ..., mps, cpu, disk.")
    return device


def _checked_sizes(max_memory: Mapping[str, str | int]) -> dict[str, int]:
    """Return the bytes by device."""
    if not max_memory:
        raise LoadError("max_memory names no device. Write it as {'cuda:0': '24GiB'}.")
    limits = {check_device(device): parse_bytes(size) for device, size in max_memory.items()}
    if [*limits] == ["disk"]:
        raise LoadError("A disk alone computes nothing. Add cpu with a size.")
    return limits


def device_limits(
    machine: Machine,
    max_memory: Mapping[str, str | int] | None,
    device_map: str | Mapping[str, str] = "auto",
) -> dict[str, int]:
    """Return the bytes that may be used by device, fastest device first.

    With `max_memory` only its devices exist. Without it: GPUs, Apple's GPU or the CPU with what is
    free, and the disk behind them. MPS shares the CPU's memory, so it comes without the CPU and the
    disk, and a machine of which only the GPUs are known comes without both, too.
    """
    if max_memory is None:
        limits = {f"cuda:{number}": gpu.free_bytes for number, gpu in enumerate(machine.gpus)}
        if machine.mps and not limits:
            limits["mps"] = machine.available_bytes
        elif machine.memory_bytes or machine.available_bytes or not limits:
            limits |= {"cpu": machine.available_bytes, "disk": UNLIMITED_BYTES}
    else:
        limits = _checked_sizes(max_memory)
    if device_map != "auto":
        named = [device_map] if isinstance(device_map, str) else [*device_map.values()]
        if max_memory is None and "mps" in limits and {"cpu", "disk"} & {*named}:
            limits |= {"cpu": machine.available_bytes, "disk": UNLIMITED_BYTES}  # asked for by name
        for device in named:
            if check_device(device) in limits:
                continue
            if max_memory is None:
                raise LoadError(
                    f"{device!r} was asked for, but this machine has none. "
                    "Give max_memory to plan for another machine."
                )
            limits[device] = 0
    return fastest_first(limits)


def fastest_first(limits: Mapping[str, int]) -> dict[str, int]:
    """Return the same limits in the order GPUs by number, Apple's GPU, CPU, disk."""

    def rank(device: str) -> tuple[int, int]:
        kind, _, number = device.partition(":")
        return ("cuda", "mps", "cpu", "disk").index(kind), int(number or 0)

    return {device: limits[device] for device in sorted(limits, key=rank)}


def gib(size: int) -> str:
    """Return a size for people: "8.6 GiB"."""
    return f"{size / (1 << 30):.1f} GiB"
