"""`ask` with stdin, `caption`, `ocr`, `compare` and `extract`: input, output and exit codes."""

import io
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
from PIL import Image

import gemma3vl_app.backends.local
from gemma3vl_app.errors import EngineError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES
from tests.tasks.backends import PageBackend
from tests.tasks.test_long_pages import drawn_page

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "round": {"type": "boolean"}},
    "required": ["colour", "round"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with pictures, a PDF of two pages, and a schema."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (60, 80), "red").save(name)
    page = Image.new("RGB", (60, 80), "white")
    page.save("two.pdf", "PDF", save_all=True, append_images=[page])
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    return tmp_path


@pytest.fixture
def backend(monkeypatch):
    """A scripted backend in place of every model; it answers a picture with its name."""
    backend = Echo()

    def load(model, **wishes):
        backend.loaded, backend._closed = model, False
        for name, path in (wishes["adapters"] or {}).items():
            backend.add_adapter(name, path)
        return backend

    monkeypatch.setattr(gemma3vl_app.backends.local, "load", load)
    return backend


class Echo(PageBackend):
    """Says `texts[name of the last picture]`, or that name, or what it was asked; or fails."""

    failing: frozenset[str] = frozenset()  # names of pictures that are refused

    def stream(self, conversation, **options):
        if any(picture.name in self.failing for picture in conversation.pictures):
            raise EngineError("It broke.")
        return super().stream(conversation, **options)

    def _pieces(self, request):
        if self._chunks is not None or not request.conversation.pictures:
            return super(PageBackend, self)._pieces(request)
        return super()._pieces(request)


@pytest.fixture
def pipe(monkeypatch, tmp_path):
    """Let stdin be a file of these bytes."""
    with ExitStack() as files:

        def pipe(data: bytes):
            (tmp_path / "piped in").write_bytes(data)
            file = files.enter_context(open(tmp_path / "piped in", encoding="utf-8"))
            monkeypatch.setattr(sys, "stdin", file)

        yield pipe


def png(colour="blue"):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), colour).save(buffer, "PNG")
    return buffer.getvalue()


def asked(backend):
    """The names of pictures and the text of the only request."""
    (request,) = backend.requests
    (message,) = request.conversation.messages
    return [picture.name for picture in message.pictures], message.text


# --- ask: what is piped in ------------------------------------------------------------------------


def test_a_picture_on_stdin_belongs_to_the_question(backend, run, folder, pipe):
    pipe(png())
    assert run("ask", "demo", "What?", "--image", "a.png") == (0, "stdin\n", "")
    assert asked(backend) == (["a.png", "stdin"], "What?")


def test_a_picture_on_stdin_has_its_place_where_it_is_asked_for(backend, run, folder, pipe):
    pipe(png())
    assert run("ask", "demo", "What?", "--image", "-", "--image", "a.png")[0] == 0
    assert asked(backend) == (["stdin", "a.png"], "What?")


def test_every_page_of_a_pdf_is_a_picture(backend, run, folder, pipe):
    pipe((folder / "two.pdf").read_bytes())
    assert run("ask", "demo", "What?", "--image", "two.pdf")[0] == 0
    assert asked(backend)[0] == [
        f"{name}, page {number}" for name in ("two.pdf", "stdin") for number in (1, 2)
    ]


@pytest.mark.parametrize(
    ("arguments", "piped", "question"),
    [
        (("Summarise this:",), "Some text\n", "Summarise this:\n\nSome text"),
        ((), "What is it?\n", "What is it?"),
        (("-",), "\ufeffWas ist größer?", "Was ist größer?"),
        (("Hello",), "", "Hello"),
        (("Hello",), "BM is how bitmaps begin, and BMW, too", None),
    ],
    ids=["behind the question", "in its place", "asked for", "empty", "like a bitmap"],
)
def test_a_text_on_stdin_is_the_question_or_goes_behind_it(
    backend, run, pipe, arguments, piped, question
):
    pipe(piped.encode())
    assert run("ask", "demo", *arguments)[0] == 0
    assert asked(backend) == ([], question or f"Hello\n\n{piped}")


