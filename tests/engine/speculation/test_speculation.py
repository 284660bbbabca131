"""Answers with guesses equal those without, and a full recompute; only the passes get fewer."""

import dataclasses

import pytest

from gemma3vl_app import Chat
from gemma3vl_app.backends.local import load
from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.messages import Conversation
from tests.engine.reference import greedy, picture
from tests.engine.speculation.guessers import Oracle, guess_with
from tests.engine.test_equality import CASES
from tests.engine.test_grammar import Shape

TOKENS = 40  # past the tiny model's window of 32
OPTIONS = {"sampling": Greedy(), "max_new_tokens": TOKENS, "logprobs": 3}


def ids_of(answer) -> list[int]:
    return [token.id for token in answer.tokens]


def plainly(backend, conversation, *, session: str = "plain", **options):
    """The answer without guesses, and its ids by the prompt they answer."""
    guess_with(backend, None)
    answer = backend.stream(conversation, session=session, **{**OPTIONS, **options}).answer
    return answer, {backend._prepare(conversation, session).ids.tobytes(): ids_of(answer)}


def guessing(backend, known, conversation, *, session: str = "guessing", wrong=5, **options):
    """The answer with guesses from `known`."""
    guess_with(backend, Oracle(known, wrong=wrong))
    return backend.stream(conversation, session=session, **{**OPTIONS, **options}).answer


