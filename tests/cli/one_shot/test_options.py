"""Options of the one-shot commands: they reach the model, and mistakes are told before it loads."""

import json

import pytest

import gemma3vl_app.backends.local
from gemma3vl_app.generation import Greedy, Sample


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


def test_seed_and_adapter_reach_the_model(backend, run, folder):
    assert run("caption", "a.png", "--seed", "4", "--adapter", "poems=x")[0] == 0
    assert backend.requests[0].sampling == Sample(seed=4)
    assert backend.requests[0].adapter == "poems"


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