@pytest.mark.parametrize(
    ("piped", "arguments", "told"),
    [
        (b"\x89PNG\r\n\x1a\n cut", ("What?",), "'stdin' is damaged"),
        (b"RIFF\0\0\0\0WEBPVP8 ", ("What?",), "'stdin' is damaged"),
        (b"\xff\x00 nothing known", ("What?",), "'stdin' is not a picture"),
        (b"x" * ((1 << 20) + 1), ("What?",), "the limit is 1,048,576"),
        (b"\0" * ((25 << 20) + 1), ("What?",), "longer than 25 MiB"),
        (b"some text", ("What?", "--image", "-"), "a text, not a picture"),
        (b"", ("What?", "--image", "-"), "Nothing came on stdin"),
        (b"", ("-",), "Nothing came on stdin"),
        (b"", (), "question is empty"),
        (b" \n", (), "question is empty"),
        (png(), ("-",), "Write it"),
    ],
)
def test_what_is_wrong_with_stdin_is_one_line(backend, run, pipe, piped, arguments, told):
    pipe(piped)
    code, out, err = run("ask", "demo", *arguments)
    assert (code, out) == (1, "")
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not backend.requests


def test_a_real_pipe_is_read_to_its_end(backend, run, monkeypatch):
    ends = os.pipe()
    os.write(ends[1], b"Hello ")
    os.write(ends[1], b"you")
    os.close(ends[1])
    with open(ends[0], encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run("ask", "demo")[:2] == (0, "Hello you\n")


@pytest.mark.parametrize("where", ["/dev/null", "terminal", "closed"])
def test_nothing_else_is_read_or_waited_for(backend, run, monkeypatch, where):
    with ExitStack() as ends:
        stdin = None
        if where == "terminal":
            ours, theirs = os.openpty()
            ends.callback(os.close, ours)
            stdin = ends.enter_context(open(theirs, encoding="utf-8"))
        elif where != "closed":
            stdin = ends.enter_context(open(where, encoding="utf-8"))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run("ask", "demo", "Hello")[:2] == (0, "Hello\n")
        code, _, err = run("ask", "demo", "Hello", "--image", "-")
        assert (code, "Nothing came on stdin" in err) == (1, True)


def test_stdin_cannot_be_two_things(backend, run, folder):
    assert run("ask", "demo", "-", "--image", "-")[0] == 2
    assert run("ask", "demo", "What?", "--image", "-", "--image", "-")[0] == 2
    assert run("caption", "-", "a.png", "-")[0] == 2


# --- ask: options ---------------------------------------------------------------------------------


def test_a_question_alone_is_for_the_demo(backend, run):
    assert run("ask", "How are you?") == (0, "How are you?\n", "")
    assert backend.loaded == "demo"


def test_a_single_word_is_a_model_and_never_a_question(backend, run):
    code, _, err = run("ask", "4b-itt")
    assert (code, "question is empty" in err) == (1, True)


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ((), None),
        (("--greedy",), Greedy()),
        (("--temperature", "0.5"), Sample(temperature=0.5)),
        (("--top-k", "0", "--top-p", "0.5", "--seed", "3"), Sample(top_k=0, top_p=0.5, seed=3)),
    ],
)
def test_sampling_can_be_chosen(backend, run, options, sampling):
    assert run("ask", "demo", "Hi", *options)[0] == 0
    assert backend.requests[0].sampling == sampling


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("ask", "demo", "Hi", "--greedy", "--seed", "1"), 2),
        (("ask", "demo", "Hi", "--logprobs", "2"), 2),
        (("ask", "demo", "Hi", "--json", "--logprobs", "21"), 2),
        (("ask", "demo", "Hi", "--crops", "maybe"), 2),
        (("ask", "demo", "Hi", "--temperature", "-1"), 2),
        (("ask", "demo", "Hi", "--top-p", "3"), 2),
        (("ask", "demo", "Hi", "--image", "."), 1),
        (("caption", "a.png", "--weights", "q9"), 2),
        (("ocr", "a.png", "--adapter", "foo"), 2),
        (("compare", "a.png", "b.png", "--max-memory", "lots"), 2),
        (("extract", "a.png", "--schema", "s.json", "--device-map", "gpu"), 2),
        (("caption",), 2),
        (("caption", "a.png", "--logprobs", "2"), 2),
        (("caption", "a.png", "--model", "4b-itt"), 1),
        (("ocr", "none.png"), 1),
        (("compare", "a.png"), 1),
        (("compare", "a.png", "b.png", "--question", " "), 1),
        (("extract", "a.png"), 2),
        (("extract", "a.png", "--schema", "none.json"), 1),
        (("extract", "a.png", "--schema", "a.png"), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_wrong_is_told_before_anything_is_loaded(
    backend, run, folder, monkeypatch, command, code
):
    monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: 1 / 0)
    ended, out, err = run(*command)
    assert (ended, out) == (code, "")
    assert "inside" not in err


