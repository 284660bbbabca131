"""What the planner decides for the machines people have, and what holds for every machine."""

import dataclasses
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma3vl_app import catalog, hardware
from gemma3vl_app.errors import LoadError
from gemma3vl_app.hardware import Gpu, Machine
from gemma3vl_app.planning import plan, plan_for
from gemma3vl_app.planning.architecture import architecture
from gemma3vl_app.planning.placement import owner
from gemma3vl_app.planning.plan import MOST_WAYS, with_more_gpus
from gemma3vl_app.planning.wishes import UNLIMITED_BYTES, device_limits, parse_max_memory
from tests.planning.machines import GIB, WITH_BF16, apple, gpus, processor

SIZES = ("4b", "12b", "27b")
MODELS = {size: architecture(catalog.published_config(size)) for size in SIZES}

# machine: for 4B, 12B and 27B the weights, the dtype, and the devices in use; None: does not fit.
BF16, FP32 = "bfloat16", "float32"
CASES = {
    "1x16": (gpus("rtx-4080"), [("bf16", BF16, 1), ("nf4", BF16, 1), None]),
    "1x24": (gpus("rtx-4090"), [("bf16", BF16, 1), ("nf4", BF16, 1), ("nf4", BF16, 1)]),
    "2x24": (gpus("2xrtx-4090"), [("bf16", BF16, 1), ("bf16", BF16, 2), ("nf4", BF16, 1)]),
    "4x24": (gpus("4xrtx-4090"), [("bf16", BF16, 1), ("bf16", BF16, 2), ("bf16", BF16, 3)]),
    "8x80": (gpus("8xa100-80"), [("bf16", BF16, 1), ("bf16", BF16, 1), ("bf16", BF16, 1)]),
    "t4": (gpus("t4"), [("nf4", FP32, 1), None, None]),
    "2xt4": (gpus("2xt4"), [("fp32", FP32, 2), ("nf4", FP32, 2), ("nf4", FP32, 2)]),
    "mps 16": (apple(16), [("bf16", BF16, "mps"), None, None]),
    "mps 64": (apple(64), [("bf16", BF16, "mps"), ("bf16", BF16, "mps"), ("int8", BF16, "mps")]),
    "cpu bf16": (
        processor(32, WITH_BF16),
        [("bf16", BF16, "cpu"), ("bf16", BF16, "cpu"), ("int8", BF16, "cpu")],
    ),
    "cpu": (processor(32), [("w16", FP32, "cpu"), ("w16", FP32, "cpu"), ("int8", FP32, "cpu")]),
    "cpu + disk": (
        processor(16),
        [("w16", FP32, "cpu"), ("int4", FP32, "cpu"), ("nf4", FP32, "cpu disk")],
    ),
}
DECISIONS = [
    pytest.param(size, machine, decision, id=f"{size} on {name}")
    for name, (machine, decisions) in CASES.items()
    for size, decision in zip(SIZES, decisions, strict=True)
]


def check_invariants(found, model):
    """What has to hold for every plan, whether it fits or not."""
    for module in model.names:
        owners = [key for key in found.device_map if key in ("", module)]
        assert len(owners) == 1, module
    embeddings = next(name for name in model.names if name.endswith("embed_tokens"))
    assert owner("lm_head", found.device_map) == owner(embeddings, found.device_map)
    assert set(found.device_map) <= {"", *model.names}
    over = [d for d, b in found.bytes_by_device.items() if b.total > found.limits_by_device[d]]
    assert found.fits == (not over)
    weights = sum(held.weights for held in found.bytes_by_device.values())
    assert weights >= model.parameters / 2
    assert all(reason and reason.endswith(".") for reason in found.reasons)
    assert len(found.reasons) >= 4
    assert (found.ways == ()) if found.fits else len(found.ways) <= MOST_WAYS


