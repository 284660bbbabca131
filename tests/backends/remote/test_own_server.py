"""Our own server as a remote engine: its answers are those of the model where it is loaded."""

import pytest

from gemma3vl_app.backends.local import load
from gemma3vl_app.backends.remote import load_remote
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.messages import Conversation
from tests.api.servers import served
from tests.engine.reference import picture

QUESTION = "What is in it? <end_of_turn>"  # which is text, and ends nothing
OPTIONS = {"sampling": Greedy(), "max_new_tokens": 12}


@pytest.fixture(scope="module")
def local(tiny):
    with load(tiny, weights="fp32") as backend:
        yield backend


@pytest.fixture(scope="module")
def remote(local):
    with served(local) as server, load_remote(f"{server.address}/v1") as backend:
        yield backend


def test_it_tells_what_it_can(local, remote):
    ours, theirs = local.capabilities, remote.capabilities
    assert theirs.model == ours.model
    assert theirs.context_tokens == ours.context_tokens
    assert theirs.image_tokens > ours.image_tokens  # with the blank lines around a picture
    assert theirs.logprobs and theirs.schema and not theirs.score
    assert remote.facts.kind == "gemma3vl"


@pytest.mark.parametrize("crops", ["off", "on"])
def test_a_question_about_a_picture_has_the_same_answer_and_cost(local, remote, crops):
    asked = Conversation(system="Be brief.").user(picture(3, 1200, 400, crops=crops), QUESTION)
    here, there = (each.stream(asked, **OPTIONS).answer for each in (local, remote))
    assert there.text == here.text
    assert there.usage.prompt_tokens == here.usage.prompt_tokens


def test_a_seed_gives_the_same_words(local, remote):
    asked = Conversation().user(QUESTION)
    options = {"sampling": Sample(seed=7, temperature=0.7, top_k=20), "max_new_tokens": 12}
    here, there = (each.stream(asked, **options).answer for each in (local, remote))
    assert there.text == here.text


def test_an_unfinished_answer_is_gone_on_with(local, remote):
    asked = Conversation().user(QUESTION).assistant("It is a")
    here, there = (each.stream(asked, **OPTIONS).answer for each in (local, remote))
    assert there.text == here.text
    assert there.usage.prompt_tokens == here.usage.prompt_tokens


def test_a_second_turn_finds_the_first_in_the_cache(remote):
    talk = Conversation().user(picture(9), "A question of some length, to be kept. " * 4)
    first = remote.stream(talk, **OPTIONS).answer
    again = remote.stream(talk.assistant(first.text).user("And now?"), **OPTIONS).answer
    assert again.usage.cached_tokens >= first.usage.prompt_tokens