@pytest.mark.parametrize("command", [("ask", "demo", "Hi", "--image"), ("caption",), ("ocr",)])
def test_crops_can_be_chosen(backend, run, folder, command):
    for crops in ("on", "off", "auto"):
        assert run(*command, "a.png", "--crops", crops)[0] == 0
    used = [request.conversation.pictures[0].crops for request in backend.requests]
    assert used == ["on", "off", "auto"]


def test_log_probabilities_are_in_the_json(backend, run):
    answer = json.loads(run("ask", "demo", "Hello you", "--json", "--logprobs", "2")[1])
    assert [token["text"] for token in answer["tokens"]] == ["Hello ", "you"]
    first = answer["tokens"][0]
    assert first.keys() == {"id", "text", "logprob", "alternatives"}
    assert [each["logprob"] for each in first["alternatives"]] == [-1.5, -2.5]
    assert "tokens" not in json.loads(run("ask", "demo", "Hello you", "--json")[1])


# --- tasks ----------------------------------------------------------------------------------------


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


def test_an_answer_that_is_interrupted_ends_its_line(backend, run, monkeypatch):
    backend._chunks, backend._error = ["The image"], KeyboardInterrupt()
    assert run("ask", "demo", "What?") == (130, "The image\n", "")


def test_a_picture_may_come_on_stdin(backend, run, folder, pipe):
    pipe(png())
    assert run("caption") == (0, "stdin\n", "")
    pipe(png())
    assert run("caption", "a.png", "-")[1] == "a.png: a.png\nstdin: stdin\n"
    pipe((folder / "two.pdf").read_bytes())
    assert run("ocr")[1] == "stdin, page 1\n\nstdin, page 2\n"


def test_stdin_is_left_alone_where_pictures_are_named(backend, run, folder, pipe):
    pipe(b"the list of a loop in a shell")
    for command in (("caption", "a.png"), ("ocr", "a.png"), ("compare", "a.png", "b.png")):
        assert run(*command)[0] == 0
        assert sys.stdin.tell() == 0


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


def test_seed_and_adapter_reach_the_model(backend, run, folder):
    assert run("caption", "a.png", "--seed", "4", "--adapter", "poems=x")[0] == 0
    assert backend.requests[0].sampling == Sample(seed=4)
    assert backend.requests[0].adapter == "poems"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("ocr", "a.png"), "cannot read text"),
        (("compare", "a.png", "b.png"), "hardly compares pictures"),
        (("extract", "a.png", "--schema", "s.json"), "the data it gives are guesses"),
        (("caption", "a.png"), ""),
    ],
)
def test_the_demo_says_what_it_cannot(backend, run, folder, command, told):
    backend._capabilities = replace(DEFAULT_CAPABILITIES, model="demo")
    if command[0] == "extract":
        backend._chunks = ["{}"]
    code, _, err = run(*command)
    assert code == 0
    assert told in err and bool(err) == bool(told)