@pytest.mark.parametrize(("size", "machine", "decision"), DECISIONS)
def test_the_decision(size, machine, decision):
    found = plan(f"{size}-it", machine=machine)
    check_invariants(found, MODELS[size])
    if decision is None:
        assert not found.fits
        return
    weights, dtype, where = decision
    devices = [f"cuda:{n}" for n in range(where)] if isinstance(where, int) else where.split()
    assert (found.weights, found.dtype, sorted(found.bytes_by_device)) == (weights, dtype, devices)
    assert found.fits


@pytest.mark.parametrize("weights", ["w16", "int4"])
def test_kinds_that_only_processors_compute_are_refused_elsewhere(weights):
    for machine, other in ((gpus("rtx-4090"), "nf4"), (apple(64), "int8")):
        with pytest.raises(LoadError, match=f"made for processors.*{other}.*or device_map='cpu'"):
            plan("4b-it", weights=weights, machine=machine)
    assert plan("4b-it", weights=weights, machine=processor(32)).fits
    assert plan("4b-it", weights=weights, device_map="cpu", machine=processor(32)).fits


def test_a_kind_for_processors_is_never_spread_over_a_gpu():
    machine = replace(gpus("rtx-3060"), available_bytes=64 * GIB, memory_bytes=64 * GIB)
    found = plan("27b-it", machine=machine)
    assert found.fits and found.weights not in ("w16", "int4")


@pytest.mark.parametrize("weights", ["int8", "nf4", "int4"])
def test_the_output_matrix_of_quantised_models_has_8_bits_on_a_processor(weights):
    found = plan("4b-it", weights=weights, machine=processor(32))
    exact = plan("4b-it", weights=weights, machine=processor(32), fast_paths=False)
    assert (found.table, exact.table) == ("int8", "")
    saved = exact.bytes_by_device["cpu"].weights - found.bytes_by_device["cpu"].weights
    assert saved == 262_208 * (2560 * 3 - 4)  # from 4 bytes a weight to 1, and a scale a row
    assert any("embeddings and output matrix int8" in reason for reason in found.reasons)
    assert plan("4b-it", weights="nf4", machine=gpus("rtx-4090")).table == ""


def test_without_fast_paths_nothing_faster_is_chosen():
    assert plan("4b-it", machine=processor(32), fast_paths=False).weights == "fp32"
    assert plan("4b-it", machine=processor(32)).fast_paths
    assert not plan("4b-it", weights="fp32", machine=processor(32)).fast_paths  # the reference


@pytest.mark.parametrize(
    ("wishes", "machine", "in_pieces"),
    [
        ({}, processor(32, WITH_BF16), True),
        ({"fast_paths": False}, processor(32, WITH_BF16), False),
        ({"weights": "fp32"}, processor(32, WITH_BF16), False),
        ({"weights": "bf16"}, processor(32), False),  # asked for where it is emulated
        ({}, processor(32), False),
        ({}, gpus("rtx-4090"), False),
        ({}, apple(64), False),
    ],
)
def test_the_tower_attends_in_pieces_in_bfloat16_on_a_processor_that_has_it(
    wishes, machine, in_pieces
):
    found = plan("4b-it", machine=machine, **wishes)
    assert found.tower_in_pieces == in_pieces
    assert any("in pieces" in reason for reason in found.reasons) == in_pieces
    assert not plan("1b-it", machine=processor(32, WITH_BF16)).tower_in_pieces


@pytest.mark.parametrize(
    ("wishes", "machine", "by_kernels"),
    [
        ({"weights": "bf16"}, processor(32, WITH_BF16), True),
        ({"weights": "bf16", "fast_paths": False}, processor(32, WITH_BF16), False),
        ({"weights": "int8"}, processor(32, WITH_BF16), False),  # which has them in any case
        ({"weights": "bf16"}, processor(32), False),
        ({"weights": "bf16"}, gpus("rtx-4090"), False),
        ({"weights": "bf16"}, apple(64), False),
    ],
)
def test_a_few_rows_go_through_kernels_in_bfloat16_on_a_processor_that_has_it(
    wishes, machine, by_kernels
):
    found = plan("4b-it", machine=machine, **wishes)
    assert found.row_kernels == by_kernels
    assert any("kernels that are compiled" in reason for reason in found.reasons) == by_kernels


