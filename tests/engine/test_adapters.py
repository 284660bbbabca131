"""Answers with adapters equal plain transformers and peft, alone and mixed, and share nothing."""

import contextlib
import threading

import pytest
from peft import PeftModel

from gemma3vl_app.backends.local import load
from gemma3vl_app.errors import ConversationError, EngineError, LoadError
from gemma3vl_app.generation import Greedy
from gemma3vl_app.loading import load_model
from gemma3vl_app.messages import Conversation
from tests.engine.reference import Reference, greedy, picture
from tests.loading.peft_adapters import KINDS, save_adapter

ASKED = Conversation().user("First ", picture(1), " then ", picture(2), " which one is red?")
TEXT_ONLY = Conversation().user("What is older, a mill or a barn?")
LONG = {"sampling": Greedy(), "max_new_tokens": 60, "logprobs": 5}


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """One saved adapter of each kind."""
    at = tmp_path_factory.mktemp("adapters")
    return {
        kind: save_adapter(tiny, at / kind, seed=seed, **settings)
        for seed, (kind, settings) in enumerate(KINDS.items(), start=1)
    }


@pytest.fixture(scope="module")
def backend(tiny, folders):
    """One backend with every adapter; give each test its own session."""
    with load(tiny, weights="fp32", adapters=folders) as shared:
        yield shared


@pytest.fixture(scope="module")
def peft_model(tiny, folders):
    """Every adapter in peft's own model."""
    model = load_model(tiny, weights="fp32").model
    model.set_attn_implementation("eager")
    kinds = list(folders)
    adapted = PeftModel.from_pretrained(model, str(folders[kinds[0]]), adapter_name=kinds[0])
    for kind in kinds[1:]:
        adapted.load_adapter(str(folders[kind]), adapter_name=kind)
    return adapted.eval()


@pytest.fixture
def check(peft_model, backend):
    """Assert that an answer is what peft's model gives with an adapter, or with none."""

    def check(conversation, answer, adapter):
        with contextlib.ExitStack() as stack:
            if adapter is None:
                stack.enter_context(peft_model.disable_adapter())
            else:
                peft_model.set_adapter(adapter)
            Reference(peft_model, backend).check(conversation, answer)

    return check


@pytest.mark.parametrize("adapter", [None, *KINDS])
def test_an_answer_equals_peft_with_that_adapter(backend, check, adapter):
    answer = greedy(backend, ASKED, adapter=adapter, session="alone")
    check(ASKED, answer, adapter)
    if adapter is not None:
        base = greedy(backend, ASKED, session="alone")
        assert abs(base.tokens[0].logprob - answer.tokens[0].logprob) > 1e-3


@pytest.mark.parametrize("adapter", [None, *KINDS])
def test_scores_equal_peft_with_that_adapter(backend, peft_model, adapter):
    given = "A red barn behind the mill."
    tokens = backend.score(ASKED, given, adapter=adapter, session="score")
    prompt = backend._prepare(ASKED, "score")
    ids = [token.id for token in tokens]
    with contextlib.ExitStack() as stack:
        if adapter is None:
            stack.enter_context(peft_model.disable_adapter())
        else:
            peft_model.set_adapter(adapter)
        expected = Reference(peft_model, backend).logits(prompt, ids).log_softmax(-1)
    for step, token in enumerate(tokens):
        assert token.logprob == pytest.approx(float(expected[step, token.id]), abs=1e-4)


def test_answers_of_several_adapters_at_once_equal_each_alone(backend, check):
    passes = []
    layers = backend._loaded.model.model.language_model.layers
    handle = layers[0].register_forward_pre_hook(lambda _, given: passes.append(given[0].shape))
    adapters = [None, "plain", "dora", "tower", "plain", None, "dora"]
    streams = [
        backend.stream(
            ASKED if number % 2 else TEXT_ONLY, adapter=adapter, session=f"mixed {number}", **LONG
        )
        for number, adapter in enumerate(adapters)
    ]
    for number, (adapter, stream) in enumerate(zip(adapters, streams, strict=True)):
        check(ASKED if number % 2 else TEXT_ONLY, stream.answer, adapter)
    handle.remove()
    decoded = [rows for rows, tokens, _ in passes if tokens == 1]
    assert max(decoded) == 2  # rows of one adapter together, rows of two never


def test_an_adapter_is_added_while_an_answer_runs(make_backend, folders, check):
    backend = make_backend()
    running = backend.stream(TEXT_ONLY, **LONG)
    seen = 0
    for chunk in running:
        seen += len(chunk.tokens)
        if seen == 3:
            backend.add_adapter("late", folders["plain"])
            assert not running.done
    check(TEXT_ONLY, running.answer, None)
    assert backend.adapters == ("late",)
    check(ASKED, greedy(backend, ASKED, adapter="late"), "plain")


def test_nothing_computed_with_one_adapter_is_used_by_another(backend):
    first = greedy(backend, ASKED, adapter="plain", session="scopes")
    again = greedy(backend, ASKED, adapter="plain", session="scopes")
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (
        0,
        first.usage.prompt_tokens - 1,
    )
    for other in (None, "dora"):
        assert greedy(backend, ASKED, adapter=other, session="scopes").usage.cached_tokens == 0
    assert backend.preview(ASKED, adapter="plain", session="scopes").cached_tokens > 0
    assert backend.preview(ASKED, adapter="rslora", session="scopes").cached_tokens == 0


