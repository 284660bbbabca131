"""`gemma3vl replay`: which model is loaded for a saved chat, what is said, and the exit code."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

import gemma3vl_app.backends.local
from gemma3vl_app.backends.local import load
from gemma3vl_app.chat import Chat
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES

DEMO = replace(DEFAULT_CAPABILITIES, model="demo", weights="fp32")
HUB = replace(DEMO, model="google/gemma-3-4b-it", revision="c" * 40, weights="nf4")


@pytest.fixture
def loaded(monkeypatch):
    """What is loaded instead of any model: its wishes, and what it says."""
    wishes = {}

    def fake(model, *, progress, **given):
        wishes.update(given, model=model)
        return ScriptedBackend(wishes.pop("says", None), capabilities=wishes.pop("is", DEMO))

    monkeypatch.setattr(gemma3vl_app.backends.local, "load", fake)
    return wishes


def saved(folder, *questions: str, capabilities=DEMO) -> str:
    chat = Chat(ScriptedBackend(capabilities=capabilities))
    for question in questions:
        chat.ask(question)
    return str(chat.save(folder / "a.chat.zip"))


def test_answers_that_come_out_the_same_are_good_news(loaded, run, tmp_path):
    code, out, err = run("replay", saved(tmp_path, "one", "two"))
    assert (code, err) == (0, "")
    assert "2 answers, all as recorded." in out
    assert (loaded["model"], loaded["weights"], loaded.get("revision")) == ("demo", "fp32", None)


def test_the_recorded_commit_and_precision_are_loaded(loaded, run, tmp_path):
    loaded["is"] = HUB
    assert run("replay", saved(tmp_path, "one", capabilities=HUB))[0] == 0
    assert (loaded["model"], loaded["weights"]) == ("google/gemma-3-4b-it", "nf4")
    assert loaded.get("revision") == "c" * 40


def test_another_place_and_precision_can_be_given(loaded, run, tmp_path):
    run("replay", saved(tmp_path, "one", capabilities=HUB), "--model", "demo", "--weights", "int8")
    assert (loaded["model"], loaded["weights"], loaded.get("revision")) == ("demo", "int8", None)


def test_a_difference_is_shown_and_is_exit_code_3(loaded, run, tmp_path):
    loaded.update({"says": ["A \x1b[31mlie"], "is": replace(DEMO, weights="nf4")})
    code, out, _ = run("replay", saved(tmp_path, "one"))
    assert code == 3
    assert "message 2: different" in out
    assert "then: one" in out
    assert "\x1b" not in out
    assert "0 of 1 answers came out as recorded." in out
    assert "weights: fp32 then, nf4 now" in out


def test_json_has_everything(loaded, run, tmp_path):
    code, out, _ = run("replay", saved(tmp_path, "one"), "--json")
    found = json.loads(out)
    assert (code, found["same"], found["answers"][0]["recorded"]) == (0, True, "one")


def test_a_chat_of_a_folder_asks_where_it_is_now(loaded, run, tmp_path):
    file = saved(tmp_path, "one", capabilities=replace(DEMO, model="my-model"))
    code, out, err = run("replay", file)
    assert (code, out) == (1, "")
    assert "'my-model', which is none of the models known by name" in err
    assert "--model PATH" in err


def test_another_repository_is_not_downloaded_because_a_file_says_so(loaded, run, tmp_path):
    file = saved(tmp_path, "one", capabilities=replace(HUB, model="mallory/gemma-3-4b-it"))
    code, _, err = run("replay", file)
    assert code == 1
    assert "--model OWNER/NAME" in err
    assert "model" not in loaded


def test_a_chat_without_answers_and_a_bad_file_are_one_line(loaded, run, tmp_path):
    for file, told in (
        (saved(tmp_path), "holds no answer"),
        (__file__, "damaged or no conversation file"),
        (str(tmp_path / "none"), "cannot be read"),
    ):
        code, out, err = run("replay", file)
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert told in err


def test_a_real_process_replays_a_real_chat_bit_for_bit(tiny, tmp_path):
    with load(tiny, weights="fp32") as backend:
        chat = Chat(backend)
        for question in ("one", "two"):
            chat.ask(question, max_new_tokens=8)
        chat.save(tmp_path / "a.chat.zip")
    done = subprocess.run(
        [sys.executable, "-m", "gemma3vl_app.cli", "replay", "a.chat.zip", "--model", str(tiny)],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "2 answers, all as recorded." in done.stdout
