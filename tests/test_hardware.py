"""Which arithmetic and device a machine gets, for machines that are not here."""

import dataclasses
import time

import pytest

from gemma3vl_app import hardware
from gemma3vl_app.errors import LoadError
from gemma3vl_app.hardware import Gpu, Machine, available_memory_bytes, choose_dtype, default_device

GIB = 2**30
T4 = Gpu("Tesla T4", (7, 5), 16 * GIB, 15 * GIB)
A100 = Gpu("A100", (8, 0), 40 * GIB, 39 * GIB)
PLAIN = Machine(cpu_flags=frozenset({"avx2", "fma"}), memory_bytes=8 * GIB, available_bytes=6 * GIB)


def test_an_ampere_gpu_computes_in_bfloat16():
    dtype, reason = choose_dtype("cuda:0", Machine(gpus=(A100,)))
    assert dtype == "bfloat16"
    assert "A100" in reason and "8.0" in reason


def test_a_turing_gpu_computes_in_float32_and_says_why_not_float16():
    dtype, reason = choose_dtype("cuda", Machine(gpus=(T4,)))
    assert dtype == "float32"
    assert "Tesla T4" in reason and "float16" in reason


def test_the_dtype_is_that_of_the_gpu_asked_about():
    both = Machine(gpus=(T4, A100))
    assert choose_dtype("cuda:0", both)[0] == "float32"
    assert choose_dtype("cuda:1", both)[0] == "bfloat16"


def test_an_apple_gpu_computes_in_bfloat16():
    assert choose_dtype("mps", Machine(mps=True))[0] == "bfloat16"


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_with_bf16_instructions_computes_in_bfloat16(flag):
    dtype, reason = choose_dtype("cpu", Machine(cpu_flags=frozenset({"avx2", flag})))
    assert dtype == "bfloat16"
    assert flag.upper().replace("_", "-") in reason


def test_a_plain_cpu_computes_in_float32():
    flags = frozenset({"avx2", "avx512f", "avx512_vnni"})
    assert choose_dtype("cpu", Machine(cpu_flags=flags))[0] == "float32"


def test_a_gpu_is_preferred_to_apple_to_the_cpu():
    assert default_device(PLAIN) == "cpu"
    assert default_device(dataclasses.replace(PLAIN, mps=True)) == "mps"
    assert default_device(dataclasses.replace(PLAIN, gpus=(T4,))) == "cuda:0"


def test_free_memory_is_that_of_the_device():
    machine = dataclasses.replace(PLAIN, gpus=(T4, A100))
    assert available_memory_bytes("cpu", machine) == 6 * GIB
    assert available_memory_bytes("cuda:1", machine) == 39 * GIB


def test_the_flags_come_from_cpuinfo():
    text = "processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nbugs\t:\n\nflags\t: fpu\n"
    assert hardware._cpu_flags(text) == {"fpu", "avx2", "avx512_bf16"}


def test_this_machine_is_described_within_its_bounds():
    machine = hardware.detect()
    assert machine.cpu_count >= 1
    assert 0 < machine.available_bytes <= machine.memory_bytes


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_tightest_cgroup_v2_limit_counts_and_page_cache_is_room(tmp_path):
    write(tmp_path / "a/b", memory__max="max\n", memory__current="900\n")
    write(
        tmp_path / "a",
        memory__max="1000\n",
        memory__current="900\n",
        memory__stat="anon 5\ninactive_file 300\n",
    )
    assert hardware._cgroup_memory(tmp_path, "0::/a/b\n") == (1000, 400)


def test_a_container_that_sees_only_its_own_cgroup_root_is_bounded_by_it(tmp_path):
    write(tmp_path, memory__max="5000", memory__current="1000")
    assert hardware._cgroup_memory(tmp_path, "0::/docker/abc\n") == (5000, 4000)


def test_cgroup_v1_limits_count_and_its_no_limit_does_not(tmp_path):
    lines = "5:cpu,cpuacct:/x\n4:memory:/x\n"
    write(
        tmp_path / "memory/x", **{"memory__limit_in_bytes": "700", "memory__usage_in_bytes": "900"}
    )
    assert hardware._cgroup_memory(tmp_path, lines) == (700, 0)
    write(tmp_path / "memory/x", memory__limit_in_bytes="9223372036854771712")
    assert hardware._cgroup_memory(tmp_path, lines)[0] == hardware.UNLIMITED_BYTES


