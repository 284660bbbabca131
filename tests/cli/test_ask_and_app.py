"""The command line on the scripted backend: what goes to stdout, what to stderr, and exit codes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from PIL import Image

import gemma3vl_app
import gemma3vl_app.backends.local
import gemma3vl_app.server
from gemma3vl_app import cli
from gemma3vl_app.cli import load as load_module
from gemma3vl_app.cli.load import describe
from gemma3vl_app.errors import EngineError, LoadError
from gemma3vl_app.generation import Progress, Sample
from gemma3vl_app.store import default_folder
from gemma3vl_app.testing.scripted import ScriptedBackend


@pytest.fixture
def backend(monkeypatch):
    """The scripted backend in place of every model."""
    backend = ScriptedBackend()

    def load(model, *, progress, **wishes):
        progress(Progress("weights", 1, 2, "tensors"))
        backend.wishes = {name: wish for name, wish in wishes.items() if wish not in ("auto", None)}
        for name, path in (wishes.get("adapters") or {}).items():
            backend.add_adapter(name, path)
        return backend

    monkeypatch.setattr(gemma3vl_app.backends.local, "load", load)
    return backend


def test_ask_prints_the_answer_and_nothing_else(backend, run):
    assert run("ask", "demo", "Hello dear reader.") == (0, "Hello dear reader.\n", "")


def test_pictures_and_options_reach_the_model(backend, run, tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        Image.new("RGB", (9, 9), "red").save(file)
    run(
        *("ask", "demo", "Which?", "--image", str(files[0]), "--image", str(files[1])),
        *("--system", "Be brief.", "--max-new-tokens", "5", "--seed", "7"),
    )
    (request,) = backend.requests
    (message,) = request.conversation.messages
    assert [picture.name for picture in message.pictures] == ["a.png", "b.png"]
    assert message.text == "Which?"
    assert request.conversation.system == "Be brief."
    assert request.max_new_tokens == 5
    assert request.sampling == Sample(seed=7)


@pytest.mark.parametrize("command", [("ask", "4b-it", "Hello"), ("app", "--model", "4b-it")])
def test_wishes_reach_the_loader(backend, run, monkeypatch, command):
    monkeypatch.setattr(gemma3vl_app.server, "serve", lambda *_, **__: None)
    code, _, err = run(
        *(*command, "--weights", "int8", "--device-map", '{"": "cpu"}', "--revision", "v2"),
        *("--max-memory", "cuda:0=8GiB,cpu=16GiB", "--context-tokens", "4096"),
        *("--adapter", "poems=some/folder", "--adapter", "plans=other"),
    )
    assert (code, err) == (0, "")
    assert backend.wishes == {
        "weights": "int8",
        "device_map": {"": "cpu"},
        "max_memory": {"cuda:0": "8GiB", "cpu": "16GiB"},
        "context_tokens": 4096,
        "revision": "v2",
        "adapters": {"poems": "some/folder", "plans": "other"},
    }


def test_a_disk_cache_is_used_on_wish(backend, run):
    assert run("ask", "demo", "Hi", "--disk-cache", "2GiB")[0] == 0
    assert backend.wishes == {"disk_cache": 2 << 30}


@pytest.mark.parametrize(
    ("adapters", "answering"), [(["a=x"], "a"), (["a=x", "b=y"], None), ([], None)]
)
def test_a_single_adapter_answers(backend, run, adapters, answering):
    options = [word for adapter in adapters for word in ("--adapter", adapter)]
    assert run("ask", "demo", "Hi", *options)[0] == 0
    (request,) = backend.requests
    assert request.adapter == answering


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--weights", "fp16"], "overflow float16"),
        (["--weights", "q9"], "gemma3vl: --weights q9 is not known."),
        (["--device-map", "gpu"], "'gpu' is no device"),
        (["--device-map", '{"": "cuda"}'], "'cuda' is no device"),
        (["--max-memory", "gpu=1GiB"], "'gpu' is no device"),
        (["--max-memory", "cpu=lots"], "'lots' is no size"),
        (["--max-memory", "disk=9GiB"], "A disk alone"),
        (["--disk-cache", "lots"], "'lots' is no size"),
        (["--device-map", "{1: 2}"], "--device-map is no JSON object"),
        (["--device-map", '{"model": 3}'], "--device-map is no JSON object"),
        (["--max-memory", "cuda:0"], "Write it as cuda:0=24GiB"),
        (["--adapter", "poems"], "NAME=PATH"),
        (["--adapter", "a=x", "--adapter", "a=y"], "Two adapters are called 'a'"),
    ],
)
def test_a_wrong_wish_is_told_before_anything_is_loaded(monkeypatch, run, options, told):
    monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: 1 / 0)
    code, out, err = run("ask", "demo", "What?", *options)
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (Progress("download", 1288490189, 9234179686, "bytes", "4b-it"), "4b-it: 1.2 of 8.6 GiB"),
        (Progress("load", 3 << 20, 570 << 20, "bytes", "Loading x"), "Loading x: 3 of 570 MiB"),
        (Progress("load", 3 << 30, 0, "bytes"), "load: 3.0 GiB"),
        (Progress("convert", 1, 4, "parts", "Converting x"), "Converting x: 1 of 4 parts"),
        (Progress("test", 0, 0, "steps", "Testing"), "Testing"),
    ],
)
def test_progress_reads_as_people_say_it(step, line):
    assert describe(step) == line


def test_the_spinner_turns_before_anything_heavy_is_imported(monkeypatch, run):
    # The heavy import is made to fail: by then the spinner must have been shown.
    shown = []
    monkeypatch.setattr(load_module.stderr, "status", lambda text: shown.append(text) or Shown())
    monkeypatch.setitem(sys.modules, "gemma3vl_app.backends.local", None)
    monkeypatch.delattr(gemma3vl_app.backends, "local")
    assert run("ask", "demo", "What?")[0] == 1
    assert shown[-1] == "Loading demo"


class Shown:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_json_is_one_line_with_everything(backend, run):
    code, out, _ = run("ask", "demo", "Hello you", "--json")
    assert code == 0
    assert len(out.splitlines()) == 1
    answer = json.loads(out)
    assert (answer["model"], answer["text"]) == ("scripted", "Hello you")
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["finish_reason"] == "stop"


def test_a_missing_picture_is_one_line_and_exit_code_1(backend, run):
    code, out, err = run("ask", "demo", "What?", "--image", "no-such.png")
    assert (code, out) == (1, "")
    assert "no-such.png" in err
    assert len(err.strip().splitlines()) == 1


def test_a_failed_load_is_one_line(monkeypatch, run):
    def load(model, **wishes):
        raise LoadError(f"There is no model '{model}'. Try demo.")

    monkeypatch.setattr(gemma3vl_app.backends.local, "load", load)
    assert run("ask", "demo", "What?") == (1, "", "There is no model 'demo'. Try demo.\n")


def test_an_unknown_model_or_an_empty_question_is_told_before_anything_is_loaded(monkeypatch, run):
    monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: 1 / 0)
    code, _, err = run("ask", "4b-itt", "What?")
    assert code == 1
    assert "no model or folder '4b-itt'. Did you mean '4b-it'" in err
    code, _, err = run("ask", "demo", " ")
    assert code == 1
    assert "question is empty" in err


SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT")
SERVE_ON_EACH = """
# The page's library is imported once; then a process serves for each signal.
import os, sys, tempfile, types
from pathlib import Path
local = types.ModuleType("gemma3vl_app.backends.local")  # spares the import of torch
sys.modules[local.__name__] = local
from gemma3vl_app.testing import ScriptedBackend
local.load = lambda *_, **__: ScriptedBackend()
import gemma3vl_app.server
import gemma3vl_app.webui.page
from gemma3vl_app import cli
sys.argv = ["gemma3vl", "app", "--port", "17860", "--find-port"]
for name in NAMES:
    if os.fork() == 0:
        os.environ["TMPDIR"] = tempfile.tempdir = os.path.abspath(name)
        os.dup2(os.open(f"{name}/out", os.O_WRONLY | os.O_CREAT), 1)
        Path(f"{name}/pid").write_text(str(os.getpid()))
        cli.main()
