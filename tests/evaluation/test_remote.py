"""A model behind a server is evaluated as one that is loaded here."""

import gemma3vl_app as gv
from gemma3vl_app.evaluation.run import WRITTEN
from tests.api.servers import served
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
