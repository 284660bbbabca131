"""`evaluate`: asking, scoring, going on, and what fails."""

import dataclasses
import json
import threading

import pytest
from PIL import Image

import gemma3vl_app as gv
from gemma3vl_app.errors import (
    BusyError,
    ConversationError,
    EngineError,
    EvaluationError,
    MemoryLimitError,
)
from gemma3vl_app.evaluation.data import read_data
from gemma3vl_app.evaluation.letters import Letters
from gemma3vl_app.evaluation.prompts import conversation_of
from gemma3vl_app.evaluation.run import LIKELIEST, WRITTEN
from gemma3vl_app.evaluation.suites import SUITES
from gemma3vl_app.folders import asking
from gemma3vl_app.generation import Greedy, Token
from gemma3vl_app.messages import Conversation, Text
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES
from tests.evaluation.answering import AnsweringBackend, animals, write_jsonl

RIGHT = {f"number {n}?": f"animal {n}" for n in range(100)}


def test_answers_are_scored_over_all_items_and_by_kind(tmp_path):
    backend = AnsweringBackend({k: v for k, v in RIGHT.items() if k != "number 3?"})
    done = gv.evaluate(backend, "docvqa", data=animals(tmp_path))
    assert [(s.kind, s.items, round(s.value, 3)) for s in done.scores] == [
        ("all", 6, 0.833),
        ("even", 3, 1.0),
        ("odd", 3, 0.667),
    ]
    assert done.score.interval[0] < done.score.value < done.score.interval[1] <= 1.0
    assert [case.text for case in done.worst(9)] == ["I do not know"]
    assert not done.failed and done.folder is None


def test_each_item_is_asked_with_the_suites_prompt_greedily_and_for_itself(tmp_path):
    backend = AnsweringBackend()
    gv.evaluate(backend, "docvqa", data=animals(tmp_path, 2), crops="off")
    first = backend.requests[0]
    assert first.conversation.messages[-1].text == (
        "What is number 0?\nAnswer the question using a single word or phrase."
    )
    assert first.sampling == Greedy() and first.max_new_tokens == 32
    assert [p.crops for p in first.conversation.pictures] == ["off"]
    assert {len(request.conversation.messages) for request in backend.requests} == {1}


def test_many_are_in_flight_at_once_but_not_all(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "IN_FLIGHT", 4)
    running = []

    class Counting(AnsweringBackend):
        def stream(self, *args, **options):
            stream = super().stream(*args, **options)
            running.append(self.running)
            return stream

    backend = Counting()
    backend._seconds_per_chunk = 0.01
    gv.evaluate(backend, "docvqa", data=animals(tmp_path, 20))
    assert max(running) == 4


def test_everything_about_the_run_is_written_down(tmp_path):
    gv.evaluate(AnsweringBackend(RIGHT), "docvqa", data=animals(tmp_path), out=tmp_path / "run")
    told = json.loads((tmp_path / "run" / "results.json").read_text())
    assert told["data"]["config"] is told["data"]["split"] is None and told["free_prompt"] == ""
    assert told["suite"] == "docvqa" and told["data"]["items"] == 6
    assert told["model"]["name"] == "scripted" and set(told["model"]) >= {"revision", "weights"}
    assert told["settings"] == {
        "answers": WRITTEN,
        "sampling": "greedy",
        "max_new_tokens": 32,
        "crops": "auto",
        "adapter": None,
    }
    assert told["scores"][0] == {
        "kind": "all",
        "metric": "anls",
        "value": 1.0,
        "interval": None,
        "items": 6,
        "failed": 0,
    }
    assert told["interval"]["level"] == 0.95 and told["versions"]["gemma3vl_app"]
    assert told["tokens"]["completion_tokens"] == 6 and told["seconds"] >= 0
    lines = (tmp_path / "run" / "scored.jsonl").read_text().splitlines()
    assert json.loads(lines[2])["parts"] == {"anls": [1.0, 1.0]}
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        *("answers.jsonl", "answers.jsonl.settings.json", "lm_eval", "lmms_eval"),
        *("report.html", "results.json", "scored.jsonl"),
    }


