"""The chat in the terminal: every command, what goes wrong, Ctrl-C, lines typed and piped."""

import io
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input.defaults import create_pipe_input
from prompt_toolkit.output import DummyOutput

import gemma3vl_app.backends.local
from gemma3vl_app.chat import Chat
from gemma3vl_app.cli import chat_talk, exit_codes
from gemma3vl_app.cli.chat_commands import COMMANDS, handle, paths_in
from gemma3vl_app.cli.chat_input import ChatCompleter, Prompt, line_history
from gemma3vl_app.cli.chat_screen import Screen
from gemma3vl_app.cli.chat_talk import Talk
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.generation import Greedy, Sample, Status
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES, ScriptedBackend
from gemma3vl_app.wording import describe
from tests.cli.pty_process import PtyProcess

SLOWLY = """
import sys, time, types
from gemma3vl_app.testing import ScriptedBackend
local = types.ModuleType("gemma3vl_app.backends.local")  # spares the import of the real one
sys.modules[local.__name__] = local
def load(*_, **__):
    print("loading", flush=True)
    end = time.monotonic() + {loading}
    while time.monotonic() < end:  # a signal just before one long sleep would wait for its end
        time.sleep(0.05)
    return ScriptedBackend(seconds_per_chunk=0.2)
local.load = load
from gemma3vl_app import cli
sys.argv = ["gemma3vl", "chat", *{options}]
cli.main()
"""


