"""`gv.batch`: what is asked, in which order, what fails alone and what ends a run."""

import json
import threading
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

import gemma3vl_app as gv
import gemma3vl_app.folders.batch
from gemma3vl_app.errors import (
    BusyError,
    ContextLengthError,
    ConversationError,
    EngineError,
    MemoryLimitError,
    PictureError,
)
from gemma3vl_app.folders import asking
from gemma3vl_app.generation import Answer, Greedy, Sample, Usage
from gemma3vl_app.testing import tiny_checkpoint
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES
from tests.folders.naming_backend import NamingBackend, draw_pictures

NAMES = [f"{number}.png" for number in range(12)]


@pytest.fixture
def folder(tmp_path) -> Path:
    return draw_pictures(tmp_path / "photos", *NAMES)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_name_stays_a_function_after_its_module_was_imported():
    assert gemma3vl_app.folders.batch.batch is gv.batch
    assert callable(gv.batch)


# --- what is asked --------------------------------------------------------------------------------


def test_every_picture_is_asked_about_and_the_answers_come_in_order(folder):
    backend = NamingBackend(seconds={"0.png": 0.2, "5.png": 0.1})
    report = gv.batch(backend, folder, prompt="What?")
    assert [item.file for item in report.items] == NAMES
    assert [item.text for item in report.items] == [f"This is {name}." for name in NAMES]
    assert (report.done, report.failed, report.out) == (12, (), None)


def test_the_request_is_the_one_that_was_asked_for(folder):
    backend = NamingBackend()
    backend.add_adapter("poet", "somewhere")
    gv.batch(
        *(backend, folder),
        prompt="What?",
        system="Be brief.",
        sampling=Sample(seed=3),
        max_new_tokens=7,
        adapter="poet",
        crops="off",
    )
    request = backend.requests[0]
    (message,) = request.conversation.messages
    assert message.text == "What?"
    assert message.pictures[0].crops == "off"
    assert request.conversation.system == "Be brief."
    assert (request.sampling, request.max_new_tokens) == (Sample(seed=3), 7)
    assert request.adapter == "poet"
    assert len({each.session for each in backend.requests}) == 1
    assert request.session


def test_answers_are_greedy_and_as_long_as_the_model_says_by_default(folder):
    backend = NamingBackend()
    gv.batch(backend, folder, prompt="What?")
    request = backend.requests[0]
    assert request.sampling == Greedy()
    assert request.max_new_tokens == DEFAULT_CAPABILITIES.answer_tokens


def test_only_so_many_are_in_flight(folder, monkeypatch):
    monkeypatch.setattr(asking, "IN_FLIGHT", 4)
    backend = NamingBackend(seconds={name: 0.05 for name in NAMES})
    gv.batch(backend, folder, prompt="What?")
    assert backend.most_running == 4


def test_only_so_many_wait_for_a_slow_one_to_be_written(folder, monkeypatch):
    monkeypatch.setattr(asking, "IN_FLIGHT", 4)
    monkeypatch.setattr(asking, "UNWRITTEN", 6)
    backend = NamingBackend(seconds={"0.png": 0.5})  # the others are done long before
    steps = []
    gv.batch(
        *(backend, folder),
        prompt="What?",
        progress=lambda step: steps.append((step.done, len(backend.asked))),
    )
    assert steps[:2] == [(0, 0), (6, 6)]
    assert backend.asked == NAMES


def test_a_full_queue_is_waited_for(folder, monkeypatch):
    monkeypatch.setattr(asking, "_BUSY_SEC", 0.01)

    class Crowded(NamingBackend):
        refused = 0

        def stream(self, conversation, **options):
            if self._own_running >= 2 or (not self.asked and self.refused < 3):
                self.refused += 1
                raise BusyError("Full.")
            return super().stream(conversation, **options)

    backend = Crowded(seconds={"3.png": 0.1})
    report = gv.batch(backend, folder, prompt="What?")
    assert (report.done, backend.most_running) == (12, 2)
    assert backend.asked == NAMES


def test_progress_counts_what_is_done_and_what_failed(folder, tmp_path):
    backend = NamingBackend(failing={"2.png": PictureError("Bad.")})
    steps = []
    gv.batch(backend, folder, prompt="What?", out=tmp_path / "a.jsonl", progress=steps.append)
    first, last = steps[0], steps[-1]
    assert (first.stage, first.done, first.total, first.unit) == ("batch", 0, 12, "pictures")
    assert (last.done, last.message) == (12, "1 failed")
    steps.clear()
    gv.batch(backend, folder, prompt="What?", out=tmp_path / "a.jsonl", progress=steps.append)
    assert [(step.done, step.message) for step in steps] == [(12, "1 failed")]


