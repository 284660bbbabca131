"""Parts onto devices, in the order of the computation, each device filled up to its limit.

A part computes where it lies. The home parts (embeddings, which are also the output matrix, tower,
projector) stay together on the first device that holds them; decoder layers follow over the
devices, each with its keys and values. "disk" is a memory map computed on the CPU: its weights
count for the disk, its keys and values for the CPU. No torch, no reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gemma3vl_app.errors import LoadError
from gemma3vl_app.planning import memory
from gemma3vl_app.planning.architecture import Architecture
from gemma3vl_app.planning.load_plan import DeviceBytes


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is asked of the machine: storage, arithmetic, context, sequences, pictures.

    `fast_paths` lets a processor keep the embeddings of quantised models in fewer bits.
    """

    weights: str
    dtype: str
    fast_paths: bool = True
    context_tokens: int
    sequences: int = 1
    images: int = 1


def place(model: Architecture, demand: Demand, limits: Mapping[str, int]) -> dict[str, str] | None:
    """Return a device map within `limits` (bytes by device, fastest first); None if there is none.

    Where everything lies on one device, the map is that device alone.
    """
    devices = list(limits)
    for home in devices:
        if home == "disk":
            continue
        device_map = _place_from(model, demand, limits, devices[devices.index(home) :])
        if device_map is not None:
            return device_map
    return None


def _place_from(
    model: Architecture, demand: Demand, limits: Mapping[str, int], devices: Sequence[str]
) -> dict[str, str] | None:
    home = devices[0]
    device_map = {name: home for name in model.names if name not in _layer_names(model)}
    used = device_bytes(model, demand, device_map)
    if used[home].total > limits[home]:
        return None
    remaining = list(devices)
    for number, layer in enumerate(model.layers):
        while remaining:
            device_map[layer.name] = remaining[0]
            # Layers on disk keep their keys and values in memory, which has to be left for them
            # as soon as memory is filled with others.
            spill = devices[-1] == "disk" and computing(remaining[0]) == "cpu"
            later = model.layers[number + 1 :] if spill else ()
            trial = device_map | {each.name: "disk" for each in later}
            used = device_bytes(model, demand, trial)
            if all(each.total <= limits.get(device, 0) for device, each in used.items()):
                break
            remaining.pop(0)
        else:
            return None
    return {"": home} if len({*device_map.values()}) == 1 else device_map


def device_bytes(
    model: Architecture, demand: Demand, device_map: Mapping[str, str]
) -> dict[str, DeviceBytes]:
    """Return what each device of a map holds; modules that the map does not name are left out."""
    dtype, weights = demand.dtype, demand.weights
    found: dict[str, Counter[str]] = {}

    def add(device: str, purpose: str, size: int) -> None:
        found.setdefault(device, Counter())[purpose] += size

    for part in (*model.home, *model.layers):
        if device := owner(part.name, device_map):
            form = table_form(demand, device)
            add(device, "weights", memory.weight_bytes(part, weights, dtype, form))
    for number, part in enumerate(model.layers):
        if device := owner(part.name, device_map):
            kind = "kv_global" if model.windows[number] is None else "kv_sliding"
            size = memory.kv_bytes(model, number, demand.context_tokens, demand.sequences, dtype)
            add(computing(device), kind, size)
    head = computing(owner("lm_head", device_map) or "cpu")
    add(head, "logits", memory.logits_bytes(model, demand.sequences))
    tower = owner("model.vision_tower", device_map)
    if tower and model.vision is not None:
        add(computing(tower), "vision", memory.vision_bytes(model, demand.images, dtype))
    for device in {computing(device) for device in found}:
        reserve = memory.reserve_bytes(model, device, weights, dtype, demand.context_tokens)
        add(device, "reserve", reserve)
    return {device: DeviceBytes(**purposes) for device, purposes in found.items()}


def table_form(demand: Demand, device: str) -> str:
    """Return the form of the embeddings, which are the output matrix, too; "" is the arithmetic's.

    Writing a token reads all of that matrix. Processors have kernels that read it in 8 bits.
    """
    quantised = demand.weights in ("int8", "nf4", "int4")
    on_cpu = computing(device) == "cpu"
    return "int8" if quantised and on_cpu and demand.fast_paths else ""


def check_map(model: Architecture, device_map: Mapping[str, str], name: str) -> None:
    """Raise `LoadError` for a map that forgets modules, names unknown ones, or splits the head."""
    known = model.names
    for key in device_map:
        inside = any(module == key or module.startswith(f"{key}.") for module in known)
        if key and not inside:
            raise LoadError(
                f"The device map for {name!r} names {key!r}, which is no part that can be placed. "
                f"Parts are {known[0]}, {model.layers[0].name} and so on: see docs/memory.md."
            )
    if missing := [module for module in known if owner(module, device_map) is None]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise LoadError(
            f"The device map for {name!r} forgets {missing[0]}{more}. Add it, or use 'auto'."
        )
    embeddings = next(part.name for part in model.home if part.name.endswith("embed_tokens"))
    if owner(embeddings, device_map) != owner("lm_head", device_map):
        raise LoadError(
            f"The device map for {name!r} parts lm_head from {embeddings}; they are one matrix. "
            "Give both the same device."
        )


def owner(module: str, device_map: Mapping[str, str]) -> str | None:
    """Return the device that a map gives to a module: the longest prefix wins; None if none."""
    prefix = module
    while prefix not in device_map:
        if not prefix:
            return None
        prefix = prefix.rpartition(".")[0]
    return device_map[prefix]


def computing(device: str) -> str:
    """Return where a part on `device` computes: on the CPU for "disk"."""
    return "cpu" if device == "disk" else device


def _layer_names(model: Architecture) -> set[str]:
    return {part.name for part in model.layers}