class Scripted(ScriptedBackend):
    """The scripted backend, with a script, an error or a refusal for one request at a time."""

    def __init__(self, **options):
        super().__init__(**options)
        self.refusal = None

    def stream(self, conversation, **options):
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        return super().stream(conversation, **options)

    def says(self, *chunks, error=None):
        self._chunks, self._error = chunks or None, error


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """An empty folder to be in, with three pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMMA3VL_CACHE", str(tmp_path / "cache"))
    for name in ("a.png", "my cat.png", "it's.png"):
        Image.new("RGB", (9, 6), "red").save(tmp_path / name)
    return tmp_path


@pytest.fixture
def backend(monkeypatch):
    """The scripted backend in place of every model."""
    backend = Scripted()
    monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: backend)
    return backend


@pytest.fixture
def talk(backend):
    return Talk(backend, Chat(backend), Screen(interactive=True), {})


@pytest.fixture
def say(talk, capsys):
    """Handle lines as if typed; return what a person was told beside the answers."""

    def say(*lines):
        capsys.readouterr()
        for line in lines:
            handle(talk, line)
        return capsys.readouterr().err

    return say


@pytest.fixture
def converse(run, monkeypatch):
    """Run the program on lines from a pipe; return exit code, stdout and stderr."""

    def converse(*lines, options=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return run("chat", "demo", *options)

    return converse


def texts(talk):
    return [message.text for message in talk.chat.conversation.messages]


def names(message):
    return [picture.name for picture in message.pictures]


# --- a pipe ---------------------------------------------------------------------------------------


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
        (["--temperature", "0"], 1, "temperature is 0"),
        (["--image", "none.png"], 1, "Picture 'none.png' was not found"),
        (["--open", "none.zip"], 1, "There is no file 'none.zip'"),
        (["--weights", "fp16"], 1, "overflow float16"),
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


def test_a_real_model_answers_a_pipe(tiny, here):
    done = subprocess.run(
        *[[sys.executable, "-m", "gemma3vl_app.cli", "chat", tiny, "--max-new-tokens", "3"]],
        input="/image a.png\nWhat is it?\n/save talk.zip\n/retry\n",
        capture_output=True,
        text=True,
        cwd=here,
    )
    assert done.returncode == 0
    assert done.stdout.count("\n") >= 2
    assert "a.png, 9 x 6\n" in done.stderr
    assert "Saved as talk.zip.\n" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert (here / "talk.zip").is_file()


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


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "paths"),
    [
        ("a.png", ["a.png"]),
        ("a.png  b.png", ["a.png", "b.png"]),
        (r"my\ cat.png a.png", ["my cat.png", "a.png"]),
        ("'my cat.png' \"a b.png\"", ["my cat.png", "a b.png"]),
        ("my cat.png", ["my cat.png"]),  # it exists
        ("it's.png", ["it's.png"]),
        ("isn't there.png", ["isn't there.png"]),
        ("file:///tmp/my%20cat.png", ["/tmp/my cat.png"]),
        ("", []),
        ("a" * 5000, ["a" * 5000]),
    ],
)
def test_paths_are_understood_as_typed_and_pasted(typed, paths):
    assert [str(path) for path in paths_in(typed)] == paths


def test_the_home_folder_has_its_short_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(path) for path in paths_in("~/x.png")] == ["/home/me/x.png"]


def test_pictures_go_with_the_next_message_only(say, talk, backend):
    assert say(r"/image my\ cat.png a.png") == "my cat.png, 9 x 6\na.png, 9 x 6\n"
    assert say("/images") == say("/image") == "my cat.png, 9 x 6\na.png, 9 x 6\n"
    say("Which?", "And?")
    first, _, second, _ = talk.chat.conversation.messages
    assert names(first) == ["my cat.png", "a.png"] and names(second) == []
    assert "No picture is attached" in say("/images")


def test_attached_pictures_can_be_dropped_again(say, talk):
    say("/image a.png", "/image -", "Well?")
    assert not talk.chat.conversation.pictures


@pytest.mark.parametrize("line", ["{here}/a.png", "'{here}/my cat.png' a.png", "a.png "])
def test_a_dropped_picture_is_attached(say, talk, here, line):
    say(line.format(here=here))
    assert talk.attached and not talk.chat.conversation.messages


def test_a_message_about_a_file_is_a_message(say, talk):
    say("Compare it with a.png", "no-such.png")
    assert texts(talk)[::2] == ["Compare it with a.png", "no-such.png"]


def test_pages_of_a_pdf_are_pictures(say, talk, here):
    pages = [Image.new("RGB", (60, 40), "white") for _ in range(6)]
    pages[0].save(here / "doc.pdf", save_all=True, append_images=pages[1:])
    told = say("/image doc.pdf")
    assert len(talk.attached) == 6
    assert "doc.pdf, page 6, " in told


def test_crops_hold_for_pictures_sent_from_then_on(say, backend):
    say("/image a.png", "One?", "/crops on", "/image a.png", "Two?")
    first, second = backend.requests[-1].conversation.pictures
    assert (first.crops, second.crops) == ("auto", "on")
    with pytest.raises(ConversationError, match="auto, on or off, not 'maybe'"):
        say("/crops maybe")
    assert "sent from now on: on." in say("/crops")


def test_one_bad_picture_attaches_none(say, talk):
    with pytest.raises(Exception, match=r"none\.png"):
        say("/image a.png none.png")
    assert not talk.attached


def test_a_model_without_pictures_says_so_at_once(backend, say):
    backend._capabilities = type(DEFAULT_CAPABILITIES)(
        model="text", knows="", context_tokens=9, image_tokens=0
    )
    with pytest.raises(ConversationError, match="takes no pictures"):
        say("/image a.png")


# --- what is said ---------------------------------------------------------------------------------


def test_the_system_text_is_shown_set_and_dropped(say, talk, backend):
    assert "no system text" in say("/system")
    assert "whole conversation" in say("/system Be brief.\nBe kind.")
    assert say("/system") == "Be brief.\nBe kind.\n"
    say("Hi", "/system -", "Hi")
    assert [r.conversation.system for r in backend.requests] == ["Be brief.\nBe kind.", None]


def test_undo_steps_back(say, talk):
    say("One", "Two")
    assert "you: One" in say("/undo")
    assert texts(talk) == ["One", "One"]
    assert "beginning" in say("/undo")
    with pytest.raises(ConversationError, match="nothing to undo"):
        say("/undo")


def test_retry_answers_again_and_keeps_both(say, talk, backend):
    say("One")
    backend.says("Another.")
    assert "expect the same answer" in say("/retry")
    assert texts(talk) == ["One", "Another."]
    assert "version 2 of 2" in say("/branch")
    say("/branch 2 1")
    assert texts(talk) == ["One", "One"]


def test_retry_draws_with_another_seed(say, talk, backend):
    talk.chat.sampling = Sample(seed=7)
    say("One", "/retry", "/retry", "Two")
    assert [request.sampling.seed for request in backend.requests] == [7, 8, 9, 7]


def test_edit_rephrases_the_last_message_and_keeps_its_pictures(say, talk):
    with pytest.raises(ConversationError, match="ask something first"):
        say("/edit Anything")
    say("/image a.png", "What?", "/edit Who?")
    assert texts(talk) == ["Who?", "Who?"]
    assert names(talk.chat.conversation.messages[0]) == ["a.png"]


def test_resume_goes_on_with_an_answer_that_was_cut(say, talk, capsys):
    talk.options = {"max_new_tokens": 2}
    assert "/resume goes on" in say("one two three four")
    talk.backend.says("three ", "four")
    handle(talk, "/resume")
    assert capsys.readouterr().out == "three four\n"
    assert texts(talk)[-1] == "one two three four"


def test_branch_lists_goes_back_and_switches(say, talk):
    say("One", "Two", "/branch 2", "Three")
    assert texts(talk) == ["One", "One", "Three", "Three"]
    listed = say("/branch").splitlines()
    assert [line.split()[:2] for line in listed] == [
        ["1", "you"],
        ["2", "model"],
        ["3", "you"],
        ["4", "model"],
    ]
    assert listed[2].rstrip().endswith("version 2 of 2")
    say("/branch 3 1")
    assert texts(talk)[2:] == ["Two", "Two"]
    assert "beginning" in say("/branch 0")
    assert "Nothing has been said" in say("/branch")


@pytest.mark.parametrize("typed", ["3", "-1", "1 2", "1 0", "x", "1 1 1", "0 1", "9" * 99])
def test_a_branch_that_is_none_is_told_and_changes_nothing(say, talk, typed):
    say("One")
    with pytest.raises(ConversationError):
        say(f"/branch {typed}")
    assert texts(talk) == ["One", "One"]


def test_a_message_that_begins_with_a_slash(say, talk):
    say("//image is a command")
    assert texts(talk)[0] == "/image is a command"


@pytest.mark.parametrize(
    ("line", "told"),
    [("/imgae a.png", "Did you mean /image?"), ("/xyzzy", "/help lists them"), ("/", "/help")],
)
def test_an_unknown_command_is_told_with_the_nearest(say, line, told):
    with pytest.raises(ConversationError) as error:
        say(line)
    assert told in str(error.value)


def test_help_names_every_command(say):
    lines = say("/help").splitlines()
    for command in COMMANDS:
        (line,) = (line for line in lines if line.split()[0] == f"/{command.name}")
        assert command.arguments in line and command.help[:20] in line
    told = [line.split()[0] for line in lines]
    for name in [
        "image",
        "images",
        "system",
        "undo",
        "retry",
        "branch",
        "crops",
        "stats",
        "save",
        "open",
        "resume",
        "help",
        "quit",
    ]:
        assert f"/{name}" in told


def test_stats_tell_what_was_used_and_reused(say):
    # The scripted backend counts words, and 64 for a picture.
    told = say("/image a.png", "one two", "three", "/image a.png", "/stats")
    assert re.search(r"model +scripted", told)
    assert re.search(r"context +70 of 8,192 tokens", told)
    assert re.search(r"turns +2", told)
    assert re.search(r"pictures +1, 1 more attached", told)
    assert re.search(r"tokens +72 computed, 66 reused", told)  # 66 + 2 said, 3 new + 1 said
    assert re.search(r"last answer +1 token · 69 in the prompt, 66 of them cached", told)


def test_quit_ends_the_chat(say, talk):
    say("/quit")
    assert talk.ended


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (Status("queued", 2), "waiting, 2 ahead"),
        (Status("queued"), "waiting"),
        (Status("vision", 1, 2), "looking at picture 1 of 2"),
        (Status("prefill", 300, 900), "reading 300 of 900 tokens"),
    ],
)
def test_a_status_reads_as_people_say_it(status, line):
    assert describe(status) == line


def test_markup_and_controls_of_others_are_text(say, talk, capsys):
    assert "[red]no[/red]" in say("[red]no[/red] \x1b[2J", "/branch")
    assert "\x1b" not in say("/branch")
    assert "you: [red]no[/red] \ufffd[2J\n" in say("/branch 2")
    with pytest.raises(Exception) as error:
        say("/image [red]\x1b[2J.png")
    talk.screen.error(str(error.value))
    assert "\x1b" not in capsys.readouterr().err


def test_an_answer_cannot_command_the_terminal(backend, monkeypatch):
    class Tty(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Tty())
    backend.says("A \x1b[2J\x1b]52;c;aGk=\x07 red one.\n")
    handle(Talk(backend, Chat(backend), Screen(interactive=True), {}), "Well?")
    shown = sys.stdout.getvalue()
    assert "A \ufffd[2J\ufffd]52;c;aGk=\ufffd red one.\n" in shown
    assert "\x1b[2J" not in shown and "\x1b]52" not in shown


# --- files ----------------------------------------------------------------------------------------


def test_a_saved_chat_can_be_opened(say, talk, here):
    say("/image a.png", "/system Be brief.", "One", "/save my\\ talk.zip", "/branch 0", "Other")
    with pytest.raises(ConversationError, match="not saved"):
        say('/open "my talk.zip"')
    assert texts(talk) == ["Other", "Other"]
    assert "model: One" in say('/open! "my talk.zip"')
    assert texts(talk) == ["One", "One"]
    assert talk.chat.system == "Be brief."
    assert names(talk.chat.conversation.messages[0]) == ["a.png"]


def test_without_a_name_the_day_names_the_file_and_it_stays_the_chats_own(say, here):
    say("One", "/save")
    (file,) = here.glob("chat-*.chat.zip")
    assert re.fullmatch(r"chat-\d{4}-\d\d-\d\d-\d{4}\.chat\.zip", file.name)
    before = file.read_bytes()
    assert file.name in say("Two", "/save")
    assert list(here.glob("chat-*")) == [file]
    assert file.read_bytes() != before


def test_a_file_of_somebody_else_is_not_replaced_unasked(say, here):
    (here / "notes.zip").write_text("mine")
    say("One")
    with pytest.raises(ConversationError, match=r"/save! notes\.zip"):
        say("/save notes.zip")
    assert (here / "notes.zip").read_text() == "mine"
    say("/save! notes.zip", "/open notes.zip", "Two", "/save notes.zip")


def test_an_empty_chat_is_not_saved(say):
    with pytest.raises(ConversationError, match="nothing to save"):
        say("/save")


def test_what_cannot_be_opened_leaves_the_chat_as_it_is(say, talk, here):
    (here / "bad.zip").write_text("no chat")
    say("One", "/save x.zip")
    for name in ("bad.zip", "none.zip", ".", "two files", ""):
        with pytest.raises(ConversationError):
            say(f"/open {name}")
    assert texts(talk) == ["One", "One"]
    assert talk.saved_as.name == "x.zip"


def test_the_program_opens_a_saved_chat(converse, backend, say):
    say("One", "/save x.zip")
    code, out, err = converse("Two", options=["--open", "x.zip", "--system", "Be brief."])
    assert (code, out) == (0, "Two\n")
    assert "model: One" in err
    request = backend.requests[-1]
    assert [m.text for m in request.conversation.messages] == ["One", "One", "Two"]
    assert request.conversation.system == "Be brief."


# --- what goes wrong ------------------------------------------------------------------------------

WAYS = {
    "a message": ("Again",),
    "a retry": ("/retry",),
    "an edit": ("/edit Other",),
    "going on": ("/resume",),
}


@pytest.mark.parametrize("lines", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("failing", ["refused", "broken", "silent"])
def test_a_failure_leaves_the_chat_as_it_was(say, talk, backend, lines, failing):
    say("One", "/retry", "/branch 2 1", "Two", "/branch 2", "/image a.png")
    assert "version 1 of 2" in say("/branch")
    before = talk.chat.conversation
    if failing == "refused":
        backend.refusal = ConversationError("No.")
    elif failing == "broken":
        backend.says("Well ", error=EngineError("It broke."))
    else:
        backend.says(" ")
    if failing == "silent":
        say(*lines)
    else:
        with pytest.raises((ConversationError, EngineError)):
            say(*lines)
    assert talk.chat.conversation == before
    assert "version 1 of" in say("/branch")
    assert [picture.name for picture in talk.attached] == ["a.png"]
    backend.says()
    say("Three")
    assert names(talk.chat.conversation.messages[2]) == ["a.png"]


def test_a_failure_is_one_line_and_the_chat_goes_on(converse, backend):
    backend.refusal = ConversationError("It does not fit.")
    code, out, err = converse("One", "Two")
    assert (code, out, err) == (3, "Two\n", "It does not fit.\n")


def test_a_bug_is_one_line_without_its_details_and_the_chat_goes_on(converse, backend):
    backend.refusal = RuntimeError("/root/secret")
    code, out, err = converse("One", "Two")
    assert (code, out) == (3, "Two\n")
    assert "RuntimeError" in err and "secret" not in err and len(err.splitlines()) == 1


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """Press Ctrl-C after so many seconds, as often as asked."""
    timers = []

    def press(*after):
        for seconds in after:
            timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
            timers.append(timer)
            timer.start()

    yield press
    for timer in timers:
        timer.cancel()


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(say, talk, backend, ctrl_c, capsys):
    handler = signal.getsignal(signal.SIGINT)
    backend._seconds_per_chunk = 0.2
    ctrl_c(0.5)
    handle(talk, "one two three four five six seven eight")
    out, told = capsys.readouterr()
    assert out in ("one \n", "one two \n", "one two three \n")
    assert told.startswith("stopped · ")
    backend._seconds_per_chunk = 0
    say("next")
    assert texts(talk)[1:] == [out.rstrip("\n"), "next", "next"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_before_the_first_word_gives_everything_back(say, talk, backend, ctrl_c):
    say("/image a.png")
    backend._seconds_per_chunk = 1
    ctrl_c(0.2)
    assert "stopped before the first word" in say("Hello")
    assert not talk.chat.conversation.messages
    assert len(talk.attached) == 1


def test_ctrl_c_while_a_request_is_prepared_stops_it(say, backend, monkeypatch):
    backend._seconds_per_chunk = 0.5
    prepare = ScriptedBackend.stream

    def slowly(self, conversation, **options):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # the signal arrives
        return prepare(self, conversation, **options)

    monkeypatch.setattr(ScriptedBackend, "stream", slowly)
    assert "stopped before the first word" in say("Hello")


def test_only_insisting_ends_the_program(say, backend, monkeypatch, ctrl_c):
    backend._seconds_per_chunk = 0.5
    monkeypatch.setattr(chat_talk.Stream, "cancel", lambda self: None)  # it does not listen
    ctrl_c(0.1, 0.2, 0.3)
    with pytest.raises(SystemExit) as ended:
        say("one two three four five six")
    assert ended.value.code == 130


def test_a_pipe_that_is_interrupted_ends(converse, backend, ctrl_c):
    backend._seconds_per_chunk = 0.2
    ctrl_c(0.5)
    code, out, _ = converse("one two three four five", "Not reached.")
    assert code == 130
    assert out.startswith("one") and "Not" not in out


def test_a_chat_on_a_terminal(here):
    # One process for all of it, since each takes seconds to start.
    code = SLOWLY.format(loading=0, options=["--image", "a.png"])
    with PtyProcess(code, cwd=here) as terminal:
        # 1) the start: what it is, and the picture as blocks, since nothing answers the question
        terminal.wait_for("/help lists the commands")
        terminal.wait_for("▀")
        terminal.wait_for("a.png, 9 x 6")
        terminal.wait_for("(1 picture) >")

        # 2) Ctrl-C while it answers: the answer stops, the chat lives
        terminal.press("one two three four five six seven eight nine ten\r")
        terminal.wait_for("looking at picture 1 of 1")
        terminal.wait_for("two")
        terminal.wait_for("three")
        terminal.press("\x03")
        terminal.wait_for("stopped · ")
        terminal.wait_for(">")

        # 3) the same as a signal from elsewhere
        terminal.press("eleven twelve thirteen fourteen fifteen sixteen seventeen\r")
        terminal.wait_for("reading")
        terminal.wait_for("twelve")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("stopped · ")
        terminal.wait_for(">")

        # 4) Ctrl-C at the prompt clears the line; on an empty one it says how to end
        terminal.press("never sent\x03")
        terminal.wait_for("never sent")
        terminal.wait_for(">")
        terminal.press("\x03")
        terminal.wait_for("Ctrl-D or /quit ends")
        terminal.wait_for(">")

        # 5) pasted lines are one message; Alt-Enter begins a line
        terminal.press("\x1b[200~pasted a\npasted b\n\x1b[201~and\x1b\rmore\r")
        terminal.wait_for("tokens/s")
        terminal.wait_for(">")
        terminal.press("/branch\r")
        terminal.wait_for("pasted a pasted b and more")
        terminal.wait_for(">")
        terminal.press("\x04")
        assert terminal.ends_with() == 0
    lines = (here / "cache" / "history").read_text()
    assert "+pasted a\n+pasted b\n+and\n+more\n" in lines
    assert "never sent" not in lines


def test_ctrl_c_while_loading_ends_the_program(here):
    code = SLOWLY.format(loading=60, options=[])
    with PtyProcess(code, cwd=here) as terminal:
        terminal.wait_for("loading")
        terminal.press("\x03")
        assert terminal.ends_with() == 130
        assert "Traceback" not in terminal.screen


# --- the prompt -----------------------------------------------------------------------------------


def typed(keys, **options):
    """Return the lines that come of pressing keys."""
    with create_pipe_input() as source:
        source.send_text(keys)
        options = {"label": lambda: "> ", "history": InMemoryHistory(), **options}
        return list(Prompt(source=source, target=DummyOutput(), **options))


def test_enter_sends_and_alt_enter_begins_a_line():
    assert typed("one\rtwo\x1b\rthree\r\r  \r\x04") == ["one", "two\nthree"]


def test_what_was_typed_before_the_prompt_is_in_the_line():
    given = iter(["be"])
    assert typed("fore\r\x04", typed=lambda: next(given, "")) == ["before"]


def test_earlier_lines_come_back_in_the_next_session(here):
    assert typed("remember me\r\x04", history=line_history()) == ["remember me"]
    assert typed("\x1b[A\r\x04", history=line_history()) == ["remember me"]
    file = here / "cache" / "history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_history_that_others_could_read_is_closed_to_them(here):
    file = here / "cache" / "history"
    file.parent.mkdir()
    file.write_text("")
    file.chmod(0o644)
    line_history()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_a_place_for_the_history_there_is_none(here, monkeypatch):
    (here / "cache").write_text("no folder")
    history = line_history()
    assert typed("one\r\x04", history=history) == typed("\x1b[A\r\x04", history=history) == ["one"]
    monkeypatch.setenv("GEMMA3VL_CACHE", str(here / "other"))
    history = line_history()
    (here / "other" / "history").unlink()
    (here / "other" / "history").mkdir()  # it cannot be written any more
    assert typed("one\r\x04", history=history) == ["one"]


def completions(text):
    found = ChatCompleter().get_completions(Document(text), CompleteEvent())
    return [each.text for each in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/im", ["/image", "/images"]),
        ("/sa", ["/save", "/save!"]),
        ("/image a", [".png"]),
        ("/image my\\ c", ["at.png"]),
        ("/image m", [r"y\ cat.png"]),
        ("/image a.png it", [r"\'s.png"]),
        ("/open sub", ["/"]),
        ("/system a", []),
        ("im", []),
        ("Look at a", []),
    ],
)
def test_commands_and_paths_are_completed(here, text, expected):
    (here / "sub").mkdir()
    assert completions(text) == expected