def test_a_run_goes_on_where_it_ended_and_asks_nothing_twice(tmp_path):
    data, out = animals(tmp_path), tmp_path / "run"
    first = AnsweringBackend(RIGHT)
    gv.evaluate(first, "docvqa", data=data, out=out, limit=4)
    second = AnsweringBackend(RIGHT)
    done = gv.evaluate(second, "docvqa", data=data, out=out)
    assert len(first.asked) == 4 and len(second.asked) == 2
    assert not set(first.asked) & set(second.asked)
    assert done.about["answered_earlier"] == 4 and done.score.items == 6
    assert done.about["tokens"]["completion_tokens"] == 6
    third = AnsweringBackend(RIGHT)
    again = gv.evaluate(third, "docvqa", data=data, out=out)
    assert third.asked == [] and again.scores == done.scores


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_new_tokens": 5}, "max_new_tokens"),
        ({"crops": "on"}, "crops"),
        ({"suite": "textvqa"}, "suite"),
        ({"data": "other"}, "data"),
        ({"backend": "other"}, "model"),
    ],
)
def test_other_settings_another_model_and_other_data_are_refused_by_name(tmp_path, change, named):
    out = tmp_path / "run"
    gv.evaluate(AnsweringBackend(RIGHT), "docvqa", data=animals(tmp_path), out=out)
    before = (out / "answers.jsonl").read_bytes()
    other = AnsweringBackend(
        capabilities=DEFAULT_CAPABILITIES.__class__(
            **{**vars(DEFAULT_CAPABILITIES), "revision": "abc"}
        )
    )
    backend = other if "backend" in change else AnsweringBackend()
    suite = change.pop("suite", "docvqa")
    data = animals(tmp_path / "other", 3) if change.pop("data", "") else tmp_path / "data.jsonl"
    change.pop("backend", None)
    with pytest.raises(ConversationError, match=f"begun with other settings: .*{named}"):
        gv.evaluate(backend, suite, data=data, out=out, **change)
    assert (out / "answers.jsonl").read_bytes() == before
    assert backend.asked == []
    done = gv.evaluate(backend, suite, data=data, out=out, restart=True, **change)
    assert len(backend.asked) == len(done.cases)


def test_results_of_what_was_forgotten_are_deleted_before_anything_is_asked(tmp_path):
    out, data = tmp_path / "run", animals(tmp_path)
    gv.evaluate(AnsweringBackend(RIGHT), "docvqa", data=data, out=out)
    (out / "notes.txt").write_text("mine")
    closed = AnsweringBackend()
    closed.close()
    with pytest.raises(EngineError):
        gv.evaluate(closed, "textvqa", data=data, out=out, restart=True)
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert left == {"answers.jsonl", "answers.jsonl.settings.json", "notes.txt"}


def test_a_run_that_is_refused_deletes_nothing(tmp_path):
    out, data = tmp_path / "run", animals(tmp_path)
    gv.evaluate(AnsweringBackend(RIGHT), "docvqa", data=data, out=out)
    before = {path.name for path in out.rglob("*")}
    with pytest.raises(ConversationError, match="other settings"):
        gv.evaluate(AnsweringBackend(), "textvqa", data=data, out=out)
    assert {path.name for path in out.rglob("*")} == before


def test_another_prompt_for_questions_without_options_is_another_setting(tmp_path):
    data, out = write_jsonl(tmp_path, CHOICES[2]), tmp_path / "run"
    gv.evaluate(AnsweringBackend(), "mmmu", data=data, out=out)
    other = dataclasses.replace(SUITES["mmmu"], free_prompt="{question} In short.")
    with pytest.raises(ConversationError, match=r"other settings: .*free_prompt"):
        gv.evaluate(AnsweringBackend(), other, data=data, out=out)


def test_a_kind_called_all_is_not_all_kinds(tmp_path):
    rows = [
        {"picture": "a.png", "question": f"{n}?", "answer": "red", "kind": kind}
        for n, kind in enumerate(["all", "b", "b", "b"])
    ]
    backend = AnsweringBackend({"0?": "red"})
    done = gv.evaluate(backend, "docvqa", data=write_jsonl(tmp_path, *rows))
    told = {score.kind: (score.items, score.value) for score in done.scores}
    assert told == {"all": (4, 0.25), "all (kind)": (1, 1.0), "b": (3, 0.0)}


# --- what fails -----------------------------------------------------------------------------------


def broken(folder):
    """Six items, of which number 2 has a picture that is none, and number 4 has none at all."""
    data = animals(folder)
    (folder / "2.png").write_bytes(b"This is no picture.")
    (folder / "4.png").unlink()
    return data