def test_no_cgroups_means_no_limit(tmp_path):
    unlimited = hardware.UNLIMITED_BYTES
    assert hardware._cgroup_memory(tmp_path, "") == (unlimited, unlimited)


# --- machines by name, and what the driver's own tool says ---


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [("t4", 1, "T4"), ("2xrtx-4090", 2, "RTX 4090"), (" 8 x A100-80 ", 8, "A100 80 GB")],
)
def test_a_machine_is_known_by_the_name_of_its_gpus(text, count, name):
    machine = hardware.known_machine(text)
    assert [gpu.name for gpu in machine.gpus] == [name] * count
    assert machine.gpus[0].free_bytes < machine.gpus[0].memory_bytes
    assert (machine.memory_bytes, machine.available_bytes) == (0, 0)


def test_rtx_4090_may_be_written_with_a_space():
    assert hardware.known_machine("RTX 4090") == hardware.known_machine("rtx-4090")


@pytest.mark.parametrize("text", ["", "t5", "0xt4", "65xt4", "x", "2x", "-1xt4", "999xt4"])
def test_an_unknown_gpu_is_told_with_the_known_ones(text):
    with pytest.raises(LoadError, match="Known are t4"):
        hardware.known_machine(text)


def test_every_known_gpu_has_sensible_numbers():
    for name in hardware.KNOWN_GPUS:
        (gpu,) = hardware.known_machine(name).gpus
        assert 8 * GIB < gpu.free_bytes < 200 * GIB
        assert (7, 0) <= gpu.capability <= (12, 9)


def test_a_line_of_nvidia_smi_is_read():
    line = "Tesla T4, 7.5, 15360 MiB, 14900 MiB"
    assert hardware._parse_gpu(line) == Gpu("Tesla T4", (7, 5), 15360 << 20, 14900 << 20)
    assert hardware._parse_gpu("A, B, 8.0, 2 MiB, 1 MiB").name == "A, B"


@pytest.mark.parametrize("line", ["", "T4", "T4, 7.5, 15360 MiB", "T4, [N/A], 1 MiB, 1 MiB"])
def test_a_strange_line_is_a_value_error(line):
    with pytest.raises(ValueError):
        hardware._parse_gpu(line)


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """Put a program called nvidia-smi first on PATH; it notes its arguments in a file."""

    def install(script):
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return tmp_path / "arguments"

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


TWO = "echo 'Tesla T4, 7.5, 15360 MiB, 14900 MiB'; echo 'NVIDIA L4, 8.9, 23034 MiB, 22500 MiB'"


def test_the_drivers_tool_tells_of_the_gpus(nvidia_smi):
    nvidia_smi(TWO)
    found = hardware.detect_without_torch()
    assert [(gpu.name, gpu.capability) for gpu in found.gpus] == [
        ("Tesla T4", (7, 5)),
        ("NVIDIA L4", (8, 9)),
    ]
    assert found.gpus[0].free_bytes == 14900 << 20
    assert 0 < found.available_bytes <= found.memory_bytes


@pytest.mark.parametrize(
    "script",
    [
        "echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9",
        "echo 'No devices were found'",
        "echo 'T4, [Not Supported], 15360 MiB, 14900 MiB'",
        "printf '\\377\\376'",
        "exit 0",
        "exec sleep 30",
        "sleep 30 & wait",
    ],
)
def test_a_broken_or_slow_tool_means_no_gpus_and_no_long_wait(nvidia_smi, script):
    nvidia_smi(script)
    started = time.perf_counter()
    assert hardware.detect_without_torch().gpus == ()
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("chosen", "asked"),
    [("1", "-i 1"), ("1, 0", "-i 1,0"), ("GPU-ab-1", "-i GPU-ab-1"), ("0,-1,1", "-i 0")],
)
def test_only_gpus_that_cuda_would_show_are_asked_for(nvidia_smi, monkeypatch, chosen, asked):
    arguments = nvidia_smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    hardware.detect_without_torch()
    assert arguments.read_text().strip().endswith(asked)


@pytest.mark.parametrize("chosen", ["", "-1", "none"])
def test_hidden_gpus_are_not_there(nvidia_smi, monkeypatch, chosen):
    arguments = nvidia_smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert hardware.detect_without_torch().gpus == ()
    assert not arguments.exists()
