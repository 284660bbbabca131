"""A model behind a server is evaluated as one that is loaded here."""

import dataclasses

import pytest
from starlette.responses import JSONResponse

import gemma3vl_app as gv
from gemma3vl_app.errors import EngineError
from gemma3vl_app.evaluation.run import LIKELIEST, WRITTEN
from gemma3vl_app.evaluation.suites import SUITES
from tests.api.servers import served
from tests.backends.remote.fake_server import FakeServer, _parts
from tests.evaluation.answering import AnsweringBackend, animals, write_jsonl
from tests.evaluation.test_run import CHOICES, RIGHT


def test_scores_are_the_same_over_the_api(tmp_path):
    backend = AnsweringBackend({k: v for k, v in RIGHT.items() if k != "number 3?"})
    data = animals(tmp_path)
    here = gv.evaluate(backend, "docvqa", data=data)
    asked = len(backend.requests)
    with served(backend) as server, gv.load(f"{server.address}/v1") as remote:
        probing = len(backend.requests)
        there = gv.evaluate(remote, "docvqa", data=data, out=tmp_path / "run")
        assert len(backend.requests) - probing == asked == 6
        again = gv.evaluate(remote, "docvqa", data=data, out=tmp_path / "run")
        assert len(backend.requests) - probing == 6
    assert [case.text for case in there.cases] == [case.text for case in here.cases]
    assert there.scores == here.scores == again.scores
    assert there.about["model"]["name"] == "scripted" and there.about["plan"] is None


def test_options_are_chosen_in_writing_where_a_server_tells_no_scores(tmp_path):
    backend = AnsweringBackend({"Which one?": "B", "And which?": "(C)", "How many?": "3"})
    with served(backend) as server, gv.load(f"{server.address}/v1") as remote:
        done = gv.evaluate(remote, "mmmu", data=write_jsonl(tmp_path, *CHOICES))
    assert done.about["settings"]["answers"] == WRITTEN
    assert [case.parts["accuracy"].value for case in done.cases] == [1.0, 0.0, 1.0]


def test_a_real_model_has_the_same_scores_here_and_behind_our_server(local, tmp_path):
    data, options = animals(tmp_path, 3), {"max_new_tokens": 4, "crops": "off"}
    # Error rates tell answers apart that are all wrong.
    suite = dataclasses.replace(SUITES["docvqa"], metrics=SUITES["reading"].metrics)
    here = gv.evaluate(local, suite, data=data, **options)
    with served(local) as server, gv.load(f"{server.address}/v1") as remote:
        there = gv.evaluate(remote, suite, data=data, **options)
    assert [case.text for case in there.cases] == [case.text for case in here.cases]
    assert there.scores == here.scores and not there.failed
    assert len({case.text for case in here.cases}) > 1 and here.score.value > 0
    for tokens in ("prompt_tokens", "completion_tokens"):
        assert there.about["tokens"][tokens] == here.about["tokens"][tokens] > 0


class Scoring(FakeServer):
    """vLLM as it answers `prompt_logprobs`: an entry for each word of the prompt, the first none.

    An answer's letter has the log-probability that `letters` says for the question's option.
    """

    def __init__(self, letters):
        super().__init__("vllm")
        self.letters = letters
        self.scored = []

    async def _chat(self, request):
        body = await request.json()
        if "prompt_logprobs" not in body:
            return await super()._chat(request)
        self.bodies.append(body)
        words = [word for part in _parts(body) for word in part.get("text", "").split()]
        turns = [message["role"] for message in body["messages"]]
        goes_on = body.get("continue_final_message", False)
        words = [*words[:-1], "model", words[-1]] if goes_on else [*words, "model"]
        assert (turns[-1] == "assistant") == goes_on
        entries = [{str(n): {"logprob": -9.0, "decoded_token": w}} for n, w in enumerate(words)]
        if goes_on:
            asked = " ".join(words)
            logprob = next(told for key, told in self.letters.items() if key in asked)[words[-1]]
            entries[-1] = {"65": {"logprob": logprob, "rank": 1, "decoded_token": words[-1]}}
            self.scored.append(words[-1])
        message = {"role": "assistant", "content": "x"}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        return JSONResponse({"choices": [choice], "prompt_logprobs": [None, *entries[1:]]})


def test_letters_are_weighed_on_a_server_that_tells_log_probabilities(tmp_path):
    letters = {
        "Which one?": {"A": -2.5, "B": -0.1},
        "And which?": {"A": -1.5, "B": -4.0, "C": -0.5},
    }
    pictured = [row | {"picture": "a.png"} for row in CHOICES[:2]]
    data = write_jsonl(tmp_path, *pictured)
    with Scoring(letters) as server, gv.load(server.url) as remote:
        server.forget()
        done = gv.evaluate(remote, "mmmu", data=data, out=tmp_path / "run")
        asked = len(server.bodies)
        again = gv.evaluate(remote, "mmmu", data=data, out=tmp_path / "run")
        assert len(server.bodies) == asked == 2 * len(server.scored)
    assert sorted(server.scored) == ["A", "A", "B", "B", "C"]
    assert done.about["settings"]["answers"] == LIKELIEST
    assert [dict(case.logprobs) for case in done.cases] == list(letters.values())
    assert [case.parts["accuracy"].value for case in done.cases] == [1.0, 0.0]  # C is not right
    assert again.scores == done.scores and not done.failed
    pictures = [[p for p in _parts(body) if p["type"] == "image_url"] for body in server.bodies]
    assert {len(each) for each in pictures} == {1}


def test_a_server_that_tells_no_log_probabilities_after_all_ends_the_run(tmp_path):
    class Silent(Scoring):
        async def _chat(self, request):
            if "prompt_logprobs" in await request.json():
                return JSONResponse({"choices": [], "prompt_logprobs": None})
            return await super()._chat(request)

    data = write_jsonl(tmp_path, CHOICES[0])
    told = pytest.raises(EngineError, match="did not tell the log-probabilities")
    with Silent({}) as server, gv.load(server.url) as remote, told:
        gv.evaluate(remote, "mmmu", data=data)
