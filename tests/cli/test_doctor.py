"""`gemma3vl doctor` on machines that are not here, and on this one."""

import json
import shlex
import shutil
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from huggingface_hub import constants

from gemma3vl_app.cli import exit_codes
from gemma3vl_app.cli.checks import hub, machine, models, packages, storage, this_machine
from gemma3vl_app.cli.checks.check import Check, Look, gib, shown_path, take
from gemma3vl_app.cli.checks.torch_facts import TorchFacts, ask_torch
from gemma3vl_app.errors import LoadError
from gemma3vl_app.hardware import Gpu
from gemma3vl_app.planning import plan
from tests.loading.fake_hub import FakeHub
from tests.planning.machines import WITH_BF16, apple, gpus, processor

GIB = 1 << 30
CUDA = TorchFacts(cuda_build="13.0", cuda_usable=True, gpus=1)
CPU_ONLY = TorchFacts()
BROKEN_TORCH = TorchFacts(error="ImportError: libcudart.so.13")
REQUIRES = [
    "torch==2.13.0",
    "transformers<6,>=5.23",
    "pillow<13,>=12.3",
    'datasets<6,>=4; extra == "train"',
    'trl<2,>=0.24; extra == "train"',
    'pywin32>=300; sys_platform == "no-such-system"',
]
HERE = {"torch": "2.13.0+cpu", "transformers": "5.23.0", "pillow": "12.3"}
TOKEN = "hf_secretsecretsecret"


def version_of(installed):
    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    return version


def seen(checks) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def named(checks, name) -> Check:
    (check,) = (each for each in checks if each.name == name)
    return check


# --- machine ---


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


# --- Python and packages ---


@pytest.mark.parametrize(
    ("version", "state"),
    [("3.11.7", "good"), ("3.13.0rc1", "good"), ("3.10.1", "broken"), ("3.14.0", "broken")],
)
def test_python_is_held_against_the_supported_versions(version, state):
    assert packages.python(version, "<3.14,>=3.11").state == state


def test_good_packages_are_summed_up_and_the_most_important_shown():
    checks = packages.packages(REQUIRES, ["train"], version_of(HERE))
    assert seen(checks) == dict.fromkeys(
        ["torch", "transformers", "packages", "extra: train"], "good"
    )
    assert named(checks, "torch").message == "2.13.0+cpu"
    assert "not installed (datasets, trl)" in named(checks, "extra: train").message


@pytest.mark.parametrize(
    ("name", "version", "told", "next_step"),
    [
        ("torch", "2.12.1", "2.12.1 is too old", 'pip install "torch==2.13.0"'),
        ("torch", "2.14.0", "2.14.0 is too new", 'pip install "torch==2.13.0"'),
        ("transformers", "6.0", "6.0 is too new", 'pip install "transformers<6,>=5.23"'),
        ("pillow", "12.2.9", "12.2.9 is too old", 'pip install "pillow<13,>=12.3"'),
        ("pillow", "absent", "missing", 'pip install "pillow<13,>=12.3"'),
        ("pillow", None, "damaged", 'pip install --force-reinstall "pillow<13,>=12.3"'),
        ("pillow", "?", "damaged", 'pip install --force-reinstall "pillow<13,>=12.3"'),
    ],
)
def test_a_wrong_package_is_broken_with_the_pip_line(name, version, told, next_step):
    installed = {**HERE, name: version}
    if version == "absent":
        del installed[name]
    checks = packages.packages(REQUIRES, ["train"], version_of(installed))
    assert [check.name for check in checks if check.state != "good"] == [name]
    check = named(checks, name)
    assert (check.state, check.next_step) == ("broken", next_step)
    assert told in check.message


def test_a_wrong_package_of_an_extra_is_only_a_warning():
    installed = {**HERE, "datasets": "3.0", "trl": "1.0"}
    checks = packages.packages(REQUIRES, ["train"], version_of(installed))
    check = named(checks, "datasets")
    assert (check.state, check.next_step) == ("warning", 'pip install "datasets<6,>=4"')


def test_a_requirement_that_cannot_be_read_stops_nothing():
    checks = packages.packages(["!!!", *REQUIRES], ["train"], version_of(HERE))
    assert named(checks, "torch").state == "good"


# --- caches and disk ---


