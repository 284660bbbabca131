"""A saved chat is written again token for token, and what is not the same is said."""

import shutil
from dataclasses import replace

import pytest
import torch

from gemma3vl_app.backends.local import load
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import EngineError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.replay import Replayed, model_differences, replay
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.transcript import ModelIdentity, Transcript
from tests.engine.reference import picture

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}}


@pytest.fixture(scope="module")
def backend(tiny):
    with load(tiny, weights="fp32") as loaded:
        yield loaded


def recorded(backend) -> Chat:
    """Every way in which an answer comes about: drawn, greedy, resumed, stopped, branched.

    Each drawn one has a seed: by chance it could be without a word, and is not recorded then.
    """
    chat = Chat(backend, system="Be brief.", session="recorded", sampling=Sample(seed=1))
    chat.ask("Look.", images=[picture(1), picture(2, 1200, 400, crops="on")], max_new_tokens=12)
    chat.ask("And now?", sampling=Greedy(), max_new_tokens=20, logprobs=2)
    assert chat.resume(max_new_tokens=7).answer.text
    hot = Sample(temperature=3.0, seed=2)
    assert chat.regenerate(sampling=hot, max_new_tokens=15).answer.text
    chat.system = "Be brief, please."  # the answer before it was asked with the old one
    chat.ask("Number?", schema=SCHEMA, max_new_tokens=40)
    stream = chat.stream("Talk on.", sampling=Sample(temperature=2.0, seed=5), max_new_tokens=300)
    for count, _ in enumerate(chunk for chunk in stream if chunk.tokens):
        if count == 4:
            break
    chat.stop()
    chat.branch(1)
    chat.system = "Be long."
    chat.ask("Another way", images=[picture(3)], max_new_tokens=9, stop=["e", "a"])
    return chat


def test_everything_comes_out_token_for_token_after_saving_in_a_fresh_process_s_place(
    backend, tiny, tmp_path
):
    saved = recorded(backend).save(tmp_path / "x")
    with load(tiny, weights="fp32") as fresh:
        chat = Chat.open(saved, fresh)
        heard: list[Replayed] = []
        result = replay(chat.transcript, fresh, on_answer=heard.append)
    assert [str(answer) for answer in result.answers if not answer.same] == []
    assert result.same
    assert result.differences == ()
    assert len(result.answers) == 8
    assert result.answers == tuple(heard)
    assert sum(answer.tokens for answer in result.answers) > 50


def test_an_answer_that_differs_does_not_make_the_next_one_differ(backend):
    transcript = recorded(backend).transcript
    turn = transcript.turns[1]
    wrong = replace(turn.generated[0], ids=(*turn.generated[0].ids[:3], 300, 301))
    turns = (transcript.turns[0], replace(turn, generated=(wrong,)), *transcript.turns[2:])
    result = replay(replace(transcript, turns=turns), backend)
    assert [answer.same for answer in result.answers] == [False] + [True] * 7
    assert result.answers[0].first_difference == 3
    assert "different from token 3 on" in str(result.answers[0])
    assert not result.same


def test_how_close_the_choice_was_is_said(backend, monkeypatch):
    chat = Chat(backend, session="close")
    answer = chat.ask("Hi", sampling=Greedy(), max_new_tokens=6, logprobs=3)
    second = answer.tokens[2].alternatives[1]
    ids = (*(token.id for token in answer.tokens[:2]), second.id, *[7] * 3)
    turn = chat.transcript.turns[1]
    changed = replace(turn, generated=(replace(turn.generated[0], ids=ids),))
    (found,) = replay(
        replace(chat.transcript, turns=(chat.transcript.turns[0], changed)), backend
    ).answers
    expected = answer.tokens[2].logprob - second.logprob
    assert found.gap == pytest.approx(expected, abs=1e-4)
    assert f"{expected:.2f} less likely" in str(found)
    assert "2.00 more likely here" in str(replace(found, gap=-2.0))
    assert "rounding decides" in str(replace(found, gap=0.001))


def test_other_weights_are_named_and_seen(backend, tiny):
    transcript = recorded(backend).transcript
    with load(tiny, weights="nf4") as coarse:
        result = replay(transcript, coarse)
    assert "weights: fp32 then, nf4 now" in result.differences
    assert not result.same


