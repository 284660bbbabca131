"""How sure, layer by layer, and two sides compared: numbers are passed on, and sides let go."""

import math

import numpy as np
import pytest

from gemma3vl_app import explain
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.explain import difference
from tests.explain.conftest import ABOUT, WORDS, StandIn


def test_each_token_comes_with_its_probability_and_what_else_was_likely(stand_in, talk, answer):
    found = explain.tokens(stand_in, talk, answer)
    assert tuple(token.text for token in found.tokens) == WORDS
    assert all(token.logprob == pytest.approx(-0.5) for token in found.tokens)
    assert [each.text for each in found.tokens[0].alternatives] == ["w5", "w4"]
    assert len(found.entropies) == len(WORDS) + 1
    assert found.perplexity == pytest.approx(math.exp(0.5))


def test_what_comes_next_is_asked_after_words_put_in_its_mouth(stand_in, talk):
    found = explain.next(stand_in, talk, "A red", top=2)
    assert stand_in.asked[0][1] == "A red"
    assert found.tokens == () and len(found.following) == 2
    assert explain.next(stand_in, talk).following  # before anything is said


def test_layers_are_told_for_the_chosen_words(stand_in, talk, answer):
    found = explain.layers(stand_in, talk, answer, ["red", "square"])
    assert found.tokens == (" red", " square")
    assert found.kinds == ("sliding", "global")
    assert found.logprobs.shape == (2, 2)


def test_two_sides_that_are_one_do_not_differ(stand_in, talk, answer):
    found = explain.compare(talk, stand_in, stand_in, answer)
    assert found.kl == pytest.approx([0.0] * 9)
    assert all(found.same_best)


def test_the_divergence_of_two_sides_is_kullback_and_leiblers(talk, answer):
    one, other = StandIn(), StandIn(spread=0.5)
    found = explain.compare(talk, one, other, answer)
    p, q = (np.exp(np.arange(6) * scale) for scale in (1, 1.5))
    p, q = p / p.sum(), q / q.sum()
    assert found.kl[0] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-4)
    assert found.tokens == WORDS


def test_crops_are_set_for_each_side(stand_in, talk, answer):
    sides = (explain.Side(backend=stand_in, crops=crops) for crops in ("off", "on"))
    found = explain.compare(talk, *sides, answer)
    crops = [conversation.pictures[0].crops for conversation, _, _ in stand_in.asked]
    assert crops == ["off", "on"]
    assert found.sides == ("stand-in, fp32, crops off", "stand-in, fp32, crops on")


def test_one_side_is_let_go_before_the_other_is_loaded(monkeypatch, talk, answer):
    happened = []

    class Loaded(StandIn):
        def __init__(self, name):
            super().__init__(capabilities=ABOUT)
            self.name = name

        def __enter__(self):
            happened.append(f"loaded {self.name}")
            return self

        def __exit__(self, *error):
            happened.append(f"closed {self.name}")

    monkeypatch.setattr(
        "gemma3vl_app.backends.local.load", lambda source, weights: Loaded(f"{source} {weights}")
    )
    sides = (explain.Side(source="tiny", weights=weights) for weights in ("bf16", "nf4"))
    explain.compare(talk, *sides, answer)
    assert happened == [
        "loaded tiny bf16",
        "closed tiny bf16",
        "loaded tiny nf4",
        "closed tiny nf4",
    ]


def test_sides_with_different_tokens_cannot_be_compared(talk, answer):
    class Other(StandIn):
        def answer_tokens(self, *asked, **options):
            return super().answer_tokens(*asked, **options)[:-1]

    with pytest.raises(ConversationError, match="different tokens"):
        explain.compare(talk, StandIn(), Other(), answer)


def test_the_second_side_is_asked_about_the_very_tokens_of_the_first(stand_in, talk, answer):
    explain.compare(talk.assistant(answer.text), stand_in, stand_in)
    (_, first, _), (_, second, _) = stand_in.asked
    assert first == answer.text
    assert [token.id for token in second.tokens] == list(range(len(WORDS)))


def test_a_side_needs_a_model(talk, answer):
    with pytest.raises(ConversationError, match="needs a backend"):
        explain.compare(talk, explain.Side(), StandIn(), answer)
    assert difference.SAYS