def test_weights_of_32_bits_are_not_cut_to_16():
    config = catalog.published_config("4b") | {"torch_dtype": "float32"}
    found = plan_for(config, name="mine", machine=processor(32))
    assert found.weights == "fp32"


def test_the_keys_and_values_lie_with_their_layers():
    found = plan("27b-it", machine=gpus("4xrtx-4090"))
    model = MODELS["27b"]
    for device, held in found.bytes_by_device.items():
        here = [n for n, each in enumerate(model.layers) if found.device_map[each.name] == device]
        kept = sum(model.windows[n] is None for n in here)
        # 2 (keys, values) x 8,192 tokens x 16 heads x 128 wide x 2 bytes
        assert held.kv_global == kept * 2 * 8192 * 16 * 128 * 2
        assert (held.logits > 0) == (held.vision > 0) == (device == "cuda:0")


def test_what_is_on_disk_keeps_its_keys_and_values_in_memory():
    found = plan("27b-it", machine=processor(16))
    disk = found.bytes_by_device["disk"]
    assert disk.weights == disk.total > 0
    whole = plan("27b-it", weights="nf4", machine=processor(64)).bytes_by_device["cpu"]
    assert found.bytes_by_device["cpu"].kv_global == whole.kv_global


def test_gpus_are_filled_before_a_small_memory_and_a_disk_behind_them():
    sizes = {"cuda:0": "18GiB", "cpu": "2GiB", "disk": "1TiB"}
    found = plan("27b-it", max_memory=sizes)
    assert found.fits
    assert next(iter(found.bytes_by_device)) == "cuda:0"
    assert found.bytes_by_device["cuda:0"].total > 16 * GIB


def test_ten_gpus_are_used_in_the_order_of_their_numbers():
    found = plan("27b-it", weights="bf16", max_memory={f"cuda:{n}": "12GiB" for n in range(12)})
    assert list(found.limits_by_device) == [f"cuda:{n}" for n in range(12)]
    assert "cuda:2" in found.bytes_by_device


@pytest.mark.parametrize("device", ["cpu", "disk"])
def test_a_mac_computes_on_its_cpu_when_asked_to(device):
    found = plan("4b-it", machine=apple(64), device_map=device)
    assert found.fits
    assert found.dtype == FP32
    assert "cpu" in found.bytes_by_device and "mps" not in found.bytes_by_device


def test_the_arithmetic_is_that_of_the_device_in_use():
    machine = dataclasses.replace(processor(64), gpus=gpus("rtx-4090").gpus)
    assert plan("4b-it", machine=machine).dtype == BF16
    assert plan("4b-it", machine=machine, device_map="cpu").dtype == FP32


# --- ways ---

NO_FIT = [
    pytest.param(name, wishes, id=f"{name} {wishes}")
    for name, wishes in (
        ("27b-it", {"machine": gpus("rtx-4080")}),
        ("27b-it", {"machine": gpus("t4")}),
        ("12b-it", {"machine": apple(16)}),
        ("27b-it", {"machine": apple(24)}),
        ("27b-it", {"machine": gpus("t4"), "weights": "bf16"}),
        ("12b-it", {"machine": gpus("t4"), "weights": "bf16"}),
        ("27b-it-qat-q4_0", {"machine": gpus("rtx-4090"), "weights": "bf16"}),
        ("12b-it", {"machine": gpus("t4"), "weights": "fp32"}),
        ("4b-it", {"max_memory": {"cuda:0": "4GiB"}}),
        ("4b-it", {"max_memory": {"cuda:3": "10GiB"}, "sequences": 30}),
        ("4b-it", {"max_memory": {"cuda:0": "6GiB"}, "context_tokens": 131_072}),
        ("27b-it", {"max_memory": {"cpu": "20GiB"}}),
        ("27b-it", {"max_memory": {"cuda:0": "12GiB", "disk": "100GiB"}}),
        (
            "12b-it",
            {"max_memory": {"cuda:0": "8GiB", "cuda:1": "20GiB"}, "device_map": "cuda:0"},
        ),
        ("12b-it", {"machine": gpus("rtx-4080"), "device_map": "cuda:0", "weights": "bf16"}),
        ("12b-it", {"max_memory": {"cuda:0": "8GiB"}, "images": 2000}),
    )
]


