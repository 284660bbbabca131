"""The engine's rules beyond equality: one thread, fair turns, cancel, failures that stay alone."""

import asyncio
import threading
import time
from concurrent.futures import Future
from itertools import pairwise

import psutil
import pytest
import torch

from gemma3vl_app.errors import BusyError, ContextLengthError, EngineError, MemoryLimitError
from gemma3vl_app.generation import Greedy, Sample, Status
from gemma3vl_app.messages import Conversation
from tests.engine.reference import greedy, picture

LONG = "word " * 1500
FOREVER = {"sampling": Sample(seed=0), "max_new_tokens": 6000}


def ids_of(backend, text: str) -> list[int]:
    return backend._tokenizer.encode(text)


def first_token(stream) -> None:
    """Wait until an answer has begun."""
    for chunk in stream:
        if chunk.tokens:
            return


# --- rule 1: one thread, fair turns ---


def test_only_the_engine_thread_calls_the_model(make_backend):
    backend, threads = make_backend(), set()
    for module in backend._loaded.model.modules():
        module.register_forward_pre_hook(lambda *_: threads.add(threading.current_thread().name))
    streams = [
        backend.stream(Conversation().user(picture(k), "Hi"), max_new_tokens=3) for k in range(3)
    ]
    for stream in streams:
        assert stream.answer.tokens
    backend.score(Conversation().user("Hi"), "there")
    assert threads == {"gemma3vl-engine"}


def test_a_long_prompt_lets_running_answers_go_on_between_its_layers(make_backend):
    backend = make_backend(unit_sec=1e-9, chunk_tokens=32)  # a unit is one layer of a chunk
    widths = []
    layers = backend._loaded.model.model.language_model.layers
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, arguments: widths.append(arguments[0].shape[1]))
    running = backend.stream(Conversation().user("Go"), **FOREVER)
    first_token(running)
    assert backend.stream(Conversation().user(LONG), max_new_tokens=1).answer.tokens
    running.cancel()
    of_prompt = [index for index, width in enumerate(widths) if width > 10]
    assert len(of_prompt) > 5 * len(layers)
    assert all(b - a == len(layers) + 1 for a, b in pairwise(of_prompt[1:]))


def test_a_chunk_is_what_fits_into_a_unit_but_never_too_small_to_be_worth_it(make_backend):
    backend, widths, tokens = make_backend(chunk_tokens=100), [], {}
    backend._loaded.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, arguments: widths.append(arguments[0].shape[1])
    )
    for tokens_per_sec in (10.0, 1000.0, 5000.0):
        backend.engine._prefill._tokens_per_sec = tokens_per_sec
        widths.clear()
        asked = Conversation().user(LONG)
        backend.stream(asked, max_new_tokens=1, session=str(tokens_per_sec)).wait()
        tokens[tokens_per_sec] = widths[0]
    assert tokens == {10.0: 100, 1000.0: 500, 5000.0: 1509}  # of the prompt's 1,509


@pytest.mark.parametrize(("unit_sec", "beside"), [(1000.0, 6), (1e-9, 1)])
def test_short_prompts_are_computed_several_between_two_steps_within_the_unit(
    make_backend, monkeypatch, unit_sec, beside
):
    # All of them fit into a long unit, so all decode together; of a unit of no length one step of
    # work is left, and the first answer begins alone.
    backend, rows = make_backend(unit_sec=unit_sec), []
    decoder = backend.engine._decoder
    decode = decoder._decode_rows
    monkeypatch.setattr(
        decoder,
        "_decode_rows",
        lambda group, guesses: rows.append(len(group)) or decode(group, guesses),
    )
    held = threading.Event()
    backend.engine._jobs.append((held.wait, Future()))  # nothing is admitted before all are there
    streams = [
        backend.stream(Conversation().user(picture(k), "Hi"), max_new_tokens=9) for k in range(6)
    ]
    held.set()
    for stream in streams:
        assert stream.answer.tokens
    assert rows[0] == beside
    assert max(rows) == 6 or beside == 1