for _ in NAMES:
    os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_however_the_app_is_ended_its_uploads_go_with_it(tmp_path):
    # Real processes, with the real server and page on the scripted backend.
    for name in SIGNALS:
        (tmp_path / name).mkdir()
    environment = {**os.environ}
    environment.pop("GRADIO_TEMP_DIR", None)
    code = f"NAMES = {SIGNALS}\n{SERVE_ON_EACH}"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, start_new_session=True
    )
    try:
        folders = [upload_and_end(tmp_path / name, name) for name in SIGNALS]
        process.wait(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):  # none is left, as it should be
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not any(folder.parent.exists() for folder in folders)


def upload_and_end(place, name):
    """Wait for a server, leave a file where it keeps uploads, and send it a signal."""
    address = poll(lambda: re.search(r"is ready: (\S+)", (place / "out").read_text()))[1]
    (folder,) = place.glob("gemma3vl-uploads-*/files")
    (folder / "upload.png").write_bytes(b"private")
    poll(lambda: urllib.request.urlopen(address, timeout=20).status == 200)
    os.kill(int((place / "pid").read_text()), getattr(signal, name))
    return folder


def poll(look, *, seconds=60):
    """Return what `look` finds, as soon as it finds something."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := look():
                return found
        except OSError:
            pass
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_failure_in_the_middle_is_told_after_the_text(backend, run):
    backend._chunks, backend._error = ["Well "], EngineError("The engine broke.")
    assert run("ask", "demo", "What?") == (1, "Well \n", "The engine broke.\n")


def test_an_unexpected_error_leaks_nothing(monkeypatch, run):
    def load(model, **wishes):
        raise RuntimeError("/root/secret/path is wrong")

    monkeypatch.setattr(gemma3vl_app.backends.local, "load", load)
    code, _, err = run("ask", "demo", "What?")
    assert code == 1
    assert "secret" not in err
    assert "--debug" in err


def test_debug_shows_where_an_error_comes_from(monkeypatch, backend):
    monkeypatch.setattr(
        sys, "argv", ["gemma3vl", "--debug", "ask", "demo", "?", "--image", "no.png"]
    )
    with pytest.raises(gemma3vl_app.PictureError):
        cli.main()


def test_a_wrong_option_is_a_usage_error(run):
    assert run("ask", "demo", "What?", "--max-new-tokens", "0")[0] == 2


def test_version_is_printed(run):
    assert run("--version") == (0, f"{gemma3vl_app.__version__}\n", "")


def test_app_serves_the_model_and_says_where(backend, monkeypatch, run):
    served = {}

    def serve(backend, *, on_ready, **options):
        served.update(options, backend=backend)
        on_ready("http://127.0.0.1:7999")

    monkeypatch.setattr(gemma3vl_app.server, "serve", serve)
    code, out, _ = run("app", "--port", "7999")
    assert code == 0
    assert "http://127.0.0.1:7999" in out
    manager = served.pop("manager")
    assert manager.current is None or manager.current is backend
    assert served == {
        "backend": backend,
        "host": "127.0.0.1",
        "port": 7999,
        "find_port": False,
        "logins": [],
        "no_auth": False,
        "offered": (),
        "conversations": default_folder(),
    }
