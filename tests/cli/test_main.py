"""The border: errors as one line and an exit code, closed pipes, `--debug`, and completion."""

import logging
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.main import get_command

from gemma3vl_app import catalog
from gemma3vl_app.cli import exit_codes
from gemma3vl_app.cli.completion import complete_model
from gemma3vl_app.cli.main import _set_up_logging, app
from gemma3vl_app.errors import EngineError

# Without a buffer, nothing would be left to write when a pipe has closed.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
PROGRAM = [sys.executable, "-m", "gemma3vl_app.cli"]
LIST_MODULES = """
import sys
from gemma3vl_app import cli
sys.argv = ["gemma3vl", *sys.argv[1:]]
try:
    cli.main()
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""
WITHOUT_WAITING_FOR_TORCH = """
from gemma3vl_app import cli
from gemma3vl_app.cli.checks import this_machine, torch_facts
this_machine.ask_torch = torch_facts.TorchFacts
cli.main()
"""


def program(*arguments: str, environment: dict[str, str] | None = None, **options):
    """Run the program for real."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        env={**ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


@pytest.fixture
def failing(monkeypatch):
    """Let every load fail with an error of the test's choice."""

    def fail_with(error):
        def load(*_, **__):
            raise error

        backend = SimpleNamespace(load=load)  # without importing torch
        monkeypatch.setitem(sys.modules, "gemma3vl_app.backends.local", backend)

    return fail_with


# --- errors ---


def test_an_error_is_one_line_even_where_it_has_several(failing, run):
    failing(EngineError("First.\nSecond :smile: [red]x[/]."))
    assert run("ask", "demo", "Hi") == (1, "", "First. Second :smile: [red]x[/].\n")


def test_an_error_cannot_command_the_terminal(failing, run):
    failing(EngineError("No file '\x1b[2J\x1b]0;x\x07.png'."))
    code, _, err = run("ask", "demo", "Hi")
    assert code == exit_codes.FAILED
    assert "\x1b" not in err and "\x07" not in err and ".png" in err


def test_an_unexpected_error_with_deep_causes_is_one_line(failing, run):
    error = ValueError("secret")
    for _ in range(50):
        outer = RuntimeError("secret\n" * 100)
        outer.__cause__, error = error, outer
    failing(error)
    code, out, err = run("ask", "demo", "Hi")
    assert (code, out) == (exit_codes.FAILED, "")
    assert len(err.splitlines()) == 1 and len(err) < 200
    assert "RuntimeError" in err and "secret" not in err


def test_an_error_of_the_system_is_told_in_its_words_and_without_the_file(failing, run):
    failing(OSError(28, "No space left on device", "/root/secret"))
    code, _, err = run("ask", "demo", "Hi")
    assert code == exit_codes.FAILED
    assert "No space left on device" in err and "secret" not in err


def test_ctrl_c_is_130_and_no_traceback(failing, run):
    failing(KeyboardInterrupt())
    code, _, err = run("ask", "demo", "Hi")
    assert code == exit_codes.INTERRUPTED
    assert "Traceback" not in err


def test_warnings_of_the_log_are_plain_lines_on_stderr(monkeypatch, run):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    _set_up_logging(debug=False)
    root.handlers[0].stream = sys.stderr
    logging.getLogger("gemma3vl_app.x").warning("The folder %s is damaged.", "a\x1b[31mb")
    code, _, err = run("--version")
    assert (code, err) == (0, "The folder a\ufffd[31mb is damaged.\n")


def test_a_character_that_a_pipe_cannot_take_does_not_end_the_output():
    code = (
        "import sys\n"
        "from gemma3vl_app.cli import main\n"
        "sys.modules['gemma3vl_app.cli.main'].__version__ = '\u00c4pfel \U0001f34e hier'\n"
        "sys.argv = ['gemma3vl', '--version']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "latin-1"},
    )
    assert (done.returncode, done.stdout) == (0, "Äpfel ? hier\n".encode("latin-1"))


# --- the program for real ---


@pytest.mark.parametrize(
    "arguments",
    [("--version",), ("--help",), ("models",), ("plan", "demo"), ("cache", "list"), ("doctor",)],
)
def test_a_command_ends_well_and_is_silent_on_stderr(arguments, tmp_path):
    caches = {"GEMMA3VL_CACHE": str(tmp_path / "own"), "HF_HOME": str(tmp_path / "hub")}
    done = program(*arguments, environment=caches)
    assert (done.returncode, done.stderr) == (exit_codes.OK, "")
    assert done.stdout


def test_an_error_for_real_is_one_line_and_code_1():
    done = program("plan", "no-such-model")
    assert (done.returncode, done.stdout) == (exit_codes.FAILED, "")
    assert len(done.stderr.splitlines()) == 1
    assert "no-such-model" in done.stderr


@pytest.mark.parametrize("how", ["option", "variable"])
def test_debug_shows_the_traceback_and_still_fails(how):
    if how == "option":
        done = program("--debug", "plan", "no-such-model")
    else:
        done = program("plan", "no-such-model", environment={"GEMMA3VL_DEBUG": "1"})
    assert done.returncode == exit_codes.FAILED
    assert done.stderr.startswith("Traceback") or "\nTraceback" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("gemma3vl_app.errors.LoadError")


def test_a_wrong_command_line_for_real_is_one_line_and_code_2():
    done = program("plan", "demo", "--no-such")
    assert (done.returncode, done.stdout) == (exit_codes.USAGE, "")
    assert done.stderr.startswith("gemma3vl: No such option: --no-such")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="no such pipes there")