def apply(name, wishes, way, limits, machine):
    """Do what a way says; return the plan then."""
    wishes = dict(wishes)
    if storage := re.search(r", in (\w+)(?: \(slower\))?$", way):
        wishes["weights"], way = storage[1], way[: storage.start()]
    if way == "device_map='auto'":
        wishes["device_map"] = "auto"
    elif found := re.fullmatch(r"weights='(\w+)'", way):
        wishes["weights"] = found[1]
    elif way == "one conversation at a time":
        wishes["sequences"] = 1
    elif found := re.fullmatch(r"a context of ([\d,]+) tokens", way):
        wishes["context_tokens"] = int(found[1].replace(",", ""))
    elif found := re.fullmatch(r"(\d) more GPUs? of [\d.]+ GiB", way):
        wishes["max_memory"] = with_more_gpus(limits, int(found[1]))
    elif found := re.fullmatch(r"layers on ([\w ]+) as well", way):
        more = dict.fromkeys(found[1].split(" and "), UNLIMITED_BYTES)
        wishes["max_memory"] = {**limits, **more}
    elif found := re.fullmatch(r"a machine with (\d+x[\w-]+)", way):
        wishes = {k: v for k, v in wishes.items() if k not in ("max_memory", "device_map")}
        wishes["machine"] = hardware.known_machine(found[1])
    elif found := re.fullmatch(r"the smaller model (\S+)", way):
        name = found[1]
        wishes["device_map"] = "auto"
    else:
        raise AssertionError(f"unknown way {way!r}")
    return plan(name, **wishes)


@pytest.mark.parametrize(("name", "wishes"), NO_FIT)
def test_each_way_to_make_it_fit_does(name, wishes):
    found = plan(name, **wishes)
    assert not found.fits
    check_invariants(found, MODELS[name.split("-")[0]])
    assert any("does not fit" in reason for reason in found.reasons)
    assert found.ways
    for way in found.ways:
        changed = apply(name, wishes, way, found.limits_by_device, wishes.get("machine"))
        assert changed.fits, way


# --- every machine ---

SOME_GPUS = st.lists(
    st.builds(
        lambda gib, capability: Gpu("G", capability, gib * GIB, gib * GIB),
        st.integers(2, 100),
        st.sampled_from([(7, 0), (7, 5), (8, 0), (9, 0)]),
    ),
    max_size=5,
)
MACHINES = st.builds(
    lambda cards, mib, flags, mps: Machine(
        gpus=tuple(cards),
        cpu_flags=flags,
        memory_bytes=mib << 20,
        available_bytes=mib << 20,
        mps=mps and not cards,
    ),
    SOME_GPUS,
    st.integers(1, 200_000),
    st.sampled_from([frozenset(), frozenset({"avx2"}), WITH_BF16]),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from(SIZES),
    machine=MACHINES,
    weights=st.sampled_from(["auto", "bf16", "fp32", "int8", "nf4"]),
    context=st.integers(1, 131_072),
    sequences=st.integers(1, 8),
    images=st.integers(0, 40),
)
def test_on_every_machine_the_plan_keeps_its_promises(
    size, machine, weights, context, sequences, images
):
    wishes = {"context_tokens": context, "sequences": sequences, "images": images}
    if machine.mps and weights == "nf4":
        weights = "int8"
    found = plan(f"{size}-it", machine=machine, weights=weights, **wishes)
    check_invariants(found, MODELS[size])
    assert weights in ("auto", found.weights)
    assert found.context_tokens == context or context == 8192
    assert found.limits_by_device == device_limits(machine, None)
    for way in found.ways:
        limits = found.limits_by_device
        tried = apply(f"{size}-it", {"machine": machine, **wishes}, way, limits, machine)
        assert tried.fits, way


