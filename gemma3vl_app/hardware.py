"""The machine: its processor, memory and accelerators, and which arithmetic suits them.

Every decision is a function of a `Machine` value, so it can be asked about machines that are not
here; `detect` describes this one. Knows nothing of models.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from gemma3vl_app.errors import LoadError

AMPERE = (8, 0)  # the first CUDA capability with bf16 in hardware
BF16_CPU_FLAGS = ("avx512_bf16", "amx_bf16")
UNLIMITED_BYTES = 2**60  # cgroup v1 says "no limit" with a number near 2**63


@dataclass(frozen=True)
class Gpu:
    """A CUDA device; `memory_bytes` is all of it, `free_bytes` what nobody uses now."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides where and how a model runs.

    `cpu_flags` uses the names of /proc/cpuinfo; `available_bytes` respects a container's limit.
    """

    cpu_count: int = 1
    cpu_flags: frozenset[str] = frozenset()
    memory_bytes: int = 0
    available_bytes: int = 0
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False


def _known(name: str, gib: int, capability: tuple[int, int]) -> Gpu:
    return Gpu(name, capability, gib << 30, (gib << 30) - (1 << 29))


# Compute capability as in NVIDIA's tables (developer.nvidia.com/cuda-gpus); memory in whole GiB as
# drivers report it: error correction takes a part of what T4, A10G, L4 and L40S are sold with.
KNOWN_GPUS = {
    "t4": _known("T4", 15, (7, 5)),
    "v100-16": _known("V100 16 GB", 16, (7, 0)),
    "v100-32": _known("V100 32 GB", 32, (7, 0)),
    "rtx-2080-ti": _known("RTX 2080 Ti", 11, (7, 5)),
    "rtx-3060": _known("RTX 3060", 12, (8, 6)),
    "rtx-3090": _known("RTX 3090", 24, (8, 6)),
    "rtx-4060-ti": _known("RTX 4060 Ti", 16, (8, 9)),
    "rtx-4080": _known("RTX 4080", 16, (8, 9)),
    "rtx-4090": _known("RTX 4090", 24, (8, 9)),
    "rtx-5090": _known("RTX 5090", 32, (12, 0)),
    "a10g": _known("A10G", 22, (8, 6)),
    "l4": _known("L4", 22, (8, 9)),
    "l40s": _known("L40S", 44, (8, 9)),
    "a6000": _known("RTX A6000", 48, (8, 6)),
    "a100-40": _known("A100 40 GB", 40, (8, 0)),
    "a100-80": _known("A100 80 GB", 80, (8, 0)),
    "h100": _known("H100", 80, (9, 0)),
    "h200": _known("H200", 141, (9, 0)),
    "b200": _known("B200", 180, (10, 0)),
}
MOST_GPUS = 64


def default_device(machine: Machine | None = None) -> str:
    """Return the fastest device of the machine: "cuda:0", "mps" or "cpu"."""
    machine = machine or detect()
    if machine.gpus:
        return "cuda:0"
    return "mps" if machine.mps else "cpu"


def choose_dtype(device: str, machine: Machine | None = None) -> tuple[str, str]:
    """Return the arithmetic for `device` ("bfloat16" or "float32") and the reason, fit to show.

    Never float16: Gemma 3's activations exceed its range. The capability decides on CUDA, because
    `torch.cuda.is_bf16_supported` also says yes where bf16 is only emulated, and slow.
    """
    machine = machine or detect()
    kind, _, index = device.partition(":")
    if kind == "cuda":
        return _choose_cuda_dtype(int(index or 0), machine)
    if kind == "mps":
        return "bfloat16", "bfloat16: Apple GPUs compute in it."
    for flag in BF16_CPU_FLAGS:
        if flag in machine.cpu_flags:
            return "bfloat16", f"bfloat16: this processor has {flag.replace('_', '-').upper()}."
    return (
        "float32",
        "float32: this processor has neither AVX512-BF16 nor AMX, so bfloat16 would be slow.",
    )


def available_memory_bytes(device: str = "cpu", machine: Machine | None = None) -> int:
    """Return how many bytes a model may still take on `device`.

    On "mps", which shares the machine's memory, this is the same as on "cpu".
    """
    machine = machine or detect()
    kind, _, index = device.partition(":")
    return machine.gpus[int(index or 0)].free_bytes if kind == "cuda" else machine.available_bytes


def detect() -> Machine:
    """Describe this machine as it is now; imports torch."""
    import torch

    cpuinfo = _read(Path("/proc/cpuinfo"))
    return _machine(
        cpu_flags=_cpu_flags(cpuinfo) or _torch_cpu_flags(),
        gpus=_cuda_gpus(),
        mps=torch.backends.mps.is_available(),
    )


def detect_without_torch() -> Machine:
    """Describe this machine as it is now, in a fraction of a second: asks the driver's own tool.

    Where /proc/cpuinfo is missing, the processor's abilities stay unknown, as if it had none.
    """
    return _machine(
        cpu_flags=_cpu_flags(_read(Path("/proc/cpuinfo"))),
        gpus=_gpus_of_driver(),
        mps=platform.system() == "Darwin" and platform.machine() == "arm64",
    )


def known_machine(text: str) -> Machine:
    """Return a machine with the GPUs of a text such as "t4" or "2xrtx-4090", and no CPU memory.

    All of a GPU's memory counts as free but half a GiB that drivers and screens take. Raises
    `LoadError` with the known names.
    """
    counted = re.fullmatch(r"(\d{1,2})\s*x\s*(.+)", text.strip().lower())
    count, name = (int(counted[1]), counted[2]) if counted else (1, text.strip().lower())
    gpu = KNOWN_GPUS.get(name.replace(" ", "-"))
    if gpu is None or not 1 <= count <= MOST_GPUS:
        raise LoadError(f"{text!r} is no GPU known here. Known are {', '.join(KNOWN_GPUS)}.")
    return Machine(gpus=(gpu,) * count)


# --- how detect finds out ---


def arithmetic(dtype: str, devices: Iterable[str]) -> str:
    """Return what computes in `dtype`, such as "float32 on cpu (AVX2, 2 threads)".

    Where this is the same, the same product gives the same bits.
    """
    import torch

    kinds = []
    for device in sorted({"cpu" if each == "disk" else each for each in devices}):
        if device.startswith("cuda"):
            kinds.append(torch.cuda.get_device_name(device))
        elif device == "cpu":
            threads = torch.get_num_threads()
            kinds.append(f"cpu ({torch.backends.cpu.get_cpu_capability()}, {threads} threads)")
        else:
            kinds.append(device)
    return f"{dtype} on {' and '.join(kinds)}"


def _machine(*, cpu_flags: frozenset[str], gpus: tuple[Gpu, ...], mps: bool) -> Machine:
    import psutil

    memory = psutil.virtual_memory()
    limit, room = _cgroup_memory(Path("/sys/fs/cgroup"), _read(Path("/proc/self/cgroup")))
    return Machine(
        cpu_count=_usable_cpus(),
        cpu_flags=cpu_flags,
        memory_bytes=min(memory.total, limit),
        available_bytes=min(memory.available, room),
        gpus=gpus,
        mps=mps,
    )


def _gpus_of_driver() -> tuple[Gpu, ...]:
    """Ask nvidia-smi; no GPUs where it is missing, slow or says something else."""
    query = ["--query-gpu=name,compute_cap,memory.total,memory.free", "--format=csv,noheader"]
    visible = _visible_gpus()
    if visible is not None and not visible:
        return ()
    if visible:
        query += ["-i", ",".join(visible)]
    try:
        found = subprocess.run(
            ["nvidia-smi", *query],
            capture_output=True,
            text=True,
            timeout=2,
            check=True,
        )
        return tuple(_parse_gpu(line) for line in found.stdout.strip().splitlines())
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _visible_gpus() -> list[str] | None:
    """Return the numbers or UUIDs of the GPUs the user has chosen to show; None: all of them.

    As CUDA reads it: what follows an invalid name such as -1 is hidden, too.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return None
    names = [name.strip() for name in chosen.split(",")]
    return list(takewhile(re.compile(r"\d+|GPU-[\w-]+").fullmatch, names))