def test_an_item_that_cannot_be_asked_counts_as_wrong_and_is_named(tmp_path):
    backend = AnsweringBackend(RIGHT)
    done = gv.evaluate(backend, "docvqa", data=broken(tmp_path))
    assert len(backend.asked) == 4
    assert [case.item.id for case in done.failed] == ["2", "4"]
    assert "'2.png'" in done.failed[0].error and "not found" in done.failed[1].error
    assert done.score.value == pytest.approx(4 / 6)
    assert (done.score.items, done.score.failed) == (6, 2)


def test_nothing_is_scored_right_for_failing(tmp_path):
    rows = [{"picture": "a.png", "question": "What?", "answers": ["the", "the", "a", "a"]}]
    data = write_jsonl(tmp_path, *rows)
    said_nothing = gv.evaluate(AnsweringBackend({"What?": "the"}), "vqav2", data=data)
    assert said_nothing.score.value > 0  # articles fall away: "the" is the same as nothing
    (tmp_path / "a.png").unlink()
    failed = gv.evaluate(AnsweringBackend(), "vqav2", data=data)
    assert (failed.score.value, failed.score.failed) == (0.0, 1)


def test_items_that_failed_are_asked_again_on_request(tmp_path):
    data, out = animals(tmp_path), tmp_path / "run"
    failing = AnsweringBackend(RIGHT)
    failing._error = MemoryLimitError("It needs too much memory.")
    assert len(gv.evaluate(failing, "docvqa", data=data, out=out).failed) == 6
    backend = AnsweringBackend(RIGHT)
    assert len(gv.evaluate(backend, "docvqa", data=data, out=out).failed) == 6
    assert backend.asked == []
    done = gv.evaluate(backend, "docvqa", data=data, out=out, retry_failed=True)
    assert len(backend.asked) == 6 and done.score.value == 1.0 and not done.failed


def test_a_picture_that_was_mended_or_changed_is_asked_about_again(tmp_path):
    data, out = broken(tmp_path), tmp_path / "run"
    gv.evaluate(AnsweringBackend(RIGHT), "docvqa", data=data, out=out)
    for name in ("1.png", "2.png", "4.png"):
        Image.new("RGB", (90, 9), "blue").save(tmp_path / name)
    backend = AnsweringBackend(RIGHT)
    done = gv.evaluate(backend, "docvqa", data=data, out=out)
    assert len(backend.asked) == 3 and done.score.value == 1.0 and not done.failed


def test_a_backend_that_was_closed_ends_the_run_and_what_was_done_stays(tmp_path):
    backend = AnsweringBackend(RIGHT)
    backend.close()
    with pytest.raises(EngineError, match="has been closed"):
        gv.evaluate(backend, "docvqa", data=animals(tmp_path), out=tmp_path / "run")


