"""Jobs on the engine's thread, and the orderly end: drained, closed, the model let go."""

import gc
import threading
import time
import weakref

import pytest
import torch

from gemma3vl_app import Chat
from gemma3vl_app.backends.local import load
from gemma3vl_app.errors import ContextLengthError, EngineError
from gemma3vl_app.generation import Greedy
from gemma3vl_app.messages import Conversation
from tests.engine.reference import greedy

HELLO = Conversation().user("What is this?")
LONG = {"sampling": Greedy(), "max_new_tokens": 2000, "logprobs": 5}


def test_a_job_runs_on_the_engines_thread_and_returns_its_result(backend):
    thread = backend.engine.call(threading.current_thread)
    assert thread is backend.engine._thread


def test_a_job_raises_to_its_caller_and_the_engine_goes_on(backend):
    with pytest.raises(ZeroDivisionError):
        backend.engine.call(lambda: 1 / 0)
    assert greedy(backend, HELLO, session="after").tokens


def test_jobs_run_between_the_steps_of_a_running_answer(backend, reference):
    stream = backend.stream(HELLO, session="jobs", **{**LONG, "max_new_tokens": 40})
    next(chunk for chunk in stream if chunk.tokens)
    lengths = [
        backend.engine.call(lambda: [s.kv.length for s in backend.engine._decoding])
        for _ in range(5)
    ]
    assert all(len(each) == 1 for each in lengths)  # the answer ran all the while
    reference.check(HELLO, stream.answer)


def test_a_job_may_not_wait_for_its_own_thread(backend):
    with pytest.raises(RuntimeError, match="own thread"):
        backend.engine.call(lambda: backend.engine.call(int))


def test_a_closed_engine_takes_no_job_and_fails_those_that_wait(make_backend):
    engine = make_backend().engine
    errors, started, go_on = [], threading.Event(), threading.Event()

    def first():
        started.set()
        go_on.wait()

    def second():
        try:
            engine.call(int)
        except EngineError as error:
            errors.append(error)

    threads = [threading.Thread(target=engine.call, args=(first,))]
    threads[0].start()
    started.wait()
    threads += [threading.Thread(target=second), threading.Thread(target=engine.close)]
    threads[1].start()
    while not engine._jobs:
        time.sleep(0.001)
    threads[2].start()
    while not engine._closed:
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 1
    with pytest.raises(EngineError, match="closed"):
        engine.call(int)


def test_draining_lets_answers_finish_and_refuses_new_ones(make_backend):
    backend = make_backend()
    stream = backend.stream(HELLO, **{**LONG, "max_new_tokens": 30})
    assert backend.engine.drain(30)
    assert stream.done
    assert len(stream.answer.tokens) == 30
    with pytest.raises(EngineError, match="is being unloaded and takes no new requests"):
        backend.stream(HELLO)


def test_draining_gives_up_in_time_and_closing_then_tells_the_rest(make_backend):
    backend = make_backend()
    stream = backend.stream(HELLO, **LONG)
    began = time.perf_counter()
    backend.close(finish_sec=0.1)
    assert time.perf_counter() - began < 5
    with pytest.raises(EngineError, match=r"'tiny' was closed before .* Load it again"):
        _ = stream.answer


def test_an_idle_engine_is_drained_at_once(make_backend):
    began = time.perf_counter()
    assert make_backend().engine.drain(30)
    assert time.perf_counter() - began < 5


def test_a_chat_on_a_closed_model_is_told_what_to_do(make_backend):
    backend = make_backend()
    chat = Chat(backend)
    chat.ask("Hello", max_new_tokens=1)
    backend.close()
    for _ in range(2):
        with pytest.raises(EngineError, match=r"'tiny' has been closed. Load it again"):
            chat.ask("And now?")
    assert backend.capabilities.model == "tiny"
    assert backend.plan.weights == "fp32"


def test_a_closed_backend_lets_go_of_its_model(make_backend):
    backend = make_backend()
    failed = backend.stream(HELLO, **LONG)
    greedy(backend, HELLO)
    model = weakref.ref(backend._loaded.model)
    table = weakref.ref(backend._loaded.model.get_input_embeddings().weight)
    backend.close()
    gc.collect()
    assert model() is None
    assert table() is None
    assert failed.done


def test_logits_come_from_whatever_the_head_is(make_backend):
    """An int8 head has no weight to multiply with directly."""
    backend = make_backend()
    before = greedy(backend, HELLO)

    class Head(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
            self.real = weight

        def forward(self, vectors):
            return vectors @ self.real.T

    text_model = backend.engine._text_model
    text_model._head = Head(text_model._head.weight.data)
    streams = [
        backend.stream(HELLO, session=str(k), sampling=Greedy(), max_new_tokens=12)
        for k in range(3)
    ]
    ids = [token.id for token in before.tokens]
    assert all([token.id for token in stream.answer.tokens] == ids for stream in streams)


def test_the_context_that_was_asked_for_bounds_prompt_and_answer(tiny):
    with load(tiny, weights="fp32", context_tokens=200) as backend:
        assert backend.capabilities.context_tokens == 200
        assert backend.preview(HELLO).context_tokens == 200
        room = 200 - backend.preview(HELLO).prompt_tokens
        answer = backend.stream(HELLO, **LONG).answer
        assert len(answer.tokens) <= room
        with pytest.raises(ContextLengthError, match="holds 200"):
            backend.stream(Conversation().user("word " * 300))
    with load(tiny, weights="fp32") as backend:
        assert backend.capabilities.context_tokens == 8192
