"""Machines that tests and pages plan for."""

from gemma3vl_app.hardware import Machine, known_machine

GIB = 1 << 30
PLAIN = frozenset({"avx2", "fma"})
WITH_BF16 = frozenset({"avx2", "avx512f", "avx512_bf16"})


def gpus(text: str) -> Machine:
    """GPUs of `hardware.KNOWN_GPUS`, and nothing but them."""
    return known_machine(text)


def processor(gib: int, flags: frozenset[str] = PLAIN) -> Machine:
    """A machine without a GPU, all of whose memory is free."""
    return Machine(cpu_count=8, cpu_flags=flags, memory_bytes=gib * GIB, available_bytes=gib * GIB)


def apple(gib: int) -> Machine:
    """A Mac with so much memory, a quarter of it in use."""
    return Machine(
        cpu_count=8, memory_bytes=gib * GIB, available_bytes=gib * GIB * 3 // 4, mps=True
    )