def test_bad_wishes_are_told_before_anything_is_asked(tmp_path):
    backend = AnsweringBackend()
    with pytest.raises(EvaluationError, match="limit is 0"):
        gv.evaluate(backend, "docvqa", data=animals(tmp_path), limit=0)
    blind = AnsweringBackend(
        capabilities=DEFAULT_CAPABILITIES.__class__(
            **{**vars(DEFAULT_CAPABILITIES), "image_tokens": 0}
        )
    )
    with pytest.raises(ConversationError, match="takes no pictures"):
        gv.evaluate(blind, "docvqa", data=animals(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(EvaluationError, match="'run' cannot be made"):
        gv.evaluate(backend, "docvqa", data=animals(tmp_path), out=tmp_path / "file" / "run")
    assert backend.asked == []


# --- multiple choice ------------------------------------------------------------------------------

CHOICES = [
    {"question": "Which one?", "options": ["red", "blue"], "answer": "B"},
    {"question": "And which?", "options": ["red", "blue", "green"], "answer": "A"},
    {"question": "How many?", "answer": "3"},
]


def test_letters_are_chosen_by_their_probability_where_the_backend_can_tell_it(tmp_path):
    letters = {"A": -2.0, "B": -0.1, "C": -3.0}
    backend = AnsweringBackend({"How many?": "It is 3."}, letters=letters, busy=3)
    done = gv.evaluate(backend, "mmmu", data=write_jsonl(tmp_path, *CHOICES), out=tmp_path / "run")
    assert done.about["settings"]["answers"] == LIKELIEST
    assert sorted(backend.scored) == ["A", "A", "B", "B", "C"]
    assert len(backend.asked) == 1  # the free question
    assert [case.parts["accuracy"].value for case in done.cases] == [1.0, 0.0, 1.0]
    assert done.cases[0].said == "B 90%, A 14%"
    again = AnsweringBackend()
    assert (
        gv.evaluate(again, "mmmu", data=tmp_path / "data.jsonl", out=tmp_path / "run").scores
        == done.scores
    )
    assert again.asked == again.scored == []


def test_elsewhere_the_written_answer_is_read(tmp_path):
    able = DEFAULT_CAPABILITIES.__class__(**{**vars(DEFAULT_CAPABILITIES), "score": False})
    backend = AnsweringBackend({"Which one?": "B. blue", "And": "(C)"}, capabilities=able)
    done = gv.evaluate(backend, "mmmu", data=write_jsonl(tmp_path, *CHOICES))
    assert done.about["settings"]["answers"] == WRITTEN
    assert [case.parts["accuracy"].value for case in done.cases] == [1.0, 0.0, 0.0]
    assert backend.scored == []


def test_data_that_were_read_for_multiple_choice_are_refused_by_other_suites(tmp_path):
    data = read_data(SUITES["mmmu"], write_jsonl(tmp_path, *CHOICES))
    backend = AnsweringBackend(letters={"A": -2.0, "B": -0.1})
    with pytest.raises(EvaluationError, match="options, which docvqa does not ask for"):
        gv.evaluate(backend, "docvqa", data=data)
    assert backend.asked == backend.scored == []


def test_a_limit_that_draws_no_options_can_be_raised(tmp_path):
    data, out = write_jsonl(tmp_path, *CHOICES), tmp_path / "run"
    read = read_data(SUITES["mmmu"], data)
    seed = next(n for n in range(99) if not read.chosen(1, n)[0].options)
    backend = AnsweringBackend({"How many?": "3"}, letters={"A": -1.0, "B": -2.0, "C": -3.0})
    gv.evaluate(backend, "mmmu", data=data, out=out, limit=1, seed=seed)
    assert backend.scored == []
    done = gv.evaluate(backend, "mmmu", data=data, out=out, seed=seed)
    assert done.about["answered_earlier"] == 1 and done.score.items == 3


def test_tokens_are_those_of_written_answers_and_it_is_told_of_how_many(tmp_path):
    backend = AnsweringBackend({"How many?": "3"}, letters={"A": -1.0, "B": -2.0, "C": -3.0})
    data = write_jsonl(tmp_path, *CHOICES)
    done = gv.evaluate(backend, "mmmu", data=data, out=tmp_path / "run")
    assert done.about["tokens"]["items"] == 1 == done.about["tokens"]["completion_tokens"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "those of 2 questions whose letters were weighed are not counted" in page


def test_what_was_kept_as_log_probabilities_but_is_none_is_told(tmp_path):
    data, out = write_jsonl(tmp_path, CHOICES[0]), tmp_path / "run"
    gv.evaluate(AnsweringBackend(letters={"A": -1.0, "B": -2.0}), "mmmu", data=data, out=out)
    journal = out / "answers.jsonl"
    journal.write_text(journal.read_text().replace('\\"B\\"', '\\"D\\"'))
    with pytest.raises(EvaluationError, match=r"no log-probabilities .*restart=True"):
        gv.evaluate(AnsweringBackend(), "mmmu", data=data, out=out)


@pytest.mark.parametrize(
    "said",
    [
        "{B}",
        '{"A": 1000.0, "B": 0.0}',
        '{"A": -1.0, "B": -2.0}',
        '{"A": "x"}',
        '{"B": 1.0}',
        "[" * 9,
        "{" * 9,
        "...",
    ],
)
def test_whatever_a_model_writes_in_place_of_a_letter_is_scored(tmp_path, said):
    able = DEFAULT_CAPABILITIES.__class__(**{**vars(DEFAULT_CAPABILITIES), "score": False})
    backend = AnsweringBackend({"": said}, capabilities=able)
    data = write_jsonl(tmp_path, *CHOICES)
    done = gv.evaluate(backend, "mmmu", data=data, out=tmp_path / "run")
    assert [case.said for case in done.cases] == [said] * 3
    assert done.cases[0].parts["accuracy"].value == float("B" in said)


def test_letters_that_cannot_be_scored_fail_by_themselves(tmp_path):
    class Failing(AnsweringBackend):
        def score(self, conversation, text, **options):
            raise ConversationError("Too long.")

    done = gv.evaluate(Failing(), "mmmu", data=write_jsonl(tmp_path, CHOICES[0]))
    assert [case.error for case in done.failed] == ["Too long."]
    assert done.score.value == 0.0


class Dying(AnsweringBackend):
    """Scores letters so many times, and never again; its written answers are not asked for."""

    def __init__(self, scores):
        super().__init__(letters=dict.fromkeys("ABC", -1.0))
        self.left = scores

    def score(self, conversation, text, **options):
        with self._score_lock:
            self.left -= 1
        if self.left < 0:
            raise EngineError("The model has been closed.")
        return super().score(conversation, text, **options)


def choices(count):
    return [{"question": f"{n}?", "options": ["red", "blue"], "answer": "A"} for n in range(count)]


@pytest.mark.parametrize("scores", [0, 41])
def test_a_backend_that_dies_ends_a_run_that_scores_letters_and_the_next_one_goes_on(
    tmp_path, scores
):
    data, out = write_jsonl(tmp_path, *choices(40)), tmp_path / "run"
    with pytest.raises(EngineError, match="has been closed"):
        gv.evaluate(Dying(scores), "mmmu", data=data, out=out)
    lines = (out / "answers.jsonl").read_text().splitlines()
    assert len(lines) <= scores // 2
    assert not any("error" in json.loads(line) for line in lines)
    done = gv.evaluate(AnsweringBackend(letters={"A": -1, "B": -2}), "mmmu", data=data, out=out)
    assert done.score.value == 1.0 and not done.failed
    assert done.about["answered_earlier"] == len(lines)


def test_a_question_whose_letters_the_engine_cannot_score_fails_by_itself(tmp_path):
    class Failing(AnsweringBackend):
        def score(self, conversation, text, **options):
            if conversation.messages[-1].text.startswith("3?"):
                raise EngineError("It broke.")
            return super().score(conversation, text, **options)

    backend = Failing(letters={"A": -1.0, "B": -2.0})
    done = gv.evaluate(backend, "mmmu", data=write_jsonl(tmp_path, *choices(4)))
    assert [(case.item.id, case.error) for case in done.failed] == [("4", "It broke.")]
    assert done.score.value == 0.75


@pytest.mark.parametrize("tokens", [(), (Token(0, "A", -1.0), Token(1, " ", None))])
def test_a_letter_without_a_log_probability_is_no_certainty(tmp_path, tokens):
    class Silent(AnsweringBackend):
        def score(self, conversation, text, **options):
            return tokens

    done = gv.evaluate(Silent(), "mmmu", data=write_jsonl(tmp_path, CHOICES[0]))
    assert "did not tell the log-probability of the letter 'A'" in done.failed[0].error


def test_whoever_waits_for_a_full_queue_stops_when_cancelled():
    asked, cancelled = threading.Event(), threading.Event()

    class Full(AnsweringBackend):
        def score(self, conversation, text, **options):
            if cancelled.is_set():
                return (Token(0, text, -1.0),)  # so that who goes on comes to an end
            asked.set()
            cancelled.wait(60)
            raise BusyError("Full.")

    with Letters(Full(), adapter=None, session="") as letters:
        stream = letters.ask(Conversation().user(Text("Which?")), "A")
        assert asked.wait(60)
        stream.cancel()
        cancelled.set()
        assert stream.answer.finish_reason == "cancelled"


# --- a real model ---------------------------------------------------------------------------------


def test_a_local_model_is_evaluated_the_same_batched_and_one_by_one(local, tmp_path, monkeypatch):
    data = animals(tmp_path, 3)
    choices = write_jsonl(tmp_path / "choices", *(c | {"picture": "a.png"} for c in CHOICES[:2]))
    together = gv.evaluate(local, "docvqa", data=data, max_new_tokens=4)
    monkeypatch.setattr(asking, "IN_FLIGHT", 1)
    apart = gv.evaluate(local, "docvqa", data=data, max_new_tokens=4)
    assert [c.text for c in together.cases] == [c.text for c in apart.cases]
    assert together.about["plan"]["weights"] == "fp32"
    assert together.about["model"]["revision"]
    chosen = gv.evaluate(local, "mmmu", data=choices)
    item = read_data(SUITES["mmmu"], choices).items[1]
    asked = conversation_of(SUITES["mmmu"], item, "auto")
    for letter in item.letters:
        (token,) = local.score(asked, letter)
        assert chosen.cases[1].logprobs[letter] == pytest.approx(token.logprob, abs=1e-3)