# --- with a schema --------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}


class Named(BaseModel):
    name: str = Field(pattern="^[^3]*$")  # what this backend's grammar does not know


def test_with_a_schema_answers_are_data_and_the_schema_is_closed(folder, tmp_path):
    backend = NamingBackend()
    report = gv.batch(backend, folder, prompt="What?", schema=SCHEMA, out=tmp_path / "a.jsonl")
    assert report.items[0].value == {"name": "0.png"}
    assert lines(tmp_path / "a.jsonl")[0]["value"] == {"name": "0.png"}
    assert backend.requests[0].schema["additionalProperties"] is False


def test_a_pydantic_model_also_checks_what_a_schema_cannot_say(folder):
    report = gv.batch(NamingBackend(), folder, prompt="What?", schema=Named)
    assert [item.file for item in report.failed] == ["3.png"]
    assert "does not fit the schema" in report.failed[0].error
    assert report.items[1].value == {"name": "1.png"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer('{"na', "length", Usage(completion_tokens=2)), "cut after 2 tokens"),
        (Answer("Well.", "stop"), "not valid JSON"),
        (Answer('{"name": "a", "name": "b"}', "stop"), "the key 'name' twice"),
        (Answer('{"na', "cancelled"), "stopped"),
    ],
)
def test_an_answer_that_is_no_whole_json_is_a_failure_and_kept_as_text(folder, answer, reason):
    backend = NamingBackend(answers={"2.png": answer})
    (failed,) = gv.batch(backend, folder, prompt="What?", schema=SCHEMA).failed
    assert reason in failed.error
    assert (failed.file, failed.text) == ("2.png", answer.text)


def test_without_a_schema_a_cut_text_is_kept(folder):
    backend = NamingBackend(answers={"2.png": Answer("A red", "length")})
    report = gv.batch(backend, folder, prompt="What?")
    assert not report.failed
    assert (report.items[2].text, report.items[2].finish_reason) == ("A red", "length")


def test_a_real_engine_keeps_to_the_schema_while_others_are_answered(tmp_path):
    folder = draw_pictures(tmp_path / "photos", *(f"{number}.png" for number in range(4)))
    schema = {"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"]}
    with gv.load(tiny_checkpoint(tmp_path / "tiny")) as backend:
        first = gv.batch(
            *(backend, folder), prompt="Red?", schema=schema, out=tmp_path / "a.jsonl", crops="off"
        )
        again = gv.batch(
            *(backend, folder), prompt="Red?", schema=schema, out=tmp_path / "b.jsonl", crops="off"
        )
    assert first.items == again.items
    assert not first.failed
    assert all(type(item.value["red"]) is bool for item in first.items)
    assert all(item.usage.image_tokens == 16 for item in first.items)


# --- what fails -----------------------------------------------------------------------------------


def test_failures_of_single_pictures_are_told_and_the_rest_is_done(folder):
    (folder / "5.png").write_bytes(b"This is no picture.")
    backend = NamingBackend(
        failing={"1.png": ContextLengthError("Too long.")},
        breaking={"2.png": MemoryLimitError("No memory."), "3.png": EngineError("It broke.")},
    )
    report = gv.batch(backend, folder, prompt="What?")
    reasons = {item.file: item.error for item in report.failed}
    assert list(reasons) == ["1.png", "2.png", "3.png", "5.png"]
    assert (reasons["2.png"], reasons["3.png"]) == ("No memory.", "It broke.")
    assert "5.png" in reasons["5.png"]
    assert report.done == 8


def test_a_request_that_the_engine_dropped_is_tried_once_more(folder):
    class Stumbling(NamingBackend):
        def stream(self, conversation, **options):
            (picture,) = conversation.pictures
            if picture.name == "4.png" and "4.png" in self.asked:
                self.breaking.clear()
            return super().stream(conversation, **options)

    backend = Stumbling(breaking={"4.png": EngineError("It broke.")})
    assert not gv.batch(backend, folder, prompt="What?").failed
    assert backend.asked.count("4.png") == 2


def test_a_backend_that_fails_one_picture_after_the_other_ends_the_run(folder, tmp_path):
    gone = dict.fromkeys(NAMES[3:], EngineError("The server is gone."))
    backend = NamingBackend(breaking={NAMES[1]: EngineError("It broke."), **gone})
    out = tmp_path / "a.jsonl"
    with pytest.raises(EngineError, match="is gone"):
        gv.batch(backend, folder, prompt="What?", out=out)
    assert [line["file"] for line in lines(out)] == NAMES[:5]
    backend.breaking.clear()
    report = gv.batch(backend, folder, prompt="What?", out=out, retry_failed=True)
    assert (report.done, len(report.failed)) == (len(NAMES), 0)


