"""`gemma3vl doctor` as a whole: the report, `--json`, exit codes."""

import json
import shutil
from pathlib import Path

import pytest

from gemma3vl_app.cli import exit_codes
from gemma3vl_app.cli.checks import hub, this_machine
from gemma3vl_app.cli.checks.check import Check, Look, gib, shown_path, take
from gemma3vl_app.errors import LoadError
from tests.cli.doctor.looking import (
    CPU_ONLY,
    GIB,
    TOKEN,
)


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
