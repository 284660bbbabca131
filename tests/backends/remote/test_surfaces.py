"""Page, notebook, command line, tasks, batch and chat files work on a model of a server."""

import json
import sys

import pydantic
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import gemma3vl_app as gv
from gemma3vl_app import cli
from gemma3vl_app.backends.protocol import Explains, SeesPictures
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.manager import ModelManager
from gemma3vl_app.notebook.displays import shown
from gemma3vl_app.server import create_app
from gemma3vl_app.webui.library import Library
from gemma3vl_app.webui.models import Models
from gemma3vl_app.webui.shown_pictures import ShownPictures
from gemma3vl_app.webui.tab import Tab
from gemma3vl_app.webui.view import Draft, Settings
from gemma3vl_app.webui.words import ENGLISH
from tests.backends.remote.fake_server import DONE, delta, event

RED = Image.new("RGB", (30, 20), "red")


@pytest.fixture
def server(serve):
    return serve("vllm")


@pytest.fixture
def backend(server, connect):
    return connect(server)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        RED.save(name)
    return tmp_path


# --- the page ---


@pytest.fixture
def tab(backend, tmp_path):
    pictures = ShownPictures(tmp_path / "shown")
    return Tab(Library(lambda: backend), pictures, lambda: backend, "anna")


def last(views):
    return list(views)[-1]


def test_a_turn_on_the_page_and_another_one(tab, folder):
    view = last(tab.ask(Draft("What is it?", (str(folder / "a.png"),))))
    assert [shown.text for shown in view.messages] == ["What is it?", "What is it?"]
    view = last(tab.ask(Draft("And why?")))
    assert view.messages[-1].text == "And why?"
    assert not tab.explains


def test_the_confidence_of_each_word_is_shown_where_the_server_tells_it(tab):
    view = last(tab.ask(Draft("one two"), Settings(confidence=True)))
    assert [token.text for token in view.messages[-1].tokens] == ["one ", "two"]


def test_an_answer_that_fails_is_told_on_the_page_and_the_question_comes_back(tab, server, caplog):
    server.script.append(lambda _: server.raw([event({"error": {"message": "no memory"}}), DONE]))
    view = last(tab.ask(Draft("Why?")))
    assert view.is_error and "model's server failed while it was answering" in view.line
    assert server.host not in view.line and "no memory" not in view.line
    assert f"server at {server.host} failed while it was answering: no memory" in caplog.text
    assert view.draft == Draft("Why?")


def test_the_page_is_served_and_its_models_can_be_changed_to_a_server(server):
    with ModelManager() as manager:
        backend = manager.load(server.url)
        client = TestClient(create_app(backend, manager=manager), base_url="http://127.0.0.1")
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/").status_code == 200
        (resident,) = manager.resident
        assert (resident.name, resident.plan, resident.current) == (server.url, None, True)


def test_the_operator_may_name_a_server_and_nobody_else(serve):
    one, two = serve("vllm"), serve("sglang", models=("other",))
    with ModelManager() as manager:
        manager.load(one.url)
        hosted = Models(
            manager, names=("demo",), may_change=lambda owner: owner == "anna", any_source=False
        )
        for owner, word in (("bob", "Only the operator"), ("anna", "does not offer")):
            with pytest.raises(ConversationError, match=word):
                list(hosted.act(owner, "use", two.url, "auto"))
        assert not two.bodies
        here = Models(manager, names=("demo",))
        list(here.act("me", "use", two.url, "auto"))
        assert manager.current.capabilities.model == "other"


def test_where_servers_are_is_shown_to_the_operator_only(server):
    with ModelManager() as manager:
        manager.load(server.url)
        page = Models(manager, names=("demo",), may_change=lambda owner: owner == "anna")
        shown_to = {
            owner: {each["name"]: each for each in page.as_values(owner, ENGLISH)["models"]}
            for owner in ("anna", "bob")
        }
    assert shown_to["anna"][server.url]["fits"]
    assert "takes no memory here" in shown_to["anna"][server.url]["reasons"][0]
    assert set(shown_to["bob"]) == {"demo"}


