"""`gemma3vl chat` over a pipe and as a program: options, answers, failures, exit codes."""

import io
import re
import subprocess
import sys

import pytest

import gemma3vl_app.backends.local
from gemma3vl_app.cli import exit_codes
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES
from tests.cli.chat.conversing import SLOWLY, names


def test_a_pipe_gets_the_answers_and_nothing_else(backend, converse):
    assert converse("Hello you.", "", "And again?") == (0, "Hello you.\nAnd again?\n", "")
    first, second = backend.requests
    assert len(first.conversation.messages) == 1
    assert [m.text for m in second.conversation.messages] == ["Hello you."] * 2 + ["And again?"]


def test_what_a_program_reads_is_not_changed(backend, converse):
    backend.says("A \x1b[31mred\x1b[0m one.")
    assert converse("Well?")[1] == "A \x1b[31mred\x1b[0m one.\n"


def test_options_reach_the_model(backend, converse):
    code, out, err = converse(
        "Which?",
        "And now?",
        options=(
            *("--image", "a.png", "--image", "my cat.png", "--system", "Be brief."),
            *("--max-new-tokens", "5", "--seed", "7", "--temperature", "0.5", "--top-k", "3"),
        ),
    )
    assert (code, out) == (0, "Which?\nAnd now?\n")
    assert err == "a.png, 9 x 6\nmy cat.png, 9 x 6\n"
    first, second = backend.requests
    assert names(first.conversation.messages[0]) == ["a.png", "my cat.png"]
    assert names(second.conversation.messages[2]) == []
    assert second.conversation.system == "Be brief."
    assert first.max_new_tokens == 5
    assert first.sampling == second.sampling == Sample(temperature=0.5, top_k=3, seed=7)


def test_without_options_the_models_own_choices_hold(backend, converse):
    converse("Hi")
    (request,) = backend.requests
    assert request.sampling == Greedy()
    assert request.max_new_tokens == DEFAULT_CAPABILITIES.answer_tokens
    converse("Hi", options=["--greedy"])
    assert backend.requests[-1].sampling == Greedy()


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--greedy", "--seed", "1"], 2, "--greedy draws nothing"),
        (["--temperature", "0"], 2, "--temperature is 0"),
        (["--image", "none.png"], 1, "Picture 'none.png' was not found"),
        (["--open", "none.zip"], 1, "There is no file 'none.zip'"),
        (["--weights", "fp16"], 2, "overflow float16"),
        (["--open", "a.png"], 1, "'a.png' is damaged or no conversation file"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_loaded(
    monkeypatch, converse, options, code, told
):
    monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: 1 / 0)
    found = converse("Hi", options=options)
    assert found[:2] == (code, "")
    assert told in found[2]


def test_commands_and_failures_of_a_pipe_are_told_on_stderr_and_by_the_exit_code(converse, backend):
    code, out, err = converse("/image none.png", "Still there?", "/quit", "Not read.")
    assert (code, out) == (3, "Still there?\n")
    assert err == "Picture 'none.png' was not found. Check its path.\n"


def test_bytes_that_are_no_text_do_not_end_a_chat(backend, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\nnext\n")))
    code, out, _ = run("chat")
    assert (code, out) == (0, "caf\ufffd\nnext\n")


def test_a_real_model_answers_a_pipe(tiny, here, converse):
    lines = ("/image a.png", "What is it?", "/save talk.zip", "/retry")
    code, out, err = converse(*lines, options=["--max-new-tokens", "3"], model=str(tiny))
    assert code == 0
    assert out.count("\n") >= 2
    assert "a.png, 9 x 6\n" in err
    assert "Saved as talk.zip.\n" in err
    assert "\x1b" not in out + err
    assert (here / "talk.zip").is_file()


def test_what_a_pipe_is_told_is_not_padded(converse, backend):
    told = converse("One", "/stats", "/help", "/branch")[2].splitlines()
    assert any(re.fullmatch(r"turns +1", line) for line in told)
    assert any(line.startswith("/image PATH") for line in told)
    assert [line for line in told if line.endswith(" ")] == []


def test_when_nobody_reads_any_more_it_ends(here):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY.format(loading=0, options=[])],
        **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
        text=True,
        bufsize=1,
    )
    with process:
        process.stdin.write("One\n")
        assert process.stdout.readline() == "loading\n"
        assert process.stdout.readline() == "One\n"
        process.stdout.close()
        process.stdin.write("Two\nThree\n")
        assert process.stderr.read() == ""
    assert process.returncode == exit_codes.PIPE_CLOSED


def test_a_failure_is_one_line_and_the_chat_goes_on(converse, backend):
    backend.refusal = ConversationError("It does not fit.")
    code, out, err = converse("One", "Two")
    assert (code, out, err) == (3, "Two\n", "It does not fit.\n")


def test_a_bug_is_one_line_without_its_details_and_the_chat_goes_on(converse, backend):
    backend.refusal = RuntimeError("/root/secret")
    code, out, err = converse("One", "Two")
    assert (code, out) == (3, "Two\n")
    assert "RuntimeError" in err and "secret" not in err and len(err.splitlines()) == 1