def test_the_tower_lets_running_answers_go_on_between_its_layers(make_backend):
    backend = make_backend(unit_sec=1e-9)
    calls = []
    core = backend._loaded.model.model
    for layer in core.vision_tower.encoder.layers:
        layer.register_forward_pre_hook(lambda *_: calls.append("tower"))
    core.language_model.layers[0].register_forward_pre_hook(lambda *_: calls.append("text"))
    running = backend.stream(Conversation().user("Go"), **FOREVER)
    first_token(running)
    calls.clear()
    assert backend.stream(Conversation().user(picture(1), "What?"), max_new_tokens=1).answer.tokens
    running.cancel()
    first = calls.index("tower")
    assert calls[first : first + 3] == ["tower", "text", "tower"]


def test_statuses_tell_queue_pictures_and_prompt_before_the_text(backend):
    conversation = Conversation().user(picture(1), picture(2), "Compare.")
    chunks = list(
        backend.stream(conversation, max_new_tokens=2, sampling=Greedy(), session="status")
    )
    stages = [chunk.status for chunk in chunks if not chunk.tokens]
    assert stages[:4] == [
        Status("queued", 0),
        Status("vision", 0, 2),
        Status("vision", 1, 2),
        Status("prefill", 0, stages[3].total),
    ]
    assert all(chunk.status.stage == "decoding" for chunk in chunks if chunk.tokens)


# --- rules 4 to 6: nothing twice, nothing across salts ---