# --- notebooks, tasks, files ---


def test_what_only_a_model_in_this_process_tells_is_refused_in_words(backend):
    assert not isinstance(backend, SeesPictures) and not isinstance(backend, Explains)
    with pytest.raises(ConversationError, match="runs elsewhere"):
        gv.notebook.seen(backend, RED)


def test_a_chat_is_a_value_in_a_notebook(backend):
    chat = gv.Chat(backend)
    chat.ask("What is it?", images=[RED])
    assert "What is it?" in shown(chat).html


@pytest.mark.notebook
def test_the_chat_below_a_cell(backend):
    widget = gv.notebook.chat(backend)
    widget.add(RED)
    widget._text.value = "What is it?"
    widget._send.click()
    widget.wait()
    assert widget.chat.conversation.messages[-1].text == "What is it?"


def test_tasks_and_schemas(backend, server):
    class Ticket(pydantic.BaseModel):
        paid: bool

    assert gv.caption(backend, RED).text
    assert gv.answer(backend, RED, "How many?").text
    assert gv.extract(backend, RED, Ticket).value == Ticket(paid=True)
    held = server.bodies[-1]["response_format"]["json_schema"]["schema"]
    assert held["properties"]["paid"]["type"] == "boolean"


def test_a_chat_is_saved_opened_and_gone_on_with(backend, tmp_path):
    chat = gv.Chat(backend)
    chat.ask("What is it?", images=[RED], logprobs=1)
    chat.save(tmp_path / "talk.g3chat")
    again = gv.Chat.open(tmp_path / "talk.g3chat", backend)
    assert again.conversation == chat.conversation
    assert again.ask("And now?").text == "And now?"
    assert again.regenerate().answer.text == "And now?"
    again.undo()
    assert again.conversation == chat.conversation


def test_a_stopped_answer_is_gone_on_with_where_the_server_can(backend, server):
    chat = gv.Chat(backend)
    chat.ask("one two three four", max_new_tokens=2)
    server.script.append(lambda _: server.raw([delta("three"), DONE]))
    chat.resume().wait()
    assert chat.conversation.messages[-1].text == "one two three"
    assert server.bodies[-1]["continue_final_message"]


# --- the command line ---


@pytest.fixture
def run(monkeypatch, capsys, folder):
    def run(*command: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gemma3vl", *command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    return run


def test_a_question_on_the_command_line(run, server):
    code, out, _ = run("ask", server.url, "What is it?", "--image", "a.png")
    assert (code, out) == (0, "What is it?\n")


def test_tasks_and_folders_on_the_command_line(run, server, folder):
    code, out, _ = run("caption", "a.png", "--model", server.url, "--json")
    assert code == 0
    assert json.loads(out)["model"] == "tiny"
    done = run("batch", ".", "--model", server.url, "--prompt", "What is it?", "--out", "out.jsonl")
    assert done[0] == 0, done[2]
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert {line["file"] for line in lines if "file" in line} == {"a.png", "b.png"}


def test_mistakes_on_the_command_line_are_a_line(run, server):
    code, _, err = run("ask", server.url, "Hi", "--weights", "nf4")
    assert (code, err.count("\n")) == (1, 1)
    assert "--weights: the server at" in err or "weights: the server at" in err
    code, _, err = run("ask", "http://127.0.0.1:9/v1", "Hi")
    assert code == 1 and "cannot be reached" in err
    code, _, err = run("plan", server.url)
    assert code == 1 and "is placed and computed by its server" in err


def test_the_key_comes_from_the_environment(run, serve, monkeypatch):
    server = serve(key="sk-secret")
    monkeypatch.setenv("GEMMA3VL_REMOTE_KEY", "sk-secret")
    assert run("ask", server.url, "Hi")[:2] == (0, "Hi\n")
    monkeypatch.setenv("GEMMA3VL_REMOTE_KEY", "sk-wrong")
    code, out, err = run("ask", server.url, "Hi")
    assert code == 1 and "sk-wrong" not in out + err
