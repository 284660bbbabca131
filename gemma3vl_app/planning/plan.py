"""`plan_for`: precision and places for a model on a machine, each choice with its reason.

Tries storage in the order of preference, and places in the order of speed; the first that fits is
the plan. Where none does, it looks for the nearest wishes that would. No torch, no downloads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from gemma3vl_app import hardware
from gemma3vl_app.errors import LoadError
from gemma3vl_app.hardware import Machine
from gemma3vl_app.planning import placement
from gemma3vl_app.planning.architecture import Architecture, architecture
from gemma3vl_app.planning.load_plan import LoadPlan
from gemma3vl_app.planning.placement import Demand
from gemma3vl_app.planning.wishes import (
    CPU_ONLY,
    UNLIMITED_BYTES,
    check_weights,
    device_limits,
    fastest_first,
    gib,
)

DEFAULT_CONTEXT_TOKENS = 8192
SHORTEST_CONTEXT_TOKENS = 2048  # a way to make a model fit is no way if it leaves less than this
STORED = {"bfloat16": "bf16", "float32": "fp32"}
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
DISK = "disk"
INT4_CPU_FLAGS = frozenset({"avx2", "avx512f", "avx512_bf16", "amx_bf16"})  # any has AVX2 at least
GPU_COUNTS = (1, 2, 4, 8)  # of one kind, as machines are sold
MOST_WAYS = 3
MOST_MORE_GPUS = 7


def plan_for(
    config: Mapping[str, Any],
    *,
    name: str,
    machine: Machine,
    weights: str = "auto",
    device_map: str | Mapping[str, str] = "auto",
    max_memory: Mapping[str, str | int] | None = None,
    context_tokens: int | None = None,
    images: int = 1,
    sequences: int = 1,
    fast_paths: bool = True,
) -> LoadPlan:
    """Return the plan for the model of a config.json on a machine, whether it fits or not.

    `device_map` is "auto", one device, or a map of module prefixes. `max_memory` bounds devices,
    and then only those exist; without it, all that is free counts. `context_tokens` is the longest
    conversation to make room for (None: 8,192, or the model's own if shorter), `sequences` how many
    at once, `images` how many pictures each. Without `fast_paths`, nothing is chosen that is faster
    but not the reference to the last bit. Raises `LoadError` for wishes that make no sense.
    """
    check_weights(weights)
    model = architecture(config)
    _check_counts(images=images, sequences=sequences)
    context = _context(model, context_tokens, name)
    limits = device_limits(machine, max_memory, device_map)
    fixed = _fixed_map(model, device_map, name)
    fastest = next(each for each in limits if fixed is None or each in fixed.values())
    if weights == "nf4" and fastest == "mps":
        raise LoadError("weights='nf4' needs CUDA or a CPU (bitsandbytes). Use 'int8' here.")
    if weights in CPU_ONLY and fastest not in ("cpu", DISK):
        raise LoadError(
            f"weights={weights!r} is made for processors, and {fastest} is none. Use "
            f"{'int8' if fastest == 'mps' else 'nf4'!r} here, or device_map='cpu'."
        )
    dtype, dtype_reason = _arithmetic(weights, fastest, machine)
    fast_paths = fast_paths and weights != "fp32"  # who asks for it wants the reference's numbers
    demand = Demand(
        weights="",
        dtype=dtype,
        fast_paths=fast_paths,
        context_tokens=context,
        sequences=sequences,
        images=images,
    )
    choices = list(_storage(weights, config, dtype, fastest, machine, fast_paths))
    for place_on, wish, why in _attempts(choices, limits, fixed):
        wanted = replace(demand, weights=wish)
        found = fixed if fixed is not None else placement.place(model, wanted, place_on)
        if found is None or not _computes_on(wish, found):
            continue
        plan = _with_tower(_plan(model, wanted, found, limits), model, machine)
        plan = _with_row_kernels(plan, machine)
        if plan.fits:
            reasons = (dtype_reason, why, *_reasons(model, wanted, plan, limits))
            return replace(plan, reasons=reasons)
    # Nothing fits: say what the smallest form would need, and what to change.
    wish, why = choices[-1]
    wanted = replace(demand, weights=wish)
    plan = _plan(model, wanted, fixed or {"": fastest}, limits)
    return replace(
        plan,
        fits=False,
        reasons=(dtype_reason, why, *_reasons(model, wanted, plan, limits)),
        ways=tuple(islice(_ways(model, wanted, limits, machine, fixed), MOST_WAYS)),
    )


# --- wishes to values ---


def _context(model: Architecture, wanted: int | None, name: str) -> int:
    if wanted is None:
        return min(DEFAULT_CONTEXT_TOKENS, model.context_tokens)
    _check_counts(context_tokens=wanted)
    if wanted > model.context_tokens:
        raise LoadError(
            f"{name!r} was made for {model.context_tokens:,} tokens of context; {wanted:,} were "
            "asked for. Ask for fewer."
        )
    return wanted


def _check_counts(**counts: int) -> None:
    for what, count in counts.items():
        least = 0 if what == "images" else 1
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise LoadError(f"{what} is {count!r}; it must be a whole number of at least {least}.")


def _arithmetic(weights: str, device: str, machine: Machine) -> tuple[str, str]:
    """Return the dtype to compute in, and why."""
    if weights in DTYPES:
        return DTYPES[weights], f"{DTYPES[weights]}: you asked for weights={weights!r}."
    if weights == "w16":
        return "float32", "float32: what weights of 16 bits are multiplied in."
    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= len(machine.gpus):
        return "bfloat16", f"bfloat16: {device} is taken for an Ampere GPU or a newer one."
    if device in ("cpu", DISK) and not machine.cpu_flags:
        return "float32", "float32: nothing says that this processor computes in bfloat16."
    return hardware.choose_dtype("cpu" if device == DISK else device, machine)


def _storage(
    weights: str,
    config: Mapping[str, Any],
    dtype: str,
    device: str,
    machine: Machine,
    fast_paths: bool,
) -> Iterator[tuple[str, str]]:
    """Yield ways to store the weights, best first, each with its reason."""
    full = STORED[dtype]
    if weights != "auto":
        yield weights, f"{weights} weights: you asked for them."
        return
    stored = config.get("quantization_config")
    if isinstance(stored, Mapping) and stored.get("load_in_4bit"):
        yield "nf4", "nf4 weights: the checkpoint is stored in 4 bits."
        return
    on_cpu = device in ("cpu", DISK)
    if full == "fp32" and on_cpu and fast_paths and _has_16_bits(config):
        yield (
            "w16",
            (
                "w16 weights: bfloat16, as the checkpoint has them, multiplied in float32: its "
                "numbers, and half as much to hold and to read for each token."
            ),
        )
    yield full, f"{full} weights: they fit as they are."
    eight = f"int8 weights: in {full} they would not fit; 8 bits lose the least."
    if device.startswith("cuda"):
        why = "on a GPU, bitsandbytes' 4 bits are also made for speed."
        yield "nf4", f"nf4 weights: in {full} they would not fit; {why}"
    elif device == "mps":
        yield "int8", eight + " 4 bits need CUDA or a CPU (bitsandbytes)."
    else:
        yield "int8", eight
        if machine.cpu_flags & INT4_CPU_FLAGS:
            yield "int4", f"int4 weights: in {full} they would not fit; nor would 8 bits."
        yield "nf4", f"nf4 weights: in {full} they would not fit; nor would other forms."


def _has_16_bits(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says that its weights are bfloat16."""
    nested = config.get("text_config")
    stated = {
        part.get(key)
        for part in (config, nested if isinstance(nested, Mapping) else {})
        for key in ("dtype", "torch_dtype")
    }
    return stated & {"bfloat16", "float32"} == {"bfloat16"}


def _computes_on(weights: str, device_map: Mapping[str, str]) -> bool:
    """Whether every device of a map has kernels for a kind of weights."""
    return weights not in CPU_ONLY or {*device_map.values()} <= {"cpu", DISK}


def _fixed_map(
    model: Architecture, device_map: str | Mapping[str, str], name: str
) -> dict[str, str] | None:
    """Return the map that was asked for, checked; None for "auto"."""
    if device_map == "auto":
        return None
    if isinstance(device_map, str):
        return {"": device_map}
    placement.check_map(model, device_map, name)
    return dict(device_map)


def _attempts(
    choices: list[tuple[str, str]], limits: Mapping[str, int], fixed: Mapping[str, str] | None
) -> Iterator[tuple[dict[str, int], str, str]]:
    """Yield (devices, storage, reason): all storages on the fast devices before slower ones."""
    fast = {device: limit for device, limit in limits.items() if device not in ("cpu", DISK)}
    levels = [fast] if fast else []
    if "cpu" in limits:
        levels.append({device: limit for device, limit in limits.items() if device != DISK})
    levels.append(dict(limits))
    for number, level in enumerate(levels if fixed is None else levels[-1:]):
        # Once slower devices are needed, the smallest storage needs least of them.
        for wish, why in choices if number == 0 else reversed(choices):
            yield level, wish, why


def _plan(
    model: Architecture, demand: Demand, device_map: Mapping[str, str], limits: Mapping[str, int]
) -> LoadPlan:
    used = placement.device_bytes(model, demand, device_map)
    return LoadPlan(
        dtype=demand.dtype,
        weights=demand.weights,
        table=placement.table_form(demand, placement.owner("lm_head", device_map) or "cpu"),
        fast_paths=demand.fast_paths,
        device_map=dict(device_map),
        bytes_by_device=used,
        limits_by_device=dict(limits),
        fits=all(each.total <= limits.get(device, 0) for device, each in used.items()),
        context_tokens=demand.context_tokens,
    )


def _with_tower(plan: LoadPlan, model: Architecture, machine: Machine) -> LoadPlan:
    """Let the tower attend in pieces where torch's own attention is slow: bfloat16 on a CPU."""
    tower = placement.owner("model.vision_tower", plan.device_map)
    pieces = (
        plan.fast_paths
        and model.vision is not None
        and plan.dtype == "bfloat16"
        and placement.computing(tower or "") == "cpu"
        and "avx512_bf16" in machine.cpu_flags
    )
    return replace(plan, tower_in_pieces=pieces)


def _with_row_kernels(plan: LoadPlan, machine: Machine) -> LoadPlan:
    """Let kernels of ours multiply a few rows in bfloat16, where the processor has it."""
    head = placement.owner("lm_head", plan.device_map)
    has = (
        plan.fast_paths
        and (plan.weights, plan.dtype) == ("bf16", "bfloat16")
        and placement.computing(head or "cpu") == "cpu"
        and "avx512_bf16" in machine.cpu_flags
    )
    return replace(plan, row_kernels=has)


# --- reasons and ways ---


def _reasons(
    model: Architecture, demand: Demand, plan: LoadPlan, limits: Mapping[str, int]
) -> Iterator[str]:
    devices = list(plan.bytes_by_device)
    if not plan.fits:
        yield (
            "It does not fit: "
            + "; ".join(
                f"{device} would need {gib(each.total)} and has {gib(limits.get(device, 0))}"
                for device, each in plan.bytes_by_device.items()
                if each.total > limits.get(device, 0)
            )
            + "."
        )
    elif len(devices) == 1:
        yield f"Everything is on {devices[0]}."
    else:
        owners = Counter(placement.owner(layer.name, plan.device_map) for layer in model.layers)
        counts = ", ".join(f"{count} on {device}" for device, count in owners.items())
        home = placement.owner(model.home[0].name, plan.device_map)
        yield (
            f"Decoder layers: {counts}. The embeddings, which are the output matrix too, "
            f"{'the vision tower ' if model.vision else ''}and the last norm are on {home}."
        )
    if "cpu" in devices and len(devices) > 1 and devices[0] != "cpu":
        yield "What is on the CPU computes there: slower than a GPU, quicker than moving weights."
    if DISK in devices:
        yield (
            "What is on disk is a memory map, read while computing: it works, and is as slow as "
            "the disk once memory is short."
        )
    sliding = sum(window is not None for window in model.windows)
    yield (
        f"Keys and values for {demand.sequences} x {demand.context_tokens:,} tokens: "
        f"{len(model.layers) - sliding} global layers keep all of them, {sliding} sliding layers "
        "their window."
    )
    if demand.weights in ("nf4", "int8", "int4"):
        stays = "tower" if plan.table else "embeddings, tower"
        also = f", embeddings and output matrix {plan.table}" if plan.table else ""
        yield (
            f"Only the matrices of the decoder layers are {demand.weights}{also}; {stays}, "
            f"projector and norms stay {STORED[demand.dtype]}: they lose more than they save."
        )
    if plan.tower_in_pieces:
        yield (
            "The tower attends to a picture in pieces: in bfloat16 this processor is faster so, "
            "and rounds a little differently."
        )
    if plan.row_kernels:
        yield (
            "A few tokens at once are multiplied by kernels that are compiled here, if there is a "
            "C compiler: they read weights as fast as memory gives them, and round a little "
            "differently."
        )
    reserving = [(d, held) for d, held in plan.bytes_by_device.items() if held.reserve]
    yield (
        "Reserved: "
        + ", ".join(f"{gib(held.reserve)} on {device}" for device, held in reserving)
        + " for the runtime and activations."
    )


def _ways(
    model: Architecture,
    demand: Demand,
    limits: Mapping[str, int],
    machine: Machine,
    fixed: Mapping[str, str] | None,
) -> Iterator[str]:
    """Yield the changes that make the model fit, one wish changed at a time, least given up first.

    Each was tried on the planner itself; a map that was asked for stays as it is.
    """
    used = [device for device in limits if fixed is None or device in fixed.values()]
    on_cpu = used[0] in ("cpu", DISK)
    four = "int4" if on_cpu and machine.cpu_flags & INT4_CPU_FLAGS else "nf4"
    quantised = ("int8",) if used[0] == "mps" else ("int8", four)
    full = STORED[_arithmetic("auto", used[0], machine)[0]]
    everything = tuple(dict.fromkeys((full, *quantised, demand.weights)))

    def fits(
        wish: Demand,
        limits: Mapping[str, int],
        storages: tuple[str, ...],
        fixed: Mapping[str, str] | None = fixed,
    ) -> str | None:
        """Return the first of `storages` that fits."""
        for weights in storages:
            dtype, _ = _arithmetic(weights, used[0], machine)
            wanted = replace(wish, weights=weights, dtype=dtype)
            found = fixed if fixed is not None else placement.place(model, wanted, limits)
            if found is None or not _computes_on(weights, found):
                continue
            if _plan(model, wanted, found, limits).fits:
                return weights
        return None

    if fixed is not None and (weights := fits(demand, limits, everything, None)):
        yield f"device_map='auto', in {weights}"
    if weights := fits(demand, limits, quantised):
        yield f"weights='{weights}'"
    if demand.sequences > 1 and (weights := fits(replace(demand, sequences=1), limits, everything)):
        yield f"one conversation at a time, in {weights}"
    context = demand.context_tokens // 2
    while context >= SHORTEST_CONTEXT_TOKENS:
        if weights := fits(replace(demand, context_tokens=context), limits, everything):
            yield f"a context of {context:,} tokens, in {weights}"
            break
        context //= 2
    if fixed is not None:
        return
    gpus = [device for device in limits if device.startswith("cuda")]
    for more in range(1, MOST_MORE_GPUS + 1) if gpus else ():
        if weights := fits(demand, with_more_gpus(limits, more), everything):
            size = gib(limits[gpus[-1]])
            yield f"{more} more GPU{'s' * (more > 1)} of {size}, in {weights}"
            break
    slower = [device for device in ("cpu", DISK) if device not in limits]
    # Apple's GPU shares the CPU's memory: nothing is gained there.
    for count in range(1, len(slower) + 1) if used[0] != "mps" else ():
        grown = fastest_first({**limits, **dict.fromkeys(slower[:count], UNLIMITED_BYTES)})
        if weights := fits(demand, grown, quantised[-1:]):
            yield f"layers on {' and '.join(slower[:count])} as well, in {weights} (slower)"
            break
    if not gpus and (named := _smallest_gpus(model, demand)):
        yield named


def _smallest_gpus(model: Architecture, demand: Demand) -> str | None:
    """Return the well-known GPUs with the least memory in all that hold the model, as a way."""
    sets = [(count, name) for count in GPU_COUNTS for name in hardware.KNOWN_GPUS]
    sets.sort(key=lambda each: each[0] * hardware.KNOWN_GPUS[each[1]].memory_bytes)
    for count, name in sets:
        text = f"{count}x{name}"
        machine = hardware.known_machine(text)
        limits = {f"cuda:{number}": gpu.free_bytes for number, gpu in enumerate(machine.gpus)}
        dtype = hardware.choose_dtype("cuda:0", machine)[0]
        for weights in (STORED[dtype], "nf4"):
            if placement.place(model, replace(demand, weights=weights, dtype=dtype), limits):
                return f"a machine with {text}, in {weights}"
    return None


def with_more_gpus(limits: Mapping[str, int], more: int) -> dict[str, int]:
    """Return limits with as many more GPUs, each like the last one."""
    last = [device for device in limits if device.startswith("cuda")][-1]
    number = int(last.partition(":")[2])
    added = {f"cuda:{number + n}": limits[last] for n in range(1, more + 1)}
    return fastest_first({**limits, **added})
