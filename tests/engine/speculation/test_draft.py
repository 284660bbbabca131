"""A small text model guesses; the large one answers as if it were alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma3vl_app.backends.local import load
from gemma3vl_app.engine.speculation.draft import Draft
from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Greedy
from gemma3vl_app.loading import load_model
from gemma3vl_app.messages import Conversation
from tests.engine.reference import picture
from tests.engine.speculation.guessers import guess_with
from tests.engine.test_equality import CASES

WORDS = 262_144  # of the published text models; the vision models' matrices have 64 rows more
OPTIONS = {"sampling": Greedy(), "max_new_tokens": 45, "logprobs": 3}


@pytest.fixture(scope="module")
def twin(tiny, tmp_path_factory):
    """The tiny model's text part as a text-only checkpoint: right wherever no picture is."""
    folder = tmp_path_factory.mktemp("twin")
    weights = {
        key.removeprefix("language_model."): tensor
        for key, tensor in load_file(tiny / "model.safetensors").items()
        if key.startswith("language_model.")
    }
    table = "model.embed_tokens.weight"
    save_file({**weights, table: weights[table][:WORDS].clone()}, folder / "model.safetensors")
    config = json.loads((tiny / "config.json").read_text())["text_config"]
    config |= {"architectures": ["Gemma3ForCausalLM"], "vocab_size": WORDS}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").symlink_to(tiny / "tokenizer.json")
    return folder


@pytest.fixture
def draft(twin):
    """Make drafts over the twin, which never guess control tokens."""
    model = load_model(twin, weights="fp32").model
    return lambda **options: Draft(model, range(110), **options)


def ask(backend, conversation, session: str, **options):
    return backend.stream(conversation, session=session, **{**OPTIONS, **options}).answer


def ids_of(answer) -> list[int]:
    return [token.id for token in answer.tokens]


@pytest.mark.parametrize("name", ["text only", "far past the sliding window", "one picture"])
def test_an_answer_with_a_draft_equals_a_full_recompute(backend, reference, draft, name):
    guess_with(backend, None)
    plain = ask(backend, CASES[name], "plain")
    guess_with(backend, draft())
    answer = ask(backend, CASES[name], "draft")
    reference.check(CASES[name], answer)
    assert ids_of(answer) == ids_of(plain)
    assert answer.usage.proposed_tokens > 0
    if not CASES[name].pictures:  # the draft is the model itself
        assert answer.usage.accepted_tokens > 0.7 * answer.usage.proposed_tokens > 15


def test_several_answers_share_the_draft_and_leave_nothing_behind(backend, reference, draft):
    asked = [Conversation().user(f"{n} " + "word " * 30 * n) for n in range(3)]
    asked.append(Conversation().user(picture(1), "What is this?"))
    guesser = draft()
    guess_with(backend, guesser)
    streams = [backend.stream(each, session="together", **OPTIONS) for each in asked]
    for conversation, stream in zip(asked, streams, strict=True):
        reference.check(conversation, stream.answer)
    assert all(s.answer.usage.accepted_tokens > 10 for s in streams[:3])
    assert not guesser._states
    assert guesser.bytes == 0


def test_the_next_turn_reads_only_what_is_new(backend, draft, monkeypatch):
    guesser, fed = draft(), []
    guess_with(backend, guesser)
    first = Conversation().user("word " * 200)
    answer = ask(backend, first, "turns")
    forward = guesser._model.forward
    monkeypatch.setattr(
        guesser._model, "forward", lambda v, batch: fed.append(v.shape[1]) or forward(v, batch)
    )
    again = ask(backend, first.assistant(answer.text).user("And?"), "turns", max_new_tokens=5)
    assert again.usage.accepted_tokens > 0
    assert sum(fed) < 60
    fed.clear()
    ask(backend, first.assistant(answer.text).user("And?"), "somebody else", max_new_tokens=5)
    assert sum(fed) > 200  # nothing is shared across people


def test_a_long_prompt_is_read_in_pieces_while_the_answer_goes_on(backend, draft, monkeypatch):
    guesser, fed = draft(clock=iter(range(10**9)).__next__), []  # a second passes with each look
    forward = guesser._model.forward
    monkeypatch.setattr(
        guesser._model, "forward", lambda v, batch: fed.append(v.shape[1]) or forward(v, batch)
    )
    guesser._tokens_per_sec = 0
    guess_with(backend, guesser)
    answer = ask(backend, Conversation().user("word " * 250), "pieces")
    assert fed[:6] == [32] * 6
    assert answer.usage.completion_tokens == OPTIONS["max_new_tokens"]


def test_without_room_for_its_keys_and_values_it_does_not_guess(backend, draft):
    guess_with(backend, draft(budget_bytes=1 << 16))
    answer = ask(backend, CASES["text only"], "no room")
    assert len(answer.tokens) == OPTIONS["max_new_tokens"]
    assert answer.usage.proposed_tokens == 0


@pytest.mark.parametrize("failing", [[3], [1], [2, 9]])
def test_a_draft_that_fails_leaves_answers_alone(backend, draft, monkeypatch, failing):
    guess_with(backend, None)
    plain = ask(backend, CASES["text only"], "plain")
    guesser, calls = draft(), []
    forward = guesser._model.forward

    def unsure(vectors, batch):
        calls.append(1)
        if len(calls) in failing:
            batch.rows[0].append(0, torch.zeros(2, 1, 16), torch.zeros(2, 1, 16))
            raise torch.OutOfMemoryError
        return forward(vectors, batch)

    monkeypatch.setattr(guesser._model, "forward", unsure)
    guess_with(backend, guesser)
    assert ids_of(ask(backend, CASES["text only"], "failed draft")) == ids_of(plain)
    assert not guesser._states
    again = ask(backend, CASES["text only"], "failed draft")
    assert ids_of(again) == ids_of(plain)


def test_a_model_is_loaded_with_its_draft_which_the_plan_names(tiny, twin):
    with load(tiny, weights="fp32", draft=twin) as backend:
        assert f"{twin.name} guesses ahead" in backend.plan.reasons[-1]
        answer = ask(backend, CASES["text only"], "")
        assert answer.usage.proposed_tokens > 0


def test_a_draft_with_other_ids_is_refused_by_name(tiny, twin, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(twin / name)
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["the"], words["of"] = words["of"], words["the"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(LoadError, match=f"{tmp_path.name}.*cannot guess for.*ids"):
        load(tiny, weights="fp32", draft=tmp_path)


def test_a_vision_model_is_refused_as_a_draft(tiny):
    with pytest.raises(LoadError, match="Choose a text model"):
        load(tiny, weights="fp32", draft=tiny)


def test_a_draft_and_no_guessing_contradict_each_other(tiny, twin):
    with pytest.raises(LoadError, match="Leave one of them out"):
        load(tiny, draft=twin, speculation="off")