@pytest.mark.parametrize(
    "command",
    ["models", "models --json", "plan 4b-it", "cache list", "doctor", "--help"],
)
def test_a_pipe_that_nobody_reads_ends_quietly(command):
    program = [sys.executable, "-c", WITHOUT_WAITING_FOR_TORCH]
    assert into_closed_pipe([*program, *command.split()]) == (exit_codes.PIPE_CLOSED, "")


def into_closed_pipe(command: list[str]) -> tuple[int, str]:
    """Run a command whose reader has gone before it begins; return exit code and stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command, env=ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no such pipes there")
def test_what_was_written_but_not_sent_ends_quietly_too():
    code = (
        "import sys\n"
        "from gemma3vl_app.cli import main\n"
        "sys.modules['gemma3vl_app.cli.main'].typer.echo = sys.stdout.write\n"
        "sys.argv = ['gemma3vl', '--version']\n"
        "main()\n"
    )
    assert into_closed_pipe([sys.executable, "-c", code]) == (exit_codes.PIPE_CLOSED, "")


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_head_gets_its_lines_and_the_rest_ends_quietly():
    # The list is made longer than a pipe's buffer.
    code = (
        "import sys\n"
        "from gemma3vl_app.cli import main\n"
        "sys.modules['gemma3vl_app.cli.main'].__version__ = 'a line\\n' * 100_000\n"
        "sys.argv = ['gemma3vl', '--version']\n"
        "main()\n"
    )
    script = '"$0" -c "$1" | head -1; echo "codes ${PIPESTATUS[*]}"'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, code],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"a line\ncodes {exit_codes.PIPE_CLOSED} 0\n"
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, "models"], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == exit_codes.FAILED
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


# --- the help ---


def test_the_help_groups_the_commands(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = run("--help")
    groups = ["Talk", "Pictures and text", "Conversations", "Models and this machine"]
    places = [out.index(f"─ {group} ─") for group in groups]
    assert code == 0
    assert places == sorted(places)
    assert places[0] < out.index(" ask ") < places[1] < out.index(" ocr ") < places[2]
    assert out.index(" doctor ") > places[3]


@pytest.mark.parametrize("columns", [60, 200])
def test_a_help_is_wrapped_once(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = [line.strip() for line in run("ask", "--help")[1].splitlines()]
    first = next(n for n, line in enumerate(lines) if line.startswith("A picture that is piped in"))
    paragraph = lines[first : lines.index("", first)]
    longest_word = 12
    assert all(len(line) > columns - 2 - longest_word for line in paragraph[:-1])
    assert (len(paragraph) > 2) == (columns == 60)


# --- completion ---


def completed(shell: str, line: str, folder) -> tuple[str, set[str]]:
    """What the shell is offered after `line`, and the modules that were imported for it."""
    words = line.split(" ")
    variables = {
        "_GEMMA3VL_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
    }
    done = subprocess.run(
        [sys.executable, "-c", LIST_MODULES],
        env={**ENVIRONMENT, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize(
    ("shell", "line", "offered", "not_offered"),
    [
        ("bash", "gemma3vl pl", {"plan"}, {"models"}),
        ("zsh", "gemma3vl cache cl", {"clean"}, {"list"}),
        ("bash", "gemma3vl plan 4b-", {"4b-it", "4b-pt"}, {"demo", "12b-it"}),
        ("zsh", "gemma3vl app --model 27b-i", {"27b-it", "27b-it-qat-q4_0"}, {"27b-pt"}),
        ("bash", "gemma3vl plan google/gemma-3-1", {"google/gemma-3-12b-it"}, {"demo"}),
        ("zsh", "gemma3vl plan my-", {"my-model", "my-model.gguf"}, {"my-notes"}),
    ],
)
def test_the_shell_is_offered_commands_and_models(shell, line, offered, not_offered, tmp_path):
    (tmp_path / "my-notes").mkdir()
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").touch()
    (tmp_path / "my-model.gguf").touch()
    out, modules = completed(shell, line, tmp_path)
    found = set(out.replace('"', " ").split())
    assert offered <= found
    assert not not_offered & found
    assert "typer" in modules
    assert not {"torch", "transformers", "gradio", "numpy", "PIL", "huggingface_hub"} & modules


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_itself_completes_a_model(tmp_path):
    # The script that `--show-completion` prints, in a real bash.
    installed = shutil.which("gemma3vl", path=os.path.join(sys.prefix, "bin"))
    source = subprocess.run(
        [installed],
        env={**ENVIRONMENT, "_GEMMA3VL_COMPLETE": "source_bash"},
        capture_output=True,
        text=True,
    ).stdout
    (tmp_path / "completion.sh").write_text(source)
    line = (
        f"source {tmp_path / 'completion.sh'}; COMP_WORDS=(gemma3vl plan 12b-p); COMP_CWORD=2; "
        f'_gemma3vl_completion {installed}; echo "${{COMPREPLY[*]}}"'
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("12b-pt\n", "")


def test_a_file_that_could_command_the_shell_is_not_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "good.gguf",
        "$(date).gguf",
        "a`b`.gguf",
        "-rf.gguf",
        "two words.gguf",
        "x\\.gguf",
    ):
        (tmp_path / name).touch()
    names = [name for name, _ in complete_model("")]
    assert [name for name in names if name.endswith(".gguf")] == ["good.gguf"]
    assert set(catalog.MODELS) <= set(names)


def test_a_folder_that_is_gone_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert ("demo", catalog.DEMO.title) in complete_model("de")


def test_every_model_of_a_command_is_completed():
    def commands(group):
        for command in group.commands.values():
            yield from commands(command) if hasattr(command, "commands") else [command]

    models = {c.name: p for c in commands(get_command(app)) for p in c.params if p.name == "model"}
    assert {"app", "ask", "plan"} <= set(models)
    assert [name for name, model in models.items() if model._custom_shell_complete is None] == []