def test_a_backend_that_is_closed_ends_the_run_and_what_was_done_stays(folder, tmp_path):
    backend = NamingBackend(seconds={name: 0.5 for name in NAMES[5:]})

    def close(step):
        if step.done >= 5:
            backend.breaking = {name: EngineError("Closed before the end.") for name in NAMES[5:]}
            backend.close()

    out = tmp_path / "a.jsonl"
    with pytest.raises(EngineError, match="has been closed"):
        gv.batch(backend, folder, prompt="What?", out=out, progress=close)
    assert [line["file"] for line in lines(out)] == NAMES[:5]

    whole = tmp_path / "b.jsonl"
    gv.batch(NamingBackend(), folder, prompt="What?", out=out)
    gv.batch(NamingBackend(), folder, prompt="What?", out=whole)
    assert out.read_bytes() == whole.read_bytes()


def test_an_interrupt_cancels_what_runs_keeps_what_is_done_and_goes_on_later(folder, tmp_path):
    out = tmp_path / "a.csv"
    backend = NamingBackend(seconds={name: 30.0 for name in NAMES[4:]})

    def interrupt(step):
        if step.done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gv.batch(backend, folder, prompt="What?", out=out, progress=interrupt)
    assert backend.cancelled == NAMES[4:]
    assert out.read_text().count("This is") == 4
    later = NamingBackend()
    report = gv.batch(later, folder, prompt="What?", out=out)
    assert later.asked == NAMES[4:]
    assert (report.earlier, report.done) == (4, 12)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"prompt": " "}, ConversationError, "prompt is empty"),
        ({"adapter": "poet"}, ConversationError, "no adapter 'poet'"),
        ({"max_new_tokens": 0}, ConversationError, "max_new_tokens is 0"),
        ({"schema": "name"}, ConversationError, "schema must be"),
        ({"out": "a.txt"}, ConversationError, "ends in .jsonl or .csv"),
        ({"out": "no/such/folder/a.csv"}, ConversationError, "Make it first"),
    ],
)
def test_what_is_wrong_for_every_picture_ends_the_run(folder, options, error, told):
    with pytest.raises(error, match=told):
        gv.batch(NamingBackend(), folder, **{"prompt": "What?", **options})


def test_a_model_without_pictures_or_schemas_is_told_at_once(folder):
    blind = gv.Capabilities(model="words", knows="", context_tokens=99, image_tokens=0)
    with pytest.raises(ConversationError, match="'words' takes no pictures"):
        gv.batch(NamingBackend(capabilities=blind), folder, prompt="What?")
    free = gv.Capabilities(model="free", knows="", context_tokens=99, image_tokens=9, schema=False)
    with pytest.raises(ConversationError, match="cannot be held to a schema"):
        gv.batch(NamingBackend(capabilities=free), folder, prompt="What?", schema=SCHEMA)


def test_pictures_are_opened_just_before_they_are_sent(folder, monkeypatch):
    monkeypatch.setattr(asking, "IN_FLIGHT", 2)
    backend = NamingBackend()
    backend.open.clear()  # nothing is answered yet
    opened, real = [], gv.Picture.open
    monkeypatch.setattr(
        gv.Picture, "open", lambda path, **how: opened.append(path.name) or real(path, **how)
    )
    done = threading.Thread(target=lambda: gv.batch(backend, folder, prompt="What?"))
    done.start()
    while len(backend.asked) < 2:
        pass
    assert opened == NAMES[:2]
    backend.open.set()
    done.join(20)
    assert opened == NAMES


def test_a_table_that_was_interrupted_before_its_first_line_is_gone_on_with(folder, tmp_path):
    out = tmp_path / "o.csv"

    class Interrupted(NamingBackend):
        def stream(self, *_, **__):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gv.batch(Interrupted(), folder, prompt="?", out=out)
    gv.batch(NamingBackend(), folder, prompt="?", out=out)
    whole = out.read_bytes()
    assert whole.count(b"\n") == len(NAMES) + 1
    with pytest.raises(KeyboardInterrupt):
        gv.batch(Interrupted(), folder, prompt="?", out=out, restart=True)
    out.write_bytes(whole)  # as a kill would have left it
    gv.batch(NamingBackend(), folder, prompt="?", out=out)
    assert out.read_bytes() == whole
