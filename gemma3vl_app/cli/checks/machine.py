"""The machine: system, memory, GPUs, and whether the installed torch can use them."""

from __future__ import annotations

from gemma3vl_app.cli.checks.check import Check, gib
from gemma3vl_app.cli.checks.torch_facts import TorchFacts
from gemma3vl_app.hardware import Gpu, Machine, choose_dtype, default_device

SECTION = "Machine"
LITTLE_MEMORY_BYTES = 2 << 30  # the demo and a page in the browser
BUSY_SHARE = 0.25  # of a GPU's memory that is free: less, and something else is at work there
TORCH_GUIDE = "https://pytorch.org/get-started/locally/"


def system(machine: Machine, *, name: str, processor: str) -> Check:
    """Say which system and processor this is."""
    cores = f"{machine.cpu_count} CPU core{'s' * (machine.cpu_count != 1)}"
    return Check(SECTION, "system", "good", f"{name}, {processor}, {cores}")


def arithmetic(machine: Machine) -> Check:
    """Say which arithmetic models are computed in, and why."""
    device = default_device(machine)
    return Check(SECTION, "arithmetic", "good", f"on {device} {choose_dtype(device, machine)[1]}")


def memory(machine: Machine) -> Check:
    """Look at the free memory of the machine, or of the container."""
    message = f"{gib(machine.available_bytes)} of {gib(machine.memory_bytes)} are free"
    if machine.available_bytes >= LITTLE_MEMORY_BYTES:
        return Check(SECTION, "memory", "good", message)
    advice = f"{message}: little even for the demo. Close other programs."
    return Check(SECTION, "memory", "warning", advice, "gemma3vl plan demo")


def gpus(
    machine: Machine,
    torch: TorchFacts,
    *,
    system: str,
    pinned: str = "torch",
    hidden: bool = False,
    driver_tool: bool = False,
) -> list[Check]:
    """Look at the GPUs and whether the installed torch can use them.

    `system` is Python's name of it ("Linux"), `pinned` the torch that this package requires,
    `hidden` whether CUDA_VISIBLE_DEVICES hides all GPUs, `driver_tool` whether nvidia-smi is here.
    """
    if machine.gpus:
        each = [_gpu(number, gpu) for number, gpu in enumerate(machine.gpus)]
        return [*each, *_torch_on_cuda(machine.gpus, torch, system, pinned)]
    if hidden and driver_tool:
        message = "CUDA_VISIBLE_DEVICES hides every GPU from programs; the processor is used."
        return [Check(SECTION, "GPU", "warning", message, "unset CUDA_VISIBLE_DEVICES")]
    if torch.cuda_usable:  # such as AMD's, which torch calls CUDA, too
        count = f"{torch.gpus} GPU{'s' * (torch.gpus != 1)}"
        return [Check(SECTION, "GPU", "good", f"torch can use {count}")]
    if machine.mps:
        return [_apple(torch, pinned)]
    if driver_tool:
        message = "NVIDIA's driver is installed, but it names no GPU; the processor is used."
        return [Check(SECTION, "GPU", "warning", message, "nvidia-smi")]
    return [Check(SECTION, "GPU", "good", "none; models are computed on the processor")]


def _gpu(number: int, gpu: Gpu) -> Check:
    message = f"{gpu.name}, {gib(gpu.free_bytes)} of {gib(gpu.memory_bytes)} are free"
    if gpu.free_bytes >= BUSY_SHARE * gpu.memory_bytes:
        return Check(SECTION, f"cuda:{number}", "good", message)
    advice = f"{message}: another program uses it."
    return Check(SECTION, f"cuda:{number}", "warning", advice, "nvidia-smi")


def _torch_on_cuda(
    found: tuple[Gpu, ...], torch: TorchFacts, system: str, pinned: str
) -> list[Check]:
    name = "torch on GPU"
    if torch.error:
        message = "torch does not start, so it cannot be asked about the GPU."
        next_step = f'pip install --force-reinstall "{pinned}"'
        return [Check(SECTION, name, "warning", message, next_step)]
    if torch.cuda_usable:
        return [Check(SECTION, name, "good", f"torch (for CUDA {torch.cuda_build}) can use it")]
    which = found[0].name
    if not torch.cuda_build:
        message = f"The installed torch is built for processors only, so {which} lies idle."
        # Linux wheels of the package index are built for CUDA, those for Windows are not.
        line = f'pip install --force-reinstall --index-url https://pypi.org/simple "{pinned}"'
        return [
            Check(SECTION, name, "warning", message, line if system == "Linux" else TORCH_GUIDE)
        ]
    message = (
        f"torch is built for CUDA {torch.cuda_build}, but cannot use {which}: the driver may be "
        "older than that. nvidia-smi shows which CUDA it knows; update the driver."
    )
    return [Check(SECTION, name, "warning", message, "nvidia-smi")]


def _apple(torch: TorchFacts, pinned: str) -> Check:
    if torch.mps or torch.error:  # an error has its own line
        return Check(SECTION, "GPU", "good", "Apple's, which shares the machine's memory")
    message = "The installed torch cannot use Apple's GPU (Metal)."
    return Check(SECTION, "GPU", "warning", message, f'pip install --force-reinstall "{pinned}"')
