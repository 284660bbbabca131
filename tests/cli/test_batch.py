"""`gemma3vl batch` as people run it: what reaches the batch, what is told, and the exit codes."""

import io
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from rich.console import Console

import gemma3vl_app.backends.local
from gemma3vl_app.cli import batch as batch_command
from gemma3vl_app.cli import load as load_module
from gemma3vl_app.cli import progress
from gemma3vl_app.errors import EngineError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.tasks import prompts
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES
from tests.folders.naming_backend import NamingBackend, draw_pictures

ROOT = Path(__file__).parents[2]


@pytest.fixture
def backend(monkeypatch, tmp_path):
    """A backend that names pictures in place of every model, and photos/ with three of them."""
    monkeypatch.chdir(tmp_path)
    draw_pictures(tmp_path / "photos", "1.png", "2.png", "3.png")
    backend = NamingBackend(capabilities=replace(DEFAULT_CAPABILITIES, model="demo"))

    def load(model, *, adapters=None, **wishes):
        backend._closed = False  # by an earlier run
        for name, path in (adapters or {}).items():
            backend.add_adapter(name, path)
        return backend

    monkeypatch.setattr(gemma3vl_app.backends.local, "load", load)
    return backend


def lines(path: str = "out.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_folder_is_captioned_and_summed_up_on_stderr(backend, run):
    code, out, err = run("batch", "photos", "--out", "out.jsonl")
    assert (code, out) == (0, "")
    assert err.startswith("3 pictures: 3 done, ")
    assert err.endswith("; out.jsonl\n")
    assert [line["text"] for line in lines()] == [f"This is {n}.png." for n in (1, 2, 3)]
    request = backend.requests[0]
    assert request.conversation.messages[0].text == prompts.CAPTION["short"].text
    assert request.sampling == Greedy()


def test_options_reach_the_model(backend, run):
    draw_pictures(Path("photos"), "inner/4.png")
    code, *_ = run(
        *("batch", "photos", "--out", "out.csv", "--prompt", "Why?", "--system", "Be brief."),
        *("--max-new-tokens", "5", "--seed", "7", "--crops", "off", "--recursive"),
        *("--adapter", "poet=somewhere"),
    )
    assert code == 0
    assert len(backend.requests) == 4
    request = backend.requests[0]
    assert request.conversation.messages[0].text == "Why?"
    assert request.conversation.system == "Be brief."
    assert request.conversation.pictures[0].crops == "off"
    assert (request.max_new_tokens, request.sampling) == (5, Sample(seed=7))
    assert request.adapter == "poet"


def test_a_schema_is_enforced_and_shown_to_the_model(backend, run):
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    Path("name.json").write_text(json.dumps(schema))
    options = ("--schema", "name.json", "--prompt", "In capitals.")
    assert run("batch", "photos", "--out", "out.jsonl", *options)[0] == 0
    assert lines()[0]["value"] == {"name": "1.png"}
    text = backend.requests[0].conversation.messages[0].text
    assert '"properties": {"name"' in text
    assert text.endswith("In capitals.")


def test_captions_may_be_detailed(backend, run):
    assert run("batch", "photos", "--out", "out.jsonl", "--detailed")[0] == 0
    text = backend.requests[0].conversation.messages[0].text
    assert text == prompts.CAPTION["detailed"].text
    assert run("batch", "photos", "--out", "b.jsonl", "--detailed", "--prompt", "Why?")[0] == 2


def test_failures_are_listed_and_are_exit_code_3(backend, run, monkeypatch):
    monkeypatch.setattr(batch_command, "FAILURES_SHOWN", 1)
    Path("photos/2\x1b[31m.png").write_bytes(b"no picture")
    Path("photos/4.png").write_bytes(b"")
    Path("photos/notes.txt").touch()
    code, _, err = run("batch", "photos", "--out", "out.jsonl")
    assert code == 3
    assert "5 pictures: 3 done, 2 failed, 1 other file left out, " in err
    assert "\x1b" not in err
    assert "2\ufffd[31m.png: " in err
    assert "and 1 more, with their reasons in out.jsonl" in err
    assert err.endswith("The same command with --retry-failed asks about those again.\n")


def test_a_second_run_says_what_earlier_ones_did_and_may_retry_or_restart(backend, run):
    backend.breaking = {"2.png": EngineError("It broke.")}
    assert run("batch", "photos", "--out", "out.jsonl")[0] == 3
    backend.breaking = {}
    backend.asked.clear()
    code, _, err = run("batch", "photos", "--out", "out.jsonl")
    assert code == 3
    assert "3 pictures: 2 done, 1 failed, 0 asked about in this run, " in err
    assert backend.asked == []
    assert run("batch", "photos", "--out", "out.jsonl", "--retry-failed")[0] == 0
    assert backend.asked == ["2.png"]
    assert run("batch", "photos", "--out", "out.jsonl", "--restart")[0] == 0
    assert len(backend.asked) == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("photos", "--out", "out.txt"), "ends in .jsonl or .csv"),
        (("photos", "--out", "no/out.csv"), "The folder 'no' for the output 'out.csv'"),
        (("photos", "--out", "/no-such/out.csv"), "The folder '/no-such' for the output"),
        (("photos", "--out", "foreign.jsonl"), "is not from an earlier run"),
        (("photos", "--out", "foreign.csv"), "is not from an earlier run"),
        (("photos", "--out", "out.csv", "--prompt", " "), "The prompt is empty"),
        (("empty", "--out", "out.csv"), "'empty' was not found"),
        (("foreign.csv", "--out", "out.csv"), "'foreign.csv' is no picture"),
        (("folder", "--out", "out.csv"), "with --recursive"),
        (("photos", "--out", "out.csv", "--schema", "no.json"), "no.json"),
        (("photos", "--out", "out.csv", "--model", "4b-itt"), "Did you mean"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(backend, run, monkeypatch, arguments, told):
    for name in ("foreign.jsonl", "foreign.csv"):
        Path(name).write_text("mine\n")
    Path("folder").mkdir()
    before = set(Path().iterdir())
    monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: 1 / 0)
    code, out, err = run("batch", *arguments)
    assert (code, out) == (1, "")
    assert told in err
    assert set(Path().iterdir()) == before
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "sidecars"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--prompt", "Why?"), "prompt"),
        (("--system", "Be brief."), "system"),
        (("--crops", "off"), "crops"),
        (("--max-new-tokens", "5"), "--max-new-tokens"),
        (("--adapter", "a=x"), "adapter"),
        (("--model", "4b-it"), "model"),
    ],
)
def test_other_settings_than_before_are_told_before_a_model_is_loaded(
    backend, run, monkeypatch, out, options, told
):
    assert run("batch", "photos", "--out", out)[0] == 0
    load = gemma3vl_app.backends.local.load
    monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: 1 / 0)
    code, _, err = run("batch", "photos", "--out", out, *options)
    assert code == 1
    assert f"was begun with other settings: {told}" in err
    assert "with --restart" in err
    monkeypatch.setattr(gemma3vl_app.backends.local, "load", load)
    assert run("batch", "photos", "--out", out, *options, "--restart")[0] == 0


