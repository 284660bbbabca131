"""What people read at a terminal: options instead of Python's arguments, and usage errors."""

import pytest

from gemma3vl_app.cli.messages import in_options


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Load it with weights='int8'.", "Load it with --weights int8."),
        ("weights='q9' is not known.", "--weights q9 is not known."),
        ("Raise max_new_tokens, or ask again.", "Raise --max-new-tokens, or ask again."),
        ("It was cut. Raise max_new_tokens.", "It was cut. Raise --max-new-tokens."),
        ("top_k is -1; it must be 0.", "--top-k is -1; it must be 0."),
        ("temperature is 0; use Greedy().", "--temperature is 0; use --greedy."),
        ("Give data=FILE.", "Give --data FILE."),
        ("Begin anew with restart=True.", "Begin anew with --restart."),
        ("Have it replaced with overwrite=True.", "Have it replaced with --force."),
    ],
)
def test_arguments_of_python_are_told_as_options(message, told):
    assert in_options(message) == told


@pytest.mark.parametrize(
    "message",
    [
        "Its weights are damaged; the temperature is high, and a restart helps.",
        "Picture 'max_new_tokens' was not found.",
        "'top_k.png' and photos/top_p.png and top_k.png are damaged.",
        "The file 'weights=1.gguf' is no model.",
        "The recipe names no data. Set `data=FILE.jsonl` or `data=FOLDER`.",
    ],
)
def test_other_words_and_names_of_files_stay(message):
    assert in_options(message) == message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("ask", "--zzz"), "No such option: --zzz. Run `gemma3vl ask --help` to see the options."),
        (("ask",), "Missing argument 'MODEL'. Run `gemma3vl ask --help` to see the options."),
        (("batch", "x"), "Missing option '--out'. Run `gemma3vl batch --help` to see the options."),
        (("nonsense",), "No such command 'nonsense'. Run `gemma3vl --help` to see the commands."),
        (
            ("cache", "lst"),
            "No such command 'lst'. Did you mean 'list'? "
            "Run `gemma3vl cache --help` to see the commands.",
        ),
        (
            ("ask", "demo", "Hi", "--max-new-tokens", "0"),
            "Invalid value for '--max-new-tokens': Input should be greater than or equal to 1. "
            "Run `gemma3vl ask --help` to see the options.",
        ),
        (
            ("ask", "demo", "Hi", "--crops", "maybe"),
            "Invalid value for '--crops': 'maybe' is not one of 'auto', 'on', 'off'. "
            "Run `gemma3vl ask --help` to see the options.",
        ),
        (
            ("ask", "demo", "Hi", "--greedy", "--seed", "1"),
            "--greedy draws nothing; leave the options of drawing away.",
        ),
        (("cache", "clean"), "Say which: a name that `gemma3vl cache list` shows, or --all."),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(run, monkeypatch, arguments, told):
    monkeypatch.setenv("COLUMNS", "40")  # it is not wrapped
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err == f"gemma3vl: {told}\n"


def test_a_wrong_option_cannot_command_the_terminal(run):
    code, _, err = run("ask", "--\x1b[2J")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "\x1b" not in err


def test_without_a_command_the_help_is_shown(run):
    code, out, err = run()
    assert (code, err) == (2, "")
    assert "Talk with a model about pictures" in out