def _parse_gpu(line: str) -> Gpu:
    """Read a line of nvidia-smi: "Tesla T4, 7.5, 15360 MiB, 14900 MiB"."""
    name, capability, total, free = (part.strip() for part in line.rsplit(",", 3))
    major, minor = capability.split(".")
    total_mib, free_mib = (int(size.removesuffix(" MiB")) for size in (total, free))
    return Gpu(name, (int(major), int(minor)), total_mib << 20, free_mib << 20)


def _choose_cuda_dtype(index: int, machine: Machine) -> tuple[str, str]:
    gpu = machine.gpus[index]
    major, minor = gpu.capability
    if gpu.capability >= AMPERE:
        return (
            "bfloat16",
            f"bfloat16: {gpu.name} (compute capability {major}.{minor}) has it in hardware.",
        )
    return "float32", (
        f"float32: {gpu.name} (compute capability {major}.{minor}) only emulates bfloat16, "
        "and Gemma 3 overflows in float16."
    )


def _cuda_gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name, capability = (
            torch.cuda.get_device_name(index),
            torch.cuda.get_device_capability(index),
        )
        gpus.append(Gpu(name, capability, total, free))
    return tuple(gpus)


def _cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Return the flags in /proc/cpuinfo's text."""
    found = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _torch_cpu_flags() -> frozenset[str]:
    """Return the flags that torch knows of, where there is no /proc/cpuinfo."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    import torch

    # Private names, so absent ones count as "no": the cost is only speed.
    probes = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    return frozenset(
        flag for flag, probe in probes.items() if getattr(torch.cpu, probe, lambda: False)()
    )


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_memory(root: Path, proc_self_cgroup: str) -> tuple[int, int]:
    """Return the tightest memory limit of this process's cgroups, and the least room, in bytes.

    `proc_self_cgroup` is the text of /proc/self/cgroup. Reads cgroup v2 and v1. Page cache that the
    kernel gives back (`inactive_file`) counts as room.
    """
    limit = room = UNLIMITED_BYTES
    for line in proc_self_cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit_name, used_name = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit_name = root / "memory", "memory.limit_in_bytes"
            used_name = "memory.usage_in_bytes"
        else:
            continue
        # Inside a container `path` may not exist below `root`; then only the root itself counts.
        folder = base / path.strip("/")
        for group in (folder, *folder.parents):
            bound = _read_number(group / limit_name)
            if bound is not None and bound < UNLIMITED_BYTES:
                used = (_read_number(group / used_name) or 0) - _inactive_file(
                    group / "memory.stat"
                )
                limit, room = min(limit, bound), min(room, max(bound - used, 0))
            if group == base:
                break
    return limit, room


def _inactive_file(path: Path) -> int:
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(path), re.MULTILINE)
    return int(found[1]) if found else 0


def _read_number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    """Return a small file's text, empty where this system does not have it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