def test_an_answer_that_names_a_key_twice_is_no_value(backend, run, folder):
    backend._chunks = ['{"colour": "red", "colour": "green", "round": true}']
    code, out, err = run("extract", "a.png", "--schema", "s.json")
    assert (code, out) == (1, "")
    assert "the key 'colour' twice" in err


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("ask", "demo", "Hi", "--image", "a.png"), "a\ufffd[2Jb\n"),
        (("ocr", "a.png"), "a\ufffd[2Jb\n"),
        (("caption", "a.png", "bad\x1b.png"), "a.png: a\ufffd[2Jb\nbad\ufffd.png: bad .png\n"),
    ],
)
def test_a_terminal_gets_no_commands_but_a_pipe_the_text_as_it_is(
    backend, run, folder, monkeypatch, command, shown
):
    (folder / "bad\x1b.png").write_bytes(png())
    backend.texts = {"a.png": ["a\x1b[2J", "b"]}
    assert "\x1b[2J" in run(*command)[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(*command)[1] == shown


# --- real processes -------------------------------------------------------------------------------


FIVE = ("--max-new-tokens", "5", "--json")
COMMANDS = {
    "ask": ("ask", "{model}", "--seed", "1", *FIVE),
    "caption": ("caption", "-", "a.png", "--model", "{model}", *FIVE),
    "ocr": ("ocr", "two.pdf", "--model", "{model}", *FIVE),
    "compare": ("compare", "a.png", "b.png", "--model", "{model}", *FIVE),
    "extract": ("extract", "a.png", "--schema", "s.json", "--model", "{model}"),
}
INPUTS = {"ask": b"How are you?", "caption": png()}
SCRIPTED = """
import sys, types
local = types.ModuleType("gemma3vl_app.backends.local")  # spares the import of torch
sys.modules[local.__name__] = local
from gemma3vl_app.testing import ScriptedBackend
local.load = lambda *_, **__: ScriptedBackend(['{"said": "yes"}'])
from gemma3vl_app import cli
sys.argv[0] = "gemma3vl"
cli.main()
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_as_a_process(folder, name):
    words = [word.replace("{model}", "demo") for word in COMMANDS[name]]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTED, *words],
        input=INPUTS.get(name, b""),
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    said = {"said": "yes"}
    assert all(line == said or json.loads(line["text"].split("\n")[0]) == said for line in lines)
    assert len(lines) == (2 if name == "caption" else 1)


@pytest.mark.slow
def test_every_command_works_with_a_real_model(folder, tiny, run, pipe, monkeypatch):
    told = {}
    with gemma3vl_app.backends.local.load(tiny) as backend:  # once for all: that is what takes long
        close = backend.close
        monkeypatch.setattr(backend, "close", lambda: None)
        monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: backend)
        for name, words in COMMANDS.items():
            pipe(INPUTS.get(name, b""))
            code, out, err = run(*(word.replace("{model}", str(tiny)) for word in words))
            cut = name == "ocr"
            assert code == (3 if cut else 0), (name, err)
            notes = err.splitlines()
            assert all("ut " in line and "Raise --max-new-tokens" in line for line in notes), notes
            assert notes or not cut
            told[name] = [json.loads(line) for line in out.splitlines()]
        close()
    assert told["ask"][0]["usage"]["prompt_tokens"] > 10
    assert [each["picture"] for each in told["caption"]] == ["stdin", "a.png"]
    assert [page["complete"] for page in told["ocr"][0]["pages"]] == [False, False]
    assert told["compare"][0]["usage"]["image_tokens"] == 32
    assert told["extract"][0].keys() == {"colour", "round"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom gemma3vl_app import cli\nsys.argv = ['gemma3vl', 'ocr', '--help']\n"
        "try:\n    cli.main()\nfinally:\n    print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Example: gemma3vl ocr" in done.stdout
    heavy = {"torch", "transformers", "numpy", "PIL", "pypdfium2"}
    assert not heavy & set(done.stderr.split())


def test_an_answer_that_was_cut_is_told_apart_from_a_finished_one(backend, run, folder):
    for command in (("ask", "demo", "?"), ("caption",), ("compare", "b.png")):
        image = ("--image", "a.png") if command[0] == "ask" else ("a.png",)
        code, _, err = run(*command, *image, "--max-new-tokens", "1")
        assert code == 0
        assert "Cut after 1 token. Raise --max-new-tokens for more." in err
    assert "Cut" not in run("ask", "demo", "Hi")[2]