@pytest.mark.parametrize(
    "name", ["pictures and text interleaved", "far past the sliding window", "crops"]
)
def test_an_answer_with_guesses_equals_a_full_recompute(backend, reference, name):
    plain, known = plainly(backend, CASES[name])
    answer = guessing(backend, known, CASES[name])
    reference.check(CASES[name], answer)
    assert ids_of(answer) == ids_of(plain)
    assert answer.text == plain.text
    assert 0 < answer.usage.accepted_tokens < answer.usage.proposed_tokens
    for one, other in zip(answer.tokens, plain.tokens, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_guesses_that_are_all_right_make_as_many_passes_fewer(backend):
    plain, known = plainly(backend, CASES["text only"])
    passes, logits = [], backend.engine._text_model.logits
    backend.engine._text_model.logits = lambda v: passes.append(len(v)) or logits(v)
    try:
        answer = guessing(backend, known, CASES["text only"], wrong=0)
    finally:
        del backend.engine._text_model.logits
    assert ids_of(answer) == ids_of(plain)
    assert answer.usage.accepted_tokens == answer.usage.proposed_tokens
    assert len(passes) == TOKENS - answer.usage.accepted_tokens
    assert len(passes) < TOKENS / 2


def test_guesses_that_are_never_right_change_nothing(backend, reference):
    conversation = CASES["one picture"]
    plain, known = plainly(backend, conversation)
    answer = guessing(backend, known, conversation, wrong=1)
    reference.check(conversation, answer)
    assert ids_of(answer) == ids_of(plain)
    assert answer.usage.accepted_tokens == 0 < answer.usage.proposed_tokens


def test_answers_with_guesses_of_different_lengths_share_their_passes(backend, reference):
    asked = [
        Conversation().user(*[picture(k) for k in range(n % 3)], f"{n} " + "word " * 9 * n, "?")
        for n in range(4)
    ]
    known = {}
    for conversation in asked:
        known |= plainly(backend, conversation)[1]
    oracle = Oracle(known, wrong=6)
    guess_with(backend, oracle)
    streams = [backend.stream(each, session="together", **OPTIONS) for each in asked]
    answers = [stream.answer for stream in streams]
    for conversation, answer in zip(asked, answers, strict=True):
        reference.check(conversation, answer)
        assert ids_of(answer) in known.values()
        assert answer.usage.accepted_tokens > 0
    assert any(len(counts) > 1 and len(set(counts)) > 1 for counts in oracle.passes)
    assert not oracle.known  # an answer that has ended is forgotten


def test_later_turns_edits_and_branches_go_on_from_what_was_accepted(backend, reference):
    def answered(session, conversation):
        """Ask twice: to know the answer, and with guesses, on top of the same history."""
        _, known = plainly(backend, conversation, session=session)
        answer = guessing(backend, known, conversation, session=session)
        reference.check(conversation, answer, session=session)
        assert answer.usage.accepted_tokens > 0
        return answer

    first = Conversation().user(picture(1), "There is a barn. " * 8)
    one = answered("turns", first)
    second = first.assistant(one.text).user(picture(2), "And this?")
    guess_with(backend, None)
    two = backend.stream(second, session="turns", **OPTIONS).answer
    reference.check(second, two, session="turns")
    # All but the last token, which nothing has gone on from
    assert two.usage.cached_tokens == one.usage.prompt_tokens + one.usage.completion_tokens - 1
    branch = first.assistant(one.text).user("Something else?")
    other = answered("turns", branch)
    assert other.usage.cached_tokens >= one.usage.prompt_tokens
    again = greedy(backend, first, session="turns", max_new_tokens=8)
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert ids_of(again) == ids_of(one)[:8]


def test_a_chat_that_is_edited_and_resumed_equals_a_full_recompute(backend, reference):
    guess_with(backend, None)
    chat = Chat(backend, session="tree")
    chat.ask("Tell me.", images=[picture(3)], crops="off", **OPTIONS)
    known = {}
    asked = chat.conversation
    known[backend._prepare(asked.user("More?"), "tree").ids.tobytes()] = []
    plain = chat.ask("More?", **OPTIONS)
    known = {k: ids_of(plain) for k in known}
    guess_with(backend, Oracle(known, wrong=4))
    again = chat.regenerate(**OPTIONS).answer
    assert ids_of(again) == ids_of(plain)
    assert again.usage.accepted_tokens > 0
    before = dataclasses.replace(chat.conversation, messages=chat.conversation.messages[:-1])
    reference.check(before, again, session="tree")
    more = chat.resume(**OPTIONS).answer
    whole = chat.conversation
    start = whole.messages[-1].text.removesuffix(more.text)
    resumed = dataclasses.replace(whole, messages=whole.messages[:-1]).assistant(start)
    reference.check(resumed, more, session="tree")


@pytest.mark.parametrize("wrong", [0, 5])
def test_the_limit_of_tokens_cuts_inside_a_run_that_was_right(backend, wrong):
    plain, known = plainly(backend, CASES["text only"])
    for limit in (1, 2, 6, 7, 13):
        answer = guessing(
            backend, known, CASES["text only"], wrong=wrong, max_new_tokens=limit, session="cut"
        )
        assert (ids_of(answer), answer.finish_reason) == (ids_of(plain)[:limit], "length")


def test_a_stop_string_inside_a_right_run_ends_the_answer_and_its_snapshot(backend):
    plain, known = plainly(backend, CASES["one picture"])
    said = [token.text for token in plain.tokens]
    at = next(n for n in range(9, TOKENS) if said[n].strip() and said[n] not in said[:n])
    options = {"stop": [said[at]], "wrong": 0}
    answer = guessing(backend, known, CASES["one picture"], session="stop", **options)
    expected, _ = plainly(backend, CASES["one picture"], session="without", stop=[said[at]])
    assert (answer.text, answer.finish_reason) == (expected.text, "stop")
    assert ids_of(answer) == ids_of(expected)
    follow = CASES["one picture"].assistant(answer.text).user("And?")
    caches = [backend.preview(follow, session=each).cached_tokens for each in ("stop", "without")]
    assert caches[0] == caches[1]


def test_a_stop_token_after_a_right_run_ends_the_answer(make_backend, monkeypatch):
    backend = make_backend()
    plain, known = plainly(backend, CASES["text only"])
    at = next(n for n in range(8, TOKENS) if ids_of(plain)[n] not in ids_of(plain)[:n])
    monkeypatch.setattr(backend.engine._decoder, "_stop_ids", frozenset({ids_of(plain)[at]}))
    answer = guessing(backend, known, CASES["text only"], wrong=0)
    assert (ids_of(answer), answer.finish_reason) == (ids_of(plain)[:at], "stop")
    follow = CASES["text only"].assistant(answer.text).user("And?")
    cached = backend.preview(follow, session="guessing").cached_tokens
    assert cached == answer.usage.prompt_tokens + at  # all of the answer, nothing of the guess


@pytest.mark.parametrize("wrong", [0, 4])
def test_the_same_seed_draws_the_same_with_and_without(backend, wrong):
    sampling = Sample(seed=3)
    plain, known = plainly(backend, CASES["one picture"], sampling=sampling)
    answer = guessing(backend, known, CASES["one picture"], sampling=sampling, wrong=wrong)
    assert ids_of(answer) == ids_of(plain)
    assert answer.usage.accepted_tokens > 0


def test_what_is_drawn_does_not_depend_on_guesses_that_are_wrong(backend):
    sampling = Sample(seed=4)
    greedy_one, known = plainly(backend, CASES["text only"])  # another answer than the drawn one
    plain, _ = plainly(backend, CASES["text only"], sampling=sampling)
    assert ids_of(plain) != ids_of(greedy_one)

    class Stubborn(Oracle):
        def _rest(self, sequence):
            return ids_of(greedy_one)[len(sequence.generated) :]

    guess_with(backend, Stubborn(known))
    options = {**OPTIONS, "sampling": sampling}
    answer = backend.stream(CASES["text only"], session="stubborn", **options).answer
    assert ids_of(answer) == ids_of(plain)


@pytest.mark.parametrize("sampling", [Greedy(), Sample(seed=1)], ids=["greedy", "sampled"])
def test_a_schema_is_kept_and_its_answer_the_same(backend, sampling):
    options = {"schema": Shape, "max_new_tokens": 60, "sampling": sampling}
    plain, known = plainly(backend, CASES["one picture"], **options)
    for wrong in (0, 3):
        answer = guessing(
            backend, known, CASES["one picture"], wrong=wrong, session=f"schema {wrong}", **options
        )
        assert ids_of(answer) == ids_of(plain)
        assert (answer.text, answer.finish_reason) == (plain.text, plain.finish_reason)
        assert answer.usage.accepted_tokens > 0


def test_a_cancelled_answer_keeps_accepted_tokens_only(backend, reference):
    long = {"max_new_tokens": 300, "logprobs": None}
    plain, known = plainly(backend, CASES["text only"], **long)
    guess_with(backend, Oracle(known))
    stream = backend.stream(CASES["text only"], session="cancel", **{**OPTIONS, **long})
    for count, _ in enumerate(chunk for chunk in stream if chunk.tokens):
        if count == 30:
            stream.cancel()
            break
    answer = stream.answer
    assert answer.finish_reason == "cancelled"
    assert ids_of(answer) == ids_of(plain)[: len(answer.tokens)]
    follow = CASES["text only"].assistant(answer.text).user("And?")
    guess_with(backend, None)
    reference.check(follow, greedy(backend, follow, session="cancel"), session="cancel")


@pytest.mark.parametrize("error", [ArithmeticError("boom"), MemoryError()])
def test_a_pass_with_guesses_that_fails_is_repeated_without(make_backend, monkeypatch, error):
    backend = make_backend()
    plain, known = plainly(backend, CASES["far past the sliding window"])
    text_model, failures = backend.engine._text_model, []
    logits, forward = text_model.logits, text_model.forward

    def failing_after_storing(vectors):
        if len(vectors) > 2 and len(failures) < 2:
            failures.append("after")
            raise error
        return logits(vectors)

    def failing_before(vectors, batch):
        if hasattr(batch, "counts") and len(failures) in (2, 3):
            failures.append("before")
            batch.rows[0].append(0, vectors.new_zeros(2, 3, 16), vectors.new_zeros(2, 3, 16))
            raise error
        return forward(vectors, batch)

    monkeypatch.setattr(text_model, "logits", failing_after_storing)
    monkeypatch.setattr(text_model, "forward", failing_before)
    answer = guessing(backend, known, CASES["far past the sliding window"])
    assert failures == ["after", "after", "before", "before"]
    assert ids_of(answer) == ids_of(plain)


def test_a_guesser_that_fails_leaves_the_answer_alone(backend):
    plain, known = plainly(backend, CASES["text only"])

    class Failing(Oracle):
        def propose(self, wanted):
            raise ZeroDivisionError

    guess_with(backend, Failing(known))
    answer = backend.stream(CASES["text only"], session="failing", **OPTIONS).answer
    assert ids_of(answer) == ids_of(plain)
    assert answer.usage.proposed_tokens == 0


def test_an_answer_that_repeats_itself_is_guessed_from_its_own_text(make_backend, monkeypatch):
    # The model says the same five tokens over and over, whatever it is fed.
    backend = make_backend()
    from gemma3vl_app.engine.speculation.lookup import Lookup

    text_model, loop = backend.engine._text_model, [500, 600, 700, 800, 900]

    def logits(vectors):
        rows = vectors.new_zeros(len(vectors), text_model.vocab_size)
        (sequence,) = backend.engine._decoding
        for row in range(len(vectors)):
            rows[row, loop[(len(sequence.generated) + row) % len(loop)]] = 50.0
        return rows

    monkeypatch.setattr(text_model, "logits", logits)
    guess_with(backend, Lookup(()))
    answer = greedy(backend, Conversation().user("Go"), max_new_tokens=100)
    assert ids_of(answer) == loop * 20
    assert answer.usage.accepted_tokens > 80


def test_speculation_is_on_unless_it_is_switched_off(tiny, backend):
    with load(tiny, weights="fp32", speculation="off") as off:
        assert off.engine._decoder.speculation is None
    with pytest.raises(LoadError, match="'auto' or 'off'"):
        load(tiny, speculation="always")
