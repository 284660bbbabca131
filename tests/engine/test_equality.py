"""Whatever was cached, batched, cut or branched, answers equal a full recompute."""

import dataclasses
import threading
from concurrent.futures import Future

import pytest

from gemma3vl_app import Chat
from gemma3vl_app.generation import Greedy
from gemma3vl_app.messages import Conversation
from tests.engine.reference import TOKENS, Reference, greedy, picture

OPTIONS = {"sampling": Greedy(), "max_new_tokens": TOKENS, "logprobs": 5}
LONG = "There is a red barn behind the old mill by the river, and nobody lives in it. " * 4


CASES = {
    "text only": Conversation().user("What is this?"),
    "one picture": Conversation().user(picture(1), "What is this?"),
    "pictures and text interleaved": Conversation().user(
        "First ", picture(1), " then ", picture(2), " last ", picture(3), "Which is red?"
    ),
    "two pictures with no text between": Conversation().user(picture(1), picture(2), "Same?"),
    "far past the sliding window": Conversation().user(LONG, picture(1), LONG, "What is it?"),
    "a system text": Conversation(system="Be brief.").user(picture(1), "What is this?"),
    "crops": Conversation().user(picture(4, 1200, 400, crops="on"), "What is this?"),
    "history as text": Conversation()
    .user(picture(1), "What is this?")
    .assistant("A house.")
    .user(picture(2), "And this?"),
}


@pytest.mark.parametrize("conversation", CASES.values(), ids=CASES.keys())
def test_a_fresh_answer_equals_a_full_recompute(backend, reference, conversation):
    answer = greedy(backend, conversation, session="fresh")
    assert len(answer.tokens) == TOKENS
    reference.check(conversation, answer)


def test_every_turn_of_a_long_chat_equals_a_full_recompute(backend, reference):
    chat = Chat(backend, session="chat")
    for turn in range(6):
        images = [picture(10 + turn)] if turn % 2 == 0 else []
        answer = chat.ask(f"Turn {turn}: what now?", images=images, crops="off", **OPTIONS)
        asked = dataclasses.replace(chat.conversation, messages=chat.conversation.messages[:-1])
        reference.check(asked, answer, session="chat")
        if turn:
            assert answer.usage.cached_tokens > 0.5 * answer.usage.prompt_tokens


def test_conversations_answered_together_equal_those_answered_alone(backend, reference):
    conversations = [
        Conversation().user(
            *[picture(seed) for seed in range(k % 3)], f"{k} " + "word " * (9 * k), "?"
        )
        for k in range(8)
    ]
    widths = []
    head = backend.engine._text_model._text.norm  # sees every pass: (rows, tokens, width)
    handle = head.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[0]))
    streams = [
        backend.stream(each, session=f"together {k}", **{**OPTIONS, "max_new_tokens": 40})
        for k, each in enumerate(conversations)
    ]
    for conversation, stream in zip(conversations, streams, strict=True):
        reference.check(conversation, stream.answer)
    handle.remove()
    assert max(widths) == 8


def test_a_prompt_computed_in_many_small_chunks_equals_one_computed_whole(
    make_backend, reference_model
):
    backend = make_backend(unit_sec=1e-9, chunk_tokens=32)  # chunks of the least size
    conversation = Conversation().user(LONG, picture(1), LONG, picture(2), picture(3), "Which?")
    Reference(reference_model, backend).check(conversation, greedy(backend, conversation))


def test_a_prompt_stopped_in_the_middle_of_a_chunk_leaves_nothing_wrong_behind(
    make_backend, reference_model
):
    backend = make_backend(unit_sec=1e-9, chunk_tokens=32)  # a unit is one layer of a chunk
    reference = Reference(reference_model, backend)
    conversation = Conversation().user(LONG, picture(1), LONG, picture(2), "Which?")
    layers = backend._loaded.model.model.language_model.layers
    passed: list[int] = []
    streams, count = [], 0

    def enter(layer: int) -> None:
        passed.append(layer)
        if len(passed) == count:
            streams[-1].cancel()

    for layer, module in enumerate(layers):
        module.register_forward_pre_hook(lambda *_, layer=layer: enter(layer))
    for stop_at in (2, 9, 16):  # in the first chunk, the second, the third
        count = stop_at
        passed.clear()
        held = threading.Event()
        backend.engine._jobs.append((held.wait, Future()))  # nothing begins before it is known
        streams.append(backend.stream(conversation, **OPTIONS))
        held.set()
        assert streams[-1].answer.finish_reason == "cancelled"
        assert 0 < passed[-1] < len(layers) - 1
    count = 0
    reference.check(conversation, greedy(backend, conversation))


def test_the_turn_after_a_stopped_answer_equals_a_full_recompute(backend, reference):
    chat = Chat(backend, session="stopped")
    stream = chat.stream(picture(1), "Tell me more.", sampling=Greedy(), max_new_tokens=4000)
    for count, _ in enumerate(chunk for chunk in stream if chunk.tokens):
        if count == 40:
            chat.stop()
            break
    assert stream.answer.finish_reason == "cancelled"
    answer = chat.ask("And now?", **OPTIONS)
    asked = dataclasses.replace(chat.conversation, messages=chat.conversation.messages[:-1])
    reference.check(asked, answer, session="stopped")
    assert answer.usage.cached_tokens >= 40


def test_edit_regenerate_branch_and_resume_equal_a_full_recompute(backend, reference):
    chat = Chat(backend, session="tree")
    chat.ask(LONG, images=[picture(1)], crops="off", **OPTIONS)
    chat.ask("And the second?", images=[picture(2)], crops="off", **OPTIONS)
    first = chat.conversation.messages[:1]

    def check(answer, messages):
        reference.check(Conversation(tuple(messages)), answer, session="tree")

    again = chat.regenerate(**OPTIONS).answer
    check(again, chat.conversation.messages[:3])
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    edited = chat.edit(2, "And the third?", **OPTIONS).answer
    check(edited, chat.conversation.messages[:3])
    more = chat.resume(**OPTIONS).answer
    whole = chat.conversation
    start = whole.messages[-1].text.removesuffix(more.text)
    check(more, Conversation(whole.messages[:-1]).assistant(start).messages)
    after = chat.ask("Thanks.", **OPTIONS)
    check(after, chat.conversation.messages[:-1])
    assert after.usage.cached_tokens >= more.usage.prompt_tokens
    chat.branch(0)
    assert chat.conversation.messages == first
    other = chat.regenerate(**OPTIONS).answer
    check(other, first)


def test_an_evicted_prefix_is_recomputed_shown_and_still_equal(make_backend, reference_model):
    backend = make_backend(prefix_budget_bytes=0, feature_budget_bytes=0)
    conversation = Conversation().user(picture(1), "What is this?")
    first = greedy(backend, conversation)
    second = greedy(backend, conversation)
    assert second.usage.cached_tokens == 0
    assert [t.id for t in first.tokens] == [t.id for t in second.tokens]
    Reference(reference_model, backend).check(conversation, second)


def test_scores_of_a_given_text_equal_a_full_recompute(backend, reference):
    conversation = Conversation().user(picture(1), "What is this?")
    tokens = backend.score(conversation, "A small red house.")
    prompt = backend._prepare(conversation, "")
    expected = reference.logits(prompt, [token.id for token in tokens]).log_softmax(-1)
    assert "".join(token.text for token in tokens) == "A small red house."
    for row, token in zip(expected, tokens, strict=False):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