def test_a_cache_that_cannot_be_written_is_broken(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inside", Path("/proc/gemma3vl")):
        why_not = storage.why_not_writable(folder)
        assert why_not
        assert seen(storage.own_cache(folder, [], [], why_not)) == {"our cache": "broken"}
        assert seen(storage.hub_cache(folder, [], [], why_not)) == {"hub cache": "broken"}


def test_a_cache_that_is_there_or_can_be_made_is_good_and_untouched(tmp_path):
    for folder in (tmp_path, tmp_path / "not" / "yet"):
        assert storage.why_not_writable(folder) == ""
    assert list(tmp_path.iterdir()) == []
    (check,) = storage.own_cache(tmp_path, [GIB, GIB], [], "")
    assert check.state == "good" and "2 models converted here, 2.0 GiB" in check.message


def test_only_old_leftovers_are_a_warning(tmp_path):
    for name in (".demo-nf4-1-abc", ".demo-nf4-1.lock", "demo-nf4-1"):
        (tmp_path / name).mkdir()
    (tmp_path / ".demo-nf4-1-abc" / "half.safetensors").write_bytes(bytes(5000))
    (leftover,) = storage.find_leftovers(tmp_path)[:1]
    assert leftover.bytes == 5000 and leftover.age_sec < 60
    assert seen(storage.own_cache(tmp_path, [], [leftover], "")) == {"our cache": "good"}
    old = storage.Leftover(leftover.path, leftover.bytes, age_sec=2 * 3600)
    check = named(storage.own_cache(tmp_path, [], [old], ""), "leftovers")
    assert check.state == "warning"
    assert shlex.split(check.next_step) == ["rm", "-r", str(leftover.path)]


def test_an_incomplete_download_is_a_warning_with_the_command_that_goes_on(tmp_path):
    blobs = tmp_path / "models--google--gemma-3-4b-it" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(bytes(5 << 20))
    check = named(
        storage.hub_cache(tmp_path, [], storage.find_incomplete(tmp_path), ""), "download"
    )
    assert check.state == "warning" and "5 MiB" in check.message
    assert "google/gemma-3-4b-it" in check.next_step


@pytest.mark.parametrize(
    ("free_bytes", "state"), [(50 * GIB, "good"), (9 * GIB, "warning"), (GIB // 2, "broken")]
)
def test_little_room_is_a_warning_and_none_is_broken(free_bytes, state, tmp_path):
    assert storage.disk([tmp_path], free_bytes).state == state


def test_folders_on_one_disk_are_one_line(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b" / "c"]
    assert storage.by_disk(folders) == [(folders, tmp_path)]


# --- hub ---


def test_a_token_is_found_and_never_shown(tmp_path):
    stored = tmp_path / "token"
    assert hub.token({}, stored).state == "warning"
    stored.write_text(TOKEN + "\n")
    for check in (hub.token({}, stored), hub.token({"HF_TOKEN": TOKEN}, tmp_path / "none")):
        assert check.state == "good"
        assert "secret" not in repr(check)
    assert "HF_TOKEN" in hub.token({"HF_TOKEN": TOKEN}, stored).message


@pytest.mark.parametrize("bad", ["hf_two words", "hf_täst", "hf_\x1b[2J"])
def test_a_token_that_cannot_be_one_is_broken_and_not_shown(bad, tmp_path):
    check = hub.token({"HF_TOKEN": bad}, tmp_path / "none")
    assert check.state == "broken" and "hf_" not in repr(check)


def test_a_token_that_is_kept_back_or_cannot_be_read_is_told(tmp_path):
    kept = {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    assert hub.token(kept, tmp_path / "none").state == "warning"
    assert hub.token({}, tmp_path).state == "broken"  # a folder


def test_variables_that_forbid_the_network_are_a_warning():
    assert hub.offline({}) == [] == hub.offline({"HF_HUB_OFFLINE": "0"})
    (check,) = hub.offline({"TRANSFORMERS_OFFLINE": "1"})
    assert (check.state, check.next_step) == ("warning", "unset TRANSFORMERS_OFFLINE")


def test_another_endpoint_is_told_without_its_password():
    assert hub.endpoint({}) == []
    (check,) = hub.endpoint({"HF_ENDPOINT": "https://me:secret@mirror.example/x"})
    assert check.state == "good"
    assert "mirror.example" in check.message and "secret" not in check.message
    for wrong in ("mirror.example", "ftp://x", "http://[", "file:///etc"):
        assert seen(hub.endpoint({"HF_ENDPOINT": wrong})) == {"endpoint": "broken"}


def test_without_asking_only_a_download_tells_that_the_licence_is_accepted():
    assert hub.licence_unasked(has_token=False, downloaded=False) == []
    (unknown,) = hub.licence_unasked(has_token=True, downloaded=False)
    assert (unknown.state, unknown.next_step) == ("warning", "gemma3vl doctor --online")
    (known,) = hub.licence_unasked(has_token=True, downloaded=True)
    assert known.state == "good"


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A hub on this machine that has the gated model; nothing of it is in the caches."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("GEMMA3VL_CACHE", str(tmp_path / "own"))
    for name in (*hub.TOKENS, *hub.OFFLINE, "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub({hub.GATED: {"config.json": b"{}", "model.safetensors": b"x" * 2000}}) as running:
        running.gated.add(hub.GATED)
        running.tokens = {TOKEN: True, "hf_not_accepted": False}
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        yield running


@pytest.mark.parametrize(
    ("secret", "name", "state", "told"),
    [
        (TOKEN, "licence", "good", "accepted"),
        ("hf_not_accepted", "licence", "warning", "not accepted by this token's account"),
        ("hf_expired", "token", "broken", "wrong or has expired"),
        (None, "licence", "warning", "asks for its licence to be accepted"),
    ],
)
def test_the_hub_is_asked_about_the_licence(fake_hub, monkeypatch, secret, name, state, told):
    if secret:
        monkeypatch.setenv("HF_TOKEN", secret)
    check = hub.licence_online(is_offline=False)
    assert (check.name, check.state) == (name, state)
    assert told in check.message
    assert bool(check.next_step) == (state != "good")
    assert not secret or secret not in repr(check)


@pytest.mark.parametrize(
    ("answer", "state", "told"),
    [
        ((503, {}, b""), "broken", "error 503"),
        ((429, {"Retry-After": "60"}, b""), "broken", "error 429"),
        ((403, {}, b""), "broken", "may not read gated"),
        ((404, {"X-Error-Code": "RepoNotFound"}, b""), "warning", "HF_ENDPOINT"),
        ((200, {"Content-Type": "text/html"}, b"<h1>Log in</h1>"), "broken", "no hub"),
        ((200, {}, b"[]"), "broken", "no hub"),
    ],
)
def test_a_hub_in_trouble_is_told_in_one_line(fake_hub, answer, state, told):
    fake_hub.faults.always["list"] = answer
    check = hub.licence_online(is_offline=False)
    assert (check.state, "\n" in check.message) == (state, False)
    assert told in check.message and check.next_step


def test_a_hub_that_is_not_there_is_broken_at_once(fake_hub):
    fake_hub.stop()
    started = time.perf_counter()
    check = hub.licence_online(is_offline=False)
    assert time.perf_counter() - started < hub.LIMIT_SEC
    assert check.state == "broken" and "cannot be reached" in check.message


def test_offline_mode_is_respected_even_with_online(fake_hub):
    assert hub.licence_online(is_offline=True).state == "warning"
    assert fake_hub.requests == []


# --- models ---


def test_the_demo_is_good_when_its_parts_are_here():
    assert models.demo(tower=True, base=True, converted=False).state == "good"
    assert models.demo(tower=True, base=False, converted=True).state == "good"
    missing = models.demo(tower=True, base=False, converted=False)
    assert missing.state == "broken" and missing.next_step.startswith("pip install gemma3-270m")
    assert models.demo(tower=False, base=True, converted=True).state == "broken"


@pytest.mark.parametrize(
    ("room", "state", "told"),
    [
        (processor(64, WITH_BF16), "good", "fit"),
        (processor(3), "warning", "4b, 12b, 27b do not"),
        (processor(0), "broken", "not even the demo"),
    ],
)
def test_the_sizes_that_fit_are_told(room, state, told):
    names = {"demo": "demo", "4b": "4b-it", "12b": "12b-it", "27b": "27b-it"}
    check = models.sizes({size: plan(name, machine=room) for size, name in names.items()})
    assert check.state == state and told in check.message


# --- all together ---


def test_a_look_that_fails_is_a_broken_line_and_the_others_go_on():
    def fail():
        yield Check("A", "half", "good", "this is lost with the rest of the look")
        raise ZeroDivisionError("secret")

    def complain():
        raise LoadError("The token is wrong. Correct it.")

    good = Check("C", "last", "good", "fine")
    found = take(
        [Look("A", "first", fail), Look("B", "second", complain), Look("C", "3", lambda: [good])]
    )
    assert [(c.section, c.name, c.state) for c in found] == [
        ("A", "first", "broken"),
        ("B", "second", "broken"),
        ("C", "last", "good"),
    ]
    assert "ZeroDivisionError" in found[0].message and "secret" not in found[0].message
    assert found[1].message == "The token is wrong. Correct it."


@pytest.fixture
def quick(monkeypatch, fake_hub):
    """The doctor without waiting for torch, on an empty cache and the hub of this machine."""
    monkeypatch.setattr(this_machine, "ask_torch", lambda: CPU_ONLY)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 99 * GIB))
    return fake_hub


def test_warnings_alone_are_exit_code_0_and_nothing_is_sent(quick, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, out, err = run("doctor")
    assert (code, err) == (exit_codes.OK, "")
    assert "Nothing broken" in out and "gemma3vl doctor --online" in out
    assert quick.requests == []
    assert TOKEN not in out and str(Path.home()) + "/." not in out


def test_online_asks_the_hub(quick, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, out, _ = run("doctor", "--online")
    assert code == exit_codes.OK
    assert f"accepted: {hub.GATED} can be downloaded" in out
    assert TOKEN not in out


def test_something_broken_is_exit_code_3(quick, run, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GEMMA3VL_CACHE", str(tmp_path / "file"))
    code, out, err = run("doctor")
    assert (code, err) == (exit_codes.INCOMPLETE, "")
    assert "next: export GEMMA3VL_CACHE=FOLDER" in out


def test_every_check_that_fails_is_its_own_broken_line(quick, run, monkeypatch):
    monkeypatch.setattr(this_machine.hardware, "detect_without_torch", lambda: 1 / 0)
    monkeypatch.setattr(this_machine, "ask_torch", lambda: 1 / 0)
    code, out, err = run("doctor", "--json")
    assert (code, err) == (exit_codes.INCOMPLETE, "")
    rows = {row["name"]: row["state"] for row in json.loads(out)}
    assert {rows[n] for n in ("system", "memory", "GPU", "torch starts", "sizes")} == {"broken"}
    assert {rows[n] for n in ("Python", "our cache", "hub cache", "disk", "demo")} == {"good"}


def test_a_program_that_was_never_installed_is_told(quick, run, monkeypatch):
    monkeypatch.setattr(this_machine, "DISTRIBUTION", "no-such-distribution")
    code, out, _ = run("doctor")
    assert code == exit_codes.INCOMPLETE
    assert "gemma3vl-app is not installed" in out and "failed inside" not in out


def test_json_is_one_line_with_every_check(quick, run):
    code, out, err = run("doctor", "--json")
    assert (code, err) == (exit_codes.OK, "")
    assert len(out.splitlines()) == 1
    rows = json.loads(out)
    assert {tuple(row) for row in rows} == {("section", "name", "state", "message", "next")}
    assert {"Machine", "Python and packages", "Caches and disk", "Models"} <= {
        row["section"] for row in rows
    }
    for row in rows:
        assert row["state"] in ("good", "warning", "broken")
        assert bool(row["next"]) == (row["state"] != "good"), row


def test_in_a_pipe_a_check_is_one_line(quick, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = run("doctor")[1].splitlines()
    (arithmetic,) = (line for line in lines if " arithmetic " in line)
    assert arithmetic.endswith(".") and len(arithmetic) > 40


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_no_message_is_too_long(quick, run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes stdout for a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    out = run("doctor")[1]
    told = [line for line in out.splitlines() if "next:" not in line]
    assert max(map(len, told)) <= columns


def test_sizes_and_paths_are_shown_for_people():
    assert [gib(size) for size in (0, 5 << 20, 700 << 20, 9 * GIB)] == [
        "0 MiB",
        "5 MiB",
        "0.7 GiB",
        "9.0 GiB",
    ]
    assert shown_path(Path.home() / "x") == str(Path("~/x"))
    assert shown_path(Path("/elsewhere")) == str(Path("/elsewhere"))