# --- errors ---


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"weights": "fp16"}, "overflow float16"),
        ({"weights": "float16"}, "overflow float16"),
        ({"weights": "llm.int8"}, "LLM.int8 computes in float16"),
        ({"weights": "load_in_8bit"}, "LLM.int8 computes in float16"),
        ({"weights": "int3"}, "Choose one of"),
        ({"weights": "nf4", "machine": apple(64)}, "Use 'int8'"),
        ({"device_map": "gpu"}, "'gpu' is no device"),
        ({"device_map": "cuda:1", "machine": gpus("t4")}, "this machine has none"),
        ({"device_map": {"": "tpu"}}, "'tpu' is no device"),
        ({"device_map": {"": "cuda:00"}}, "'cuda:00' is no device"),
        ({"max_memory": {"gpu0": "1GiB"}}, "'gpu0' is no device"),
        ({"max_memory": {"cpu": "lots"}}, "'lots' is no size"),
        ({"max_memory": {"cpu": "-5GiB"}}, "is no size"),
        ({"max_memory": {"cpu": "nan"}}, "is no size"),
        ({"max_memory": {"cpu": float("inf")}}, "is no size"),
        ({"max_memory": {"disk": "100GiB"}}, "A disk alone"),
        ({"max_memory": {}}, "names no device"),
        ({"context_tokens": 131_073}, "131,072 tokens"),
        ({"context_tokens": 0}, "at least 1"),
        ({"sequences": 0}, "sequences is 0"),
        ({"images": -1}, "images is -1"),
        ({"images": 1.5}, "images is 1.5"),
        ({"device_map": {"model.language_model": "cpu"}}, "forgets model.vision_tower"),
        ({"device_map": {}}, "forgets"),
        ({"device_map": {"": "cpu", "model.nothing": "cpu"}}, "names 'model.nothing'"),
        ({"device_map": {"": "cpu", "lm_head": "disk"}}, "parts lm_head"),
    ],
)
def test_a_wish_that_makes_no_sense_is_told(wishes, told):
    wishes = {"machine": processor(32), **wishes}
    with pytest.raises(LoadError, match=re.escape(told)) as error:
        plan("4b-it", **wishes)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"hidden_size": "wide"},
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": True},
        {"layer_types": ["full_attention"]},
        {"sliding_window_pattern": 0},
        {"vocab_size": None},
    ],
)
def test_a_config_that_makes_no_sense_is_told(change):
    config = {**catalog.published_config("1b"), **change}
    with pytest.raises(LoadError, match="does not describe a Gemma 3"):
        plan_for(config, name="x", machine=processor(8))


@pytest.mark.parametrize("text", [[], "x", 5])
def test_a_config_of_the_wrong_kind_is_told(text):
    with pytest.raises(LoadError, match="does not describe a Gemma 3"):
        plan_for({"text_config": text}, name="x", machine=processor(8))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("cpu", "is no device and size"),
        ("gpu=1GiB", "'gpu' is no device"),
        ("cpu=lots", "'lots' is no size"),
        ("disk=1GiB", "A disk alone"),
        ("", "is no device and size"),
    ],
)
def test_a_line_of_sizes_that_makes_no_sense_anywhere_is_refused(line, told):
    with pytest.raises(LoadError, match=told):
        parse_max_memory(line)
    assert parse_max_memory("cuda:0=1GiB, cpu=2") == {"cuda:0": "1GiB", "cpu": "2"}