def test_answers_are_remembered_by_adapter(backend):
    answer = greedy(backend, TEXT_ONLY, adapter="plain", session="remember")
    later = TEXT_ONLY.assistant(answer.text).user("Why?")
    ids = tuple(token.id for token in answer.tokens)
    key = backend.engine.adapters.key("plain")
    asked = len(backend._prepare(TEXT_ONLY, "remember"))
    with_ids = backend._prepare(later, "remember", key).ids[asked : asked + len(ids)]
    assert tuple(with_ids.tolist()) == ids
    usage = greedy(backend, later, adapter="plain", session="remember").usage
    assert usage.cached_tokens >= asked + len(ids) - 1


def test_a_name_that_is_added_again_starts_from_nothing(make_backend, folders, check):
    backend = make_backend()
    backend.add_adapter("mine", folders["plain"])
    greedy(backend, ASKED, adapter="mine")
    backend.remove_adapter("mine")
    backend.add_adapter("mine", folders["dora"])
    answer = greedy(backend, ASKED, adapter="mine")
    assert answer.usage.cached_tokens == 0
    check(ASKED, answer, "dora")


def test_removing_an_adapter_ends_its_answers_and_no_others(make_backend, folders, check):
    backend = make_backend()
    backend.add_adapter("a", folders["plain"])
    backend.add_adapter("b", folders["dora"])
    streams = {
        name: backend.stream(TEXT_ONLY, adapter=name, **{**LONG, "max_new_tokens": 200})
        for name in ("a", "b")
    }
    next(chunk for chunk in streams["a"] if chunk.tokens)
    next(chunk for chunk in streams["b"] if chunk.tokens)
    backend.remove_adapter("a")
    with pytest.raises(EngineError, match="removed"):
        _ = streams["a"].answer
    streams["b"].cancel()
    check(TEXT_ONLY, streams["b"].answer, "dora")
    check(TEXT_ONLY, greedy(backend, TEXT_ONLY), None)


def test_when_the_last_adapter_goes_the_model_is_as_it_was(make_backend, folders):
    backend = make_backend()
    before = {name: type(m) for name, m in backend._loaded.model.named_modules()}
    backend.add_adapter("a", folders["plain"])
    backend.add_adapter("b", folders["tower"])
    backend.remove_adapter("a")
    backend.remove_adapter("b")
    assert {name: type(m) for name, m in backend._loaded.model.named_modules()} == before


def test_a_failed_step_of_one_adapter_leaves_the_rows_of_others_alone(backend, check, monkeypatch):
    broken = backend.engine.adapters.key("plain")
    next_logits = backend.engine._decoder._next_logits

    def failing(rows, guesses):
        if rows[0].request.adapter == broken:
            raise RuntimeError("this adapter does not compute")
        return next_logits(rows, guesses)

    monkeypatch.setattr(backend.engine._decoder, "_next_logits", failing)
    adapters = ["plain", None, "dora", "plain"]
    streams = [
        backend.stream(TEXT_ONLY, adapter=adapter, session=f"broken {number}", **LONG)
        for number, adapter in enumerate(adapters)
    ]
    for adapter, stream in zip(adapters, streams, strict=True):
        if adapter == "plain":
            with pytest.raises(EngineError, match="failed inside the engine"):
                _ = stream.answer
        else:
            check(TEXT_ONLY, stream.answer, adapter)


def test_an_unknown_adapter_is_refused_with_the_known_ones(backend):
    for ask in (
        lambda: backend.stream(TEXT_ONLY, adapter="other"),
        lambda: backend.preview(TEXT_ONLY, adapter="other"),
        lambda: backend.score(TEXT_ONLY, "text", adapter="other"),
    ):
        with pytest.raises(ConversationError, match="'other'; choose one of: plain, dora"):
            ask()


def test_a_name_is_given_once(backend, folders):
    with pytest.raises(LoadError, match="already"):
        backend.add_adapter("plain", folders["dora"])


def test_a_bad_adapter_among_those_of_load_closes_the_model(tiny, folders, tmp_path):
    with pytest.raises(LoadError, match="'gone'"):
        load(tiny, weights="fp32", adapters={"a": folders["plain"], "b": tmp_path / "gone"})


def test_adapters_come_from_many_threads_while_answers_run(make_backend, folders, check):
    backend = make_backend()
    running = backend.stream(TEXT_ONLY, **LONG)
    errors = []

    def come_and_go(number):
        kind = ("plain", "dora", "rslora", "tower")[number]
        try:
            for turn in range(4):
                backend.add_adapter(f"{kind}{turn}", folders[kind])
                if turn:
                    backend.remove_adapter(f"{kind}{turn - 1}")
        except Exception as error:  # told to the test, whatever it is
            errors.append(error)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert sorted(backend.adapters) == ["dora3", "plain3", "rslora3", "tower3"]
    check(TEXT_ONLY, running.answer, None)
    check(ASKED, greedy(backend, ASKED, adapter="dora3"), "dora")
