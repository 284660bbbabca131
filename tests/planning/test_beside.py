"""What fits beside a model that is loaded, and which loads wait for one another."""

from dataclasses import replace

from gemma3vl_app import hardware
from gemma3vl_app.planning import plan
from gemma3vl_app.planning.beside import devices_of, fits_beside, overlap

ROOMY = hardware.Machine(memory_bytes=200 << 30, available_bytes=200 << 30)


def test_what_fits_beside_depends_on_what_is_left():
    wanted = plan("4b-it", weights="bf16", machine=ROOMY)
    need = wanted.bytes_by_device["cpu"].total
    for room, fits in ((need * 2, True), (need // 2, False)):
        machine = hardware.Machine(memory_bytes=200 << 30, available_bytes=room)
        assert fits_beside("4b-it", {"weights": "bf16"}, machine, wanted) is fits
    assert not fits_beside("no such model", {}, ROOMY, None)


def test_a_model_that_would_be_placed_worse_beside_another_does_not_fit():
    gpu = hardware.KNOWN_GPUS["rtx-4090"]
    machine = hardware.Machine(
        memory_bytes=64 << 30,
        available_bytes=64 << 30,
        gpus=(replace(gpu, free_bytes=6 << 30),),
    )
    other = plan("12b-it", machine=replace(machine, gpus=(gpu,)))
    assert plan("4b-it", machine=machine).fits
    assert not fits_beside("4b-it", {}, machine, other)
    assert fits_beside("4b-it", {"weights": "nf4"}, machine, other)


def test_devices_of_a_wish():
    assert devices_of({}) is None
    assert devices_of({"device_map": "cuda:1"}) == {"cuda:1"}
    assert devices_of({"device_map": {"a": "mps", "b": "disk"}}) == {"cpu"}
    assert devices_of({"max_memory": {"cuda:0": "1GiB", "cpu": 3}}) == {"cuda:0", "cpu"}
    assert overlap(None, frozenset(["cpu"]))
    assert not overlap(frozenset(["cuda:0"]), frozenset(["cpu"]))
