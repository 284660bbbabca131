"""Whether a model can be loaded while another is still there, and which loads have to wait.

Arithmetic over plans; knows nothing of what is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma3vl_app import hardware
from gemma3vl_app.addresses import is_address
from gemma3vl_app.errors import LoadError
from gemma3vl_app.hardware import Machine
from gemma3vl_app.planning.load_plan import LoadPlan
from gemma3vl_app.planning.sources import plan

_WISHES = ("weights", "device_map", "max_memory", "context_tokens")


def fits_beside(
    source: str | Path, options: Mapping[str, Any], machine: Machine, other: LoadPlan | None
) -> bool:
    """Tell whether `source` fits on `machine` while the model of `other` is still there.

    Only if it would be placed and stored in the same way without the other: a model is not to run
    slower for as long as it is loaded because it was loaded a moment too early. False, too, where
    that is not known before the source has been opened.
    """
    if is_address(source):
        return True  # it takes no memory here
    wishes = {name: options[name] for name in _WISHES if options.get(name) is not None}
    try:
        now = plan(source, machine=machine, **wishes)
        alone = plan(source, machine=_without(machine, other), **wishes)
    except LoadError:
        return False
    same_way = (now.weights, now.device_map) == (alone.weights, alone.device_map)
    return (
        now.fits
        and same_way
        and all(
            each.total <= hardware.available_memory_bytes(device, machine)
            for device, each in now.bytes_by_device.items()
            if device != "disk"
        )
    )


def devices_of(options: Mapping[str, Any]) -> frozenset[str] | None:
    """Return the devices that a load with these options may use; None: any.

    "mps" and "disk" use the CPU's memory, and count as it.
    """
    wanted, limits = options.get("device_map", "auto"), options.get("max_memory")
    if isinstance(wanted, Mapping):
        named = {str(device) for device in wanted.values()}
    elif wanted != "auto":
        named = {str(wanted)}
    elif isinstance(limits, Mapping):
        named = {str(device) for device in limits}
    else:
        return None
    return frozenset("cpu" if device in ("mps", "disk") else device for device in named)


def overlap(one: frozenset[str] | None, other: frozenset[str] | None) -> bool:
    """Tell whether two sets of devices have one in common; None is every device."""
    return one is None or other is None or bool(one & other)


def _without(machine: Machine, other: LoadPlan | None) -> Machine:
    """Return `machine` with what a model takes there given back."""
    taken = {} if other is None else {at: each.total for at, each in other.bytes_by_device.items()}
    gpus = tuple(
        replace(gpu, free_bytes=min(gpu.memory_bytes, gpu.free_bytes + taken.get(f"cuda:{i}", 0)))
        for i, gpu in enumerate(machine.gpus)
    )
    host = taken.get("cpu", 0) + taken.get("mps", 0)
    return replace(machine, gpus=gpus, available_bytes=machine.available_bytes + host)