def test_where_to_write_has_to_be_said(run):
    assert run("batch", "photos")[0] == 2


def test_a_log_gets_a_line_now_and_then(backend, run, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_SEC", 0.0)
    backend.seconds = {"2.png": 0.1, "3.png": 0.2}
    backend.breaking = {"1.png": EngineError("It broke.")}
    err = run("batch", "photos", "--out", "out.jsonl")[2]
    assert "0 of 3 pictures\n" in err
    assert "1 of 3 pictures, 1 failed, about 0 min left\n" in err


def test_a_terminal_gets_a_bar_with_counts_failures_and_time(backend, run, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(load_module, "stderr", console)
    backend.breaking = {"1.png": EngineError("It broke.")}
    run("batch", "photos", "--out", "out.jsonl")
    assert "3/3" in screen.getvalue()
    assert "1 failed" in screen.getvalue()
    assert "0:00:0" in screen.getvalue()


def test_an_error_in_the_middle_says_what_is_kept(backend, run):
    backend.failing = {"3.png": EngineError("The model was closed.")}
    backend.seconds = {}
    code, _, err = run("batch", "photos", "--out", "out.jsonl")
    assert code == 1
    assert "of 3 pictures are done and kept" in err
    assert err.endswith("The model was closed.\n")


def test_ctrl_c_keeps_what_is_done_and_is_exit_code_130(tmp_path):
    draw_pictures(tmp_path / "photos", *(f"{number:02}.png" for number in range(10)))
    code = (
        "import sys, types\n"
        "local = types.ModuleType('gemma3vl_app.backends.local')  # without torch\n"
        "sys.modules[local.__name__] = local\n"
        "from tests.folders.naming_backend import NamingBackend\n"
        "seconds = {f'{n:02}.png': 60.0 for n in range(4, 10)}\n"
        "local.load = lambda *_, **__: NamingBackend(seconds=seconds)\n"
        "from gemma3vl_app import cli\n"
        "from gemma3vl_app.cli import progress\n"
        "progress.LINE_EVERY_SEC = 0.0\n"
        f"sys.argv = ['gemma3vl', 'batch', {str(tmp_path / 'photos')!r},"
        f" '--out', {str(tmp_path / 'out.csv')!r}]\n"
        "cli.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        while "4 of 10" not in (line := process.stderr.readline()):
            assert line, "it ended early"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "4 of 10 pictures are done and kept. The same command goes on from there.\n" in err
    assert (tmp_path / "out.csv").read_text().count("This is") == 4


@pytest.mark.slow
def test_the_program_really_captions_a_folder(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for colour in ("red", "blue"):
        picture = Image.new("RGB", (256, 256), "white")
        ImageDraw.Draw(picture).ellipse((64, 64, 192, 192), fill=colour)
        picture.save(tmp_path / "photos" / f"{colour}.png")
    code, out, err = run("batch", "photos", "--out", "sidecars")
    assert (code, out) == (0, ""), err
    assert "red circle" in (tmp_path / "photos" / "red.png.txt").read_text()
    assert "blue circle" in (tmp_path / "photos" / "blue.png.txt").read_text()