def test_what_cannot_be_tried_is_said_and_the_rest_is_done(backend):
    transcript = recorded(backend).transcript
    last = transcript.turns[-1]
    for change, told in (
        ({"sampling": Sample()}, "without a seed"),
        ({"adapter": "poet"}, "The adapter 'poet' is not loaded"),
        (
            {"model": replace(last.generated[0].model, name="4b-it", revision="other")},
            "4b-it wrote",
        ),
    ):
        changed = replace(last, generated=(replace(last.generated[0], **change),))
        result = replay(replace(transcript, turns=(*transcript.turns[:-1], changed)), backend)
        assert told in str(result.answers[-1])
        assert not result.same
        assert all(answer.same for answer in result.answers[:-1])


def test_a_model_that_was_moved_is_the_same_model(backend, tiny, tmp_path):
    transcript = recorded(backend).transcript
    with load(shutil.copytree(tiny, tmp_path / "moved"), weights="fp32") as moved:
        assert moved.capabilities.model == "moved"
        result = replay(transcript, moved)
    assert result.same
    assert result.differences == ()


def test_prompts_after_a_stop_string_and_a_resumed_answer_hold_their_very_tokens(backend, tmp_path):
    sampling = Sample(temperature=5.0, seed=3)
    chat = Chat(backend, sampling=sampling, session="stopped")
    answer = chat.ask("Hi", max_new_tokens=30)
    said = ["".join(token.text for token in answer.tokens[:n]) for n in range(len(answer.tokens))]
    stop = next(  # a token that is the first of its text: the answer ends where a token ends
        token.text
        for before, token in list(zip(said, answer.tokens, strict=True))[5:]
        if token.text.strip() and answer.text.find(token.text) == len(before)
    )
    chat.undo()
    chat.ask("Hi", stop=[stop])
    assert chat.resume(max_new_tokens=9).answer.text
    live = backend._prepare(chat.conversation.user("More?"), "stopped").ids.tolist()
    opened = Chat.open(chat.save(tmp_path / "x"), backend, session="opened")
    opened.ask("More?", max_new_tokens=1)
    before = replace(opened.conversation, messages=opened.conversation.messages[:3])
    assert backend._prepare(before, "opened").ids.tolist() == live


def test_a_request_that_is_refused_now_is_told():
    chat = Chat(ScriptedBackend(["A red circle."]))
    chat.ask("What?")
    broken = ScriptedBackend(["A "], error=EngineError("It broke."))
    (answer,) = replay(chat.transcript, broken).answers
    assert "It broke." in str(answer)


def test_without_a_known_tokenizer_texts_are_compared():
    chat = Chat(ScriptedBackend(["A red circle."]))
    chat.ask("What?")
    assert replay(chat.transcript, ScriptedBackend(["A red circle."])).same
    (answer,) = replay(chat.transcript, ScriptedBackend(["A blue circle."])).answers
    assert (answer.same, answer.now, answer.first_difference) == (False, "A blue circle.", None)


def test_a_chat_without_answers_has_nothing_to_differ():
    assert replay(Transcript(), ScriptedBackend()).same


def test_differences_of_model_and_machine_are_lines():
    here = ModelIdentity(name="demo", revision="b", weights="fp32", arithmetic="float32 on cpu")
    then = replace(here, revision="a", weights="")  # unknown is no difference
    other = ModelIdentity(name="4b-it")
    assert model_differences([then, other, then], here) == (
        "revision: a then, b now",
        "model: 4b-it then, demo now",
    )


def test_versions_that_changed_are_lines():
    result = replay(
        Transcript(),
        ScriptedBackend(),
        software=({"torch": "2.12", "pillow": "12"}, {"torch": "2.13", "pillow": "12"}),
    )
    assert result.differences == ("torch: 2.12 then, 2.13 now",)


def test_prompts_after_an_opened_answer_hold_its_very_tokens(backend, tiny, tmp_path):
    # A random model says what no tokenizer would write that way: encoding it again differs.
    chat = Chat(backend, session="very")
    chat.ask("Hi", sampling=Sample(temperature=5.0, seed=1), max_new_tokens=60)
    ids = list(chat.transcript.turns[1].generated[0].ids)
    with load(tiny, weights="fp32") as fresh:
        encoded = fresh._tokenizer.encode(chat.conversation.messages[-1].text)
        assert encoded != ids  # or this test shows nothing
        opened = Chat.open(chat.save(tmp_path / "x"), fresh, session="very")
        opened.ask("More?", max_new_tokens=1)
        prompt = fresh._prepare(opened.conversation, "very").ids.tolist()
    assert str(ids)[1:-1] in str(prompt)
    assert torch.equal(torch.tensor(ids), torch.tensor(prompt)[prompt.index(ids[0]) :][: len(ids)])
