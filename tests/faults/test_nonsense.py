"""Numbers that are none cost the answer they belong to, which is told so, and are not kept."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.model_server import said, served_model
from tests.faults.next_answer import NEXT_WITHIN_SEC, next_answer_within

VICTIM = "The victim asks this"
NAN = float("nan")


@pytest.fixture(scope="module")
def model(tiny):
    with served_model(tiny) as model:
        yield model


def is_told(reply):
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "engine_error"
    return "not a number" in reply.json()["error"]["message"]


def test_what_is_no_number_fails_one_answer_of_a_batch(model, monkeypatch):
    others = [f"Question {number}" for number in range(3)]
    alone = [said(model.ask(text, tokens=40)) for text in others]
    victim = model.backend._tokenizer.encode(VICTIM)
    decoder, batches = model.backend.engine._decoder, []
    real = decoder._hidden

    def spoiled(rows, fed):
        batches.append(len(rows))
        for row in rows:
            ids = row.request.prompt.ids.tolist()
            if any(ids[at : at + len(victim)] == victim for at in range(len(ids))):
                if len(row.generated) < 5:  # in the middle of its answer
                    continue
                for _, keys, values in row.kv.parts():  # what it has written itself
                    keys[:, -1], values[:, -1] = NAN, NAN
        return real(rows, fed)

    monkeypatch.setattr(decoder, "_hidden", spoiled)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(model.ask, text, tokens=40) for text in others]
        failed = model.ask(VICTIM, tokens=40)
        together = [said(each.result()) for each in asked]
    assert is_told(failed)
    assert max(batches) > 1  # they were in it together
    assert together == alone
    monkeypatch.undo()
    next_answer_within(NEXT_WITHIN_SEC, lambda: model.ask(VICTIM))


@pytest.mark.parametrize("stage", ["vision", "prefill"])
def test_a_question_that_gave_nonsense_once_is_computed_anew(model, stage):
    question = f"What is it, {stage}?"
    with model.before(stage, lambda rows: rows.fill_(NAN)):
        assert is_told(model.ask(question, picture="red"))
    again = said(model.ask(question, picture="red"))
    model.backend.engine.call(model.backend.engine._drop_caches)
    assert said(model.ask(question, picture="red")) == again
