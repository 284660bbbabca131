"""Choosing tokens: transformers' filters, and seeds that mean something."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gemma3vl_app.engine.sampling import Sampler, candidates
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.messages import Conversation

VOCABULARY = 1000


@pytest.mark.parametrize(
    "sample",
    [
        Sample(),
        Sample(temperature=0.3, top_k=0, top_p=0.5),
        Sample(temperature=2.0, top_k=5, top_p=1.0),
        Sample(top_k=0, top_p=1.0),
        Sample(top_k=0, top_p=1e-6),
    ],
)
def test_what_may_be_drawn_equals_transformers_warpers(sample):
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3
    scores = TemperatureLogitsWarper(sample.temperature)(None, logits[None])
    if sample.top_k:
        scores = TopKLogitsWarper(sample.top_k)(None, scores)
    if sample.top_p < 1:
        scores = TopPLogitsWarper(sample.top_p)(None, scores)
    expected = scores[0].softmax(-1)
    probabilities, ids = candidates(logits, sample)
    got = torch.zeros(VOCABULARY).scatter(0, ids, probabilities)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    sampler = Sampler(Sample(top_k=0, top_p=1.0, seed=3))
    drawn = torch.bincount(torch.tensor([sampler.choose(logits) for _ in range(4000)]))
    torch.testing.assert_close(drawn / 4000, torch.tensor([0.5, 0.3, 0.2]), atol=0.03, rtol=0)


def test_greedy_takes_the_likeliest():
    assert Sampler(Greedy()).choose(torch.tensor([0.1, 2.0, -1.0])) == 1


def test_the_same_seed_gives_the_same_answer_alone_and_in_company(backend):
    conversation = Conversation().user("Tell me a story about a fox.")
    settings = {"sampling": Sample(seed=7, top_k=0, top_p=1.0), "max_new_tokens": 20}
    alone = backend.stream(conversation, session="alone", **settings).answer
    others = [
        backend.stream(Conversation().user(f"Other {k}"), session="x", max_new_tokens=30)
        for k in range(5)
    ]
    company = backend.stream(conversation, session="company", **settings).answer
    other_seed = {**settings, "sampling": Sample(seed=8, top_k=0, top_p=1.0)}
    different = backend.stream(conversation, **other_seed).answer
    assert [t.id for t in alone.tokens] == [t.id for t in company.tokens]
    assert [t.id for t in alone.tokens] != [t.id for t in different.tokens]
    for other in others:
        other.cancel()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, word):
    with pytest.raises(ConversationError, match=word):
        Sample(**settings)
