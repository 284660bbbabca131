"""`caption`, `ocr`, `compare` and `extract`: what they ask, print and end with."""

import json

import pytest

import gemma3vl_app.backends.local
from gemma3vl_app.errors import EngineError
from gemma3vl_app.generation import Greedy
from tests.cli.one_shot.asking import asked
from tests.tasks.test_long_pages import drawn_page

# --- caption ---


def test_a_caption_is_the_answer_alone(backend, run, folder):
    assert run("caption", "a.png") == (0, "a.png\n", "")
    assert backend.loaded == "demo"
    assert backend.requests[0].sampling == Greedy()


def test_several_captions_have_a_line_each_in_the_order_given(backend, run, folder):
    backend.texts = {"b.png": ["Two\n", "lines "]}
    code, out, _ = run("caption", "b.png", "two.pdf", "./a.png", "--model", "4b-it")
    assert (code, backend.loaded) == (0, "4b-it")
    assert out.splitlines() == [
        "b.png: Two lines",
        "two.pdf, page 1: two.pdf, page 1",
        "two.pdf, page 2: two.pdf, page 2",
        "a.png: a.png",
    ]


def test_captions_as_json_are_a_line_each(backend, run, folder):
    lines = run("caption", "a.png", "b.png", "--json", "--detailed")[1].splitlines()
    told = [json.loads(line) for line in lines]
    assert [(each["picture"], each["text"]) for each in told] == [("a.png",) * 2, ("b.png",) * 2]
    assert told[0]["finish_reason"] == "stop"
    one = json.loads(run("caption", "a.png", "--json")[1])
    assert one.keys() == told[0].keys()


def test_a_caption_that_fails_is_named(backend, run, folder):
    backend._chunks, backend._error = ["Well "], EngineError("It broke.")
    assert run("caption", "a.png") == (1, "Well \n", "It broke.\n")
    assert run("caption", "a.png", "--json") == (1, "", "a.png: It broke.\n")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_of_several_captions_those_that_fail_are_named_and_the_others_done(
    backend, run, folder, options
):
    (folder / "bad.png").write_bytes(b"no picture")
    backend.failing = {"a.png"}
    command = ("caption", "bad.png", "a.png", "none.pdf", "b.png", *options)
    code, out, err = run(*command)
    assert code == 3
    assert len(out.splitlines()) == 1 and "b.png" in out
    first, second, third = err.splitlines()
    assert "'bad.png' is not a picture" in first
    assert "'none.pdf' was not found" in second
    assert third == "a.png: It broke."


def test_where_every_picture_is_bad_nothing_is_loaded(backend, run, folder, monkeypatch):
    monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: 1 / 0)
    code, out, err = run("caption", "none.png", "s.json")
    assert (code, out) == (3, "")
    assert "'none.png' was not found" in err and "'s.json' is not a picture" in err


# --- ocr ---


def test_ocr_prints_the_lines_of_every_page_in_order(backend, run, folder):
    backend.texts = {"a.png": ["```markdown\n", "# One\n", "Two\n", "```"]}
    code, out, err = run("ocr", "a.png", "two.pdf", "--markdown", "--model", "4b-it")
    assert (code, err) == (0, "")
    assert out == "# One\nTwo\n\ntwo.pdf, page 1\n\ntwo.pdf, page 2\n"


def test_ocr_as_json_has_pages_and_lines(backend, run, folder):
    drawn_page()[0].save("long.png")
    told = json.loads(run("ocr", "long.png", "a.png", "--json", "--logprobs", "0")[1])
    long, short = told["pages"]
    assert told["lines"] == [*long["lines"], "a.png"]
    assert len(long["lines"]) >= 5
    assert short == {"name": "a.png", "text": "a.png", "lines": ["a.png"], "complete": True}
    assert told["text"] == long["text"] + "\n\na.png"
    assert told["usage"]["completion_tokens"] == len(told["tokens"])
    assert told["usage"]["image_tokens"] == 64 * len(backend.requests)
    assert told["timing"]["decode_sec"] > 0


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_page_that_was_cut_is_told_and_exit_code_3(backend, run, folder, options):
    code, out, err = run("ocr", "a.png", "two.pdf", "--max-new-tokens", "5", *options)
    assert code == 3
    assert "a.png\n\ntwo.p" in out or json.loads(out)["finish_reason"] == "length"
    assert err == "Cut before the end: two.pdf, page 1, two.pdf, page 2. Raise --max-new-tokens.\n"


# --- compare and extract ---


def test_compare_numbers_its_pictures(backend, run, folder):
    assert run("compare", "a.png", "b.png", "--question", "Which is older?") == (0, "b.png\n", "")
    names, text = asked(backend)
    assert names == ["a.png", "b.png"]
    assert text == "Picture 1:Picture 2:Which is older?"
    assert json.loads(run("compare", "a.png", "b.png", "--json")[1])["text"] == "b.png"


def test_extract_prints_the_value_as_json(backend, run, folder):
    backend._chunks = ['{ "colour":\n', ' "red", "round": false}']
    command = ("extract", "a.png", "b.png", "--schema", "s.json", "--instructions", "The big one.")
    assert run(*command) == (0, '{"colour": "red", "round": false}\n', "")
    names, text = asked(backend)
    assert names == ["a.png", "b.png"]
    assert text.endswith("The big one.")
    told = json.loads(run(*command, "--json")[1])
    assert told["value"] == {"colour": "red", "round": False}
    assert told["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_half_a_value_is_never_printed(backend, run, folder, options):
    backend._chunks = ['{"colour": ', '"red"', "}"]
    command = ("extract", "a.png", "--schema", "s.json", "--max-new-tokens", "2", *options)
    code, out, err = run(*command)
    assert (code, out) == (1, "")
    assert "Raise --max-new-tokens" in err


def test_an_answer_that_names_a_key_twice_is_no_value(backend, run, folder):
    backend._chunks = ['{"colour": "red", "colour": "green", "round": true}']
    code, out, err = run("extract", "a.png", "--schema", "s.json")
    assert (code, out) == (1, "")
    assert "the key 'colour' twice" in err