def count_calls(module: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_a_picture_is_encoded_once_per_session(make_backend):
    backend = make_backend()
    encoded = count_calls(backend._loaded.model.model.multi_modal_projector)
    for question in ("What?", "Where?", "Who?"):
        greedy(backend, Conversation().user(question, picture(1)), session="a")
    assert len(encoded) == 1
    greedy(backend, Conversation().user("What?", picture(1)), session="b")
    assert len(encoded) == 2


def test_two_requests_at_once_encode_a_shared_picture_once(make_backend):
    backend = make_backend(unit_sec=1e-9)
    encoded = count_calls(backend._loaded.model.model.multi_modal_projector)
    streams = [
        backend.stream(Conversation().user(f"{k}", picture(1)), max_new_tokens=2) for k in range(4)
    ]
    for stream in streams:
        assert stream.answer.tokens
    assert len(encoded) == 1


def test_cancelling_the_request_that_encodes_a_picture_leaves_it_to_the_other(make_backend):
    backend = make_backend(unit_sec=1e-9)
    tower = backend._loaded.model.model.vision_tower.encoder.layers[0]
    reached, go_on = threading.Event(), threading.Event()

    def hold(*_):
        reached.set()
        go_on.wait(10)

    handle = tower.register_forward_pre_hook(hold)
    first = backend.stream(Conversation().user("1", picture(1)), max_new_tokens=2)
    assert reached.wait(10)
    second = backend.stream(Conversation().user("2", picture(1)), max_new_tokens=2)
    first.cancel()
    handle.remove()
    go_on.set()
    assert first.answer.finish_reason == "cancelled"
    assert second.answer.finish_reason == "length"


def test_preview_and_usage_agree_on_what_is_cached(backend):
    conversation = Conversation().user(picture(1), "What is this?")
    before = backend.preview(conversation, session="preview")
    answer = greedy(backend, conversation, session="preview")
    after = backend.preview(conversation.assistant(answer.text).user("And now?"), session="preview")
    assert (before.prompt_tokens, before.cached_tokens) == (answer.usage.prompt_tokens, 0)
    assert before.image_tokens == answer.usage.image_tokens == 16
    assert after.cached_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens - 1


# --- rule 7: stop and cancel ---


def test_cancel_takes_effect_within_one_step(make_backend):
    backend = make_backend()
    stream = backend.stream(Conversation().user("Go"), **FOREVER)
    first_token(stream)
    steps = count_calls(backend._loaded.model.lm_head)
    stream.cancel()
    so_far = len(steps)
    answer = stream.answer
    assert answer.finish_reason == "cancelled"
    assert answer.text
    assert len(steps) - so_far <= 1


def test_cancel_while_queued_or_in_prefill_computes_no_answer(make_backend):
    backend = make_backend(max_running=1, unit_sec=1e-9)
    running = backend.stream(Conversation().user(LONG), **FOREVER)
    queued = backend.stream(Conversation().user("Me too"), **FOREVER)
    queued.cancel()
    assert queued.answer.finish_reason == "cancelled"
    running.cancel()
    assert (running.answer.finish_reason, running.answer.text) == ("cancelled", "")


def test_leaving_the_with_block_cancels(backend):
    with backend.stream(Conversation().user("Go"), **FOREVER) as stream:
        first_token(stream)
    assert stream.answer.finish_reason == "cancelled"


def test_500_cancels_leave_threads_and_memory_flat(make_backend):
    backend = make_backend(prefix_budget_bytes=4 << 20)
    process = psutil.Process()

    def cancel_some(count: int) -> tuple[int, int]:
        for index in range(count):
            conversation = Conversation().user(picture(index % 5), f"Number {index}")
            stream = backend.stream(conversation, **FOREVER)
            if index % 3:
                first_token(stream)
            threading.Thread(target=stream.cancel).start()
            assert stream.answer.finish_reason == "cancelled"
        return threading.active_count(), process.memory_info().rss

    threads, memory_bytes = cancel_some(150)
    threads_after, memory_bytes_after = cancel_some(350)
    assert threads_after <= threads + 1  # the last canceller may still be ending
    assert memory_bytes_after - memory_bytes < 32 << 20
    assert greedy(backend, Conversation().user("Still here?")).tokens


# --- rule 8: failures stay alone ---


def poison(backend, text: str, error: Exception) -> None:
    """Make the model fail whenever a row holds the first token of `text`."""
    bad = ids_of(backend, text)[0]

    def hook(_, arguments):
        if bool((arguments[0] == bad).any()):
            raise error

    backend._loaded.model.model.language_model.embed_tokens.register_forward_pre_hook(hook)


def test_a_request_that_fails_in_prefill_fails_alone(make_backend):
    backend = make_backend()
    good = backend.stream(Conversation().user("Go"), sampling=Greedy(), max_new_tokens=30)
    poison(backend, "zebra", ZeroDivisionError("/secret/path"))
    bad = backend.stream(Conversation().user("zebra"))
    with pytest.raises(EngineError, match="ZeroDivisionError") as failure:
        _ = bad.answer
    assert "/secret" not in str(failure.value)
    assert len(good.answer.tokens) == 30


def test_a_request_that_fails_while_decoding_together_fails_alone(make_backend):
    backend = make_backend()
    alone = greedy(backend, Conversation().user("Go"), session="before", max_new_tokens=40)
    victim = greedy(backend, Conversation().user("Fall"), session="before", max_new_tokens=40)
    ids = [token.id for token in victim.tokens]
    fatal = next(each for each in ids[5:] if each not in {t.id for t in alone.tokens})

    def hook(_, arguments):
        if arguments[0].shape[1] == 1 and bool((arguments[0] == fatal).any()):
            raise ArithmeticError("boom")

    backend._loaded.model.model.language_model.embed_tokens.register_forward_pre_hook(hook)
    good = backend.stream(
        Conversation().user("Go"), sampling=Greedy(), max_new_tokens=40, session="after"
    )
    bad = backend.stream(
        Conversation().user("Fall"), sampling=Greedy(), max_new_tokens=40, session="after"
    )
    with pytest.raises(EngineError, match="ArithmeticError"):
        _ = bad.answer
    assert [token.id for token in good.answer.tokens] == [token.id for token in alone.tokens]


def test_a_first_step_that_fails_before_its_tokens_are_known_is_repeated(make_backend, monkeypatch):
    backend = make_backend()
    expected = greedy(backend, Conversation().user("Hi"), session="before")
    text_model, failures = backend.engine._text_model, iter([True])
    logits = text_model.logits

    class Broken:  # as a GPU, which tells of a failure when its numbers are read
        def max(self, _):
            raise RuntimeError("the device failed")

    monkeypatch.setattr(
        text_model, "logits", lambda v: Broken() if next(failures, False) else logits(v)
    )
    got = greedy(backend, Conversation().user("Hi"), session="after")
    assert [token.id for token in got.tokens] == [token.id for token in expected.tokens]


@pytest.mark.parametrize("error", [ArithmeticError("boom"), MemoryError()])
def test_a_shared_step_that_fails_after_storing_its_tokens_is_repeated_rightly(
    make_backend, error, monkeypatch
):
    backend = make_backend()
    asked = [Conversation().user(text) for text in ("Go", "Stay", "Come")]
    alone = [greedy(backend, each, session="alone", max_new_tokens=30) for each in asked]
    text_model, failures = backend.engine._text_model, []
    logits = text_model.logits

    def fail_once(vectors):
        if vectors.shape[0] == 3 and vectors.dim() == 2 and not failures:
            failures.append(error)
            raise error
        return logits(vectors)

    monkeypatch.setattr(text_model, "logits", fail_once)
    options = {"sampling": Greedy(), "max_new_tokens": 30, "session": "together"}
    streams = [backend.stream(each, **options) for each in asked]
    together = [stream.answer for stream in streams]
    assert failures, "the three never decoded together"
    for one, other in zip(alone, together, strict=True):
        assert [token.id for token in one.tokens] == [token.id for token in other.tokens]
    follow_up = asked[0].assistant(together[0].text).user("And?")
    got = greedy(backend, follow_up, session="together")
    assert got.usage.cached_tokens >= together[0].usage.prompt_tokens
    backend.engine.prefixes.clear()
    expected = greedy(backend, follow_up, session="together")
    assert expected.usage.cached_tokens == 0
    assert [token.id for token in got.tokens] == [token.id for token in expected.tokens]


def test_a_long_score_lets_running_answers_go_on(make_backend):
    backend = make_backend(unit_sec=1e-9)  # one unit between two steps, however quick
    running = backend.stream(Conversation().user("Go"), **FOREVER)
    first_token(running)
    calls = []
    logits = backend.engine._text_model.logits
    backend.engine._text_model.logits = lambda v: calls.append(v.shape[0]) or logits(v)
    tokens = backend.score(Conversation().user("Hi"), "word " * 300)
    running.cancel()
    scored = [index for index, rows in enumerate(calls) if rows > 1]
    assert len(tokens) == 301
    assert len(scored) == 5
    assert all(b - a > 1 for a, b in pairwise(scored))


def test_a_defect_of_the_engine_itself_leaves_nobody_waiting(make_backend, monkeypatch):
    backend = make_backend()
    running = backend.stream(Conversation().user("Go"), **FOREVER)
    first_token(running)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(backend.engine, "_admit", lambda: 1 / 0)
    with pytest.raises(EngineError):
        _ = running.answer
    with pytest.raises(EngineError, match="closed"):
        backend.stream(Conversation().user("Hi"))


def test_out_of_memory_gives_advice_and_the_engine_serves_on(make_backend):
    backend = make_backend()
    poison(backend, "zebra", MemoryError())
    for _ in range(3):
        with pytest.raises(MemoryLimitError, match="fewer or smaller pictures"):
            greedy(backend, Conversation().user("zebra"))
    assert greedy(backend, Conversation().user("Go")).tokens


def test_a_prompt_longer_than_the_context_is_refused_with_figures(backend):
    with pytest.raises(ContextLengthError, match=r"8,192"):
        backend.stream(Conversation().user("word " * 9000))


def test_an_answer_ends_where_the_context_ends(backend):
    conversation = Conversation().user("word " * 8160)
    preview = backend.preview(conversation)
    room = preview.context_tokens - preview.prompt_tokens
    answer = greedy(backend, conversation, max_new_tokens=1000)
    assert (len(answer.tokens), answer.finish_reason) == (room, "length")


def test_a_full_queue_says_so_at_once(make_backend):
    backend = make_backend(max_running=1, max_waiting=2)
    running = backend.stream(Conversation().user("Go"), **FOREVER)
    first_token(running)
    waiting = [backend.stream(Conversation().user("Me"), max_new_tokens=1) for _ in range(2)]
    with pytest.raises(BusyError, match="2 requests are waiting"):
        backend.stream(Conversation().user("Me too"))
    running.cancel()
    assert all(stream.answer.tokens for stream in waiting)


def test_closing_fails_open_answers_and_refuses_new_ones(make_backend):
    backend = make_backend()
    running = backend.stream(Conversation().user("Go"), **FOREVER)
    first_token(running)
    backend.close()
    backend.close()
    with pytest.raises(EngineError, match="closed"):
        _ = running.answer
    with pytest.raises(EngineError, match="closed"):
        backend.stream(Conversation().user("Hi"))
    assert not any(
        thread.name == "gemma3vl-engine" and thread is backend.engine._thread
        for thread in threading.enumerate()
    )


# --- options ---


def test_an_answer_can_be_read_with_async_for(backend):
    async def read() -> str:
        text = ""
        async for chunk in backend.stream(Conversation().user("Go"), max_new_tokens=5):
            text += chunk.text
        return text

    stream_text = asyncio.run(read())
    assert stream_text


@pytest.mark.parametrize("end", [1, 106])
def test_both_eos_and_end_of_turn_end_an_answer(scripted_logits, end):
    backend = scripted_logits(ids_of(scripted_logits([]), "A red house"), end=end)
    answer = greedy(backend, Conversation().user("What?"), max_new_tokens=50)
    assert (answer.text, answer.finish_reason) == ("A red house", "stop")


def test_a_character_of_several_tokens_comes_whole(scripted_logits):
    text = "Sure 🦩🏳️‍🌈 ok"
    ids = ids_of(scripted_logits([]), text)
    chunks = list(scripted_logits(ids).stream(Conversation().user("?"), sampling=Greedy()))
    assert "".join(chunk.text for chunk in chunks) == text
    assert not any("\ufffd" in chunk.text for chunk in chunks)
    assert any(chunk.tokens and not chunk.text for chunk in chunks)  # some tokens are only bytes


def test_a_stop_string_ends_the_answer_before_it(scripted_logits):
    ids = ids_of(scripted_logits([]), "one two three four")
    answer = greedy(scripted_logits(ids), Conversation().user("?"), stop=["thr", "zzz"])
    assert (answer.text, answer.finish_reason) == ("one two ", "stop")


def test_logprobs_come_with_the_alternatives_asked_for(backend):
    answer = greedy(backend, Conversation().user("Go"), logprobs=3, session="logprobs")
    for token in answer.tokens:
        assert len(token.alternatives) == 3
        assert token.logprob == token.alternatives[0].logprob
        assert token.alternatives[0].id == token.id
    plain = greedy(backend, Conversation().user("Go"), logprobs=None, session="logprobs")
    assert plain.tokens[0].logprob is None


def test_timing_adds_up(backend):
    began = time.perf_counter()
    answer = greedy(backend, Conversation().user(picture(8), "Go"), session="timing")
    elapsed = time.perf_counter() - began
    timing = answer.timing
    stages = timing.decode_image_sec + timing.vision_sec + timing.prefill_sec
    assert timing.decode_image_sec > 0
    assert 0 < stages <= timing.ttft_sec < elapsed
    assert timing.ttft_sec + timing.decode_sec <= elapsed


def test_a_cancelled_score_is_not_remembered_as_an_answer(make_backend, monkeypatch):
    backend, streams = make_backend(), []
    submit = backend.engine.submit
    monkeypatch.setattr(backend.engine, "submit", lambda r: streams.append(submit(r)) or streams[0])
    logits = backend.engine._text_model.logits

    def cancel_after_the_first_rows(vectors):
        streams[0].cancel()
        return logits(vectors)

    monkeypatch.setattr(backend.engine._text_model, "logits", cancel_after_the_first_rows)
    tokens = backend.score(Conversation().user("Hi"), "word " * 300)
    assert 0 < len(tokens) < 301
    assert not backend.engine.answers._answers
