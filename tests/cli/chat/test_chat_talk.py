"""What goes wrong in a chat, and Ctrl-C: it is as it was before, and goes on."""

import os
import signal
import time

import pytest

from gemma3vl_app.cli import chat_talk
from gemma3vl_app.cli.chat_commands import handle
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.cli.chat.conversing import SLOWLY, names, texts
from tests.cli.pty_process import PtyProcess

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


# --- Ctrl-C ---------------------------------------------------------------------------------------


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
