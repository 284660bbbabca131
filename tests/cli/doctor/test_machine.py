"""What the doctor says of processors, memory and GPUs."""

import shlex

import pytest

from gemma3vl_app.cli.checks import machine, packages
from gemma3vl_app.cli.checks.torch_facts import TorchFacts, ask_torch
from gemma3vl_app.hardware import Gpu
from tests.cli.doctor.looking import CPU_ONLY, CUDA, GIB, named, seen
from tests.planning.machines import WITH_BF16, apple, gpus, processor


def test_a_processor_without_bf16_is_told_to_compute_in_float32():
    assert "float32" in machine.arithmetic(processor(16)).message
    assert (
        "bfloat16: this processor has AVX512-BF16"
        in machine.arithmetic(processor(16, WITH_BF16)).message
    )


def test_little_memory_is_a_warning():
    assert machine.memory(processor(16)).state == "good"
    assert machine.memory(processor(1)).state == "warning"


def test_gpus_that_torch_can_use_are_good():
    checks = machine.gpus(gpus("2xrtx-4090"), CUDA, system="Linux")
    assert seen(checks) == {"cuda:0": "good", "cuda:1": "good", "torch on GPU": "good"}
    assert "RTX 4090, 23.5 GiB of 24.0 GiB" in checks[0].message


def test_a_gpu_that_another_program_fills_is_a_warning():
    full = processor(16)
    full = type(full)(**{**vars(full), "gpus": (Gpu("L4", (8, 9), 22 * GIB, 2 * GIB),)})
    check = named(machine.gpus(full, CUDA, system="Linux"), "cuda:0")
    assert (check.state, check.next_step) == ("warning", "nvidia-smi")


def test_a_torch_for_processors_beside_a_gpu_is_a_warning_with_the_pip_line():
    checks = machine.gpus(gpus("t4"), CPU_ONLY, system="Linux", pinned="torch==2.13.0")
    check = named(checks, "torch on GPU")
    assert check.state == "warning" and "T4 lies idle" in check.message
    words = shlex.split(check.next_step)
    assert words[:2] == ["pip", "install"] and words[-1] == "torch==2.13.0"
    windows = named(machine.gpus(gpus("t4"), CPU_ONLY, system="Windows"), "torch on GPU")
    assert windows.next_step == machine.TORCH_GUIDE


def test_a_driver_too_old_for_torch_is_a_warning():
    old = TorchFacts(cuda_build="13.0")
    check = named(machine.gpus(gpus("t4"), old, system="Linux"), "torch on GPU")
    assert check.state == "warning" and "driver" in check.message


def test_without_gpus_all_is_well_unless_they_are_hidden_or_lost():
    def state(here=None, torch=CPU_ONLY, **options):
        (check,) = machine.gpus(here or processor(16), torch, system="Linux", **options)
        return check.state

    assert state() == "good"
    assert state(hidden=True) == "good"
    assert state(hidden=True, driver_tool=True) == "warning"
    assert state(driver_tool=True) == "warning"
    assert state(torch=TorchFacts(cuda_usable=True, gpus=2)) == "good"  # AMD's
    assert state(apple(16), TorchFacts(mps=True)) == "good"
    assert state(apple(16)) == "warning"


def test_torch_is_asked_in_its_own_process():
    facts = ask_torch()
    assert facts.error == "" and not facts.cuda_usable


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os; os.kill(os.getpid(), 11)", "it crashes (signal 11)"),
        ("import time; time.sleep(9)", "no answer within 1 s"),
        ("raise SystemExit(7)", "exit code 7"),
        (
            "from pathlib import Path; raise OSError(str(Path.home() / 'lib.so'))",
            "OSError: ~/lib.so",
        ),
        ("print('hello')", "its answer cannot be read"),
        ("", "its answer cannot be read"),
    ],
)
def test_a_torch_that_does_not_start_is_broken_with_the_reason(question, told):
    facts = ask_torch(question, limit_sec=1 if "sleep" in question else 20)
    check = packages.torch_starts(facts, "torch==2.13.0")
    assert check.state == "broken" and told in check.message
    assert check.next_step == 'pip install --force-reinstall "torch==2.13.0"'
