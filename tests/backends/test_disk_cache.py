"""A restart with a disk cache: the same answers, without pictures and history computed again."""

import logging
import threading
from dataclasses import replace

import pytest
import torch

from gemma3vl_app.backends import local
from gemma3vl_app.backends.local import LocalBackend, load
from gemma3vl_app.chat import Chat
from gemma3vl_app.engine import cache_folder
from gemma3vl_app.engine.engine import EngineLimits
from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Greedy
from gemma3vl_app.loading import load_model
from gemma3vl_app.loading.cache import CACHE_VARIABLE
from gemma3vl_app.messages import Conversation
from tests.engine.reference import greedy, picture
from tests.loading.peft_adapters import KINDS, save_adapter

WORDS = "a river and a mill " * 20  # past the sliding window of 32 tokens
ASKED = Conversation(system="Be brief.").user(
    picture(1), "and", picture(2, 1200, 400, crops="on"), WORDS
)
CROPS = 3


@pytest.fixture
def cache(tiny, tmp_path, monkeypatch):
    """An empty cache folder of this project; models that are loaded keep to it."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "conversations"


@pytest.fixture(scope="module")
def loaded(tiny):
    return load_model(tiny, weights="fp32")


@pytest.fixture(scope="module")
def plain(loaded):
    """A backend without a disk cache; give each use its own session."""
    with LocalBackend(loaded) as backend:
        yield backend


@pytest.fixture
def start(loaded, cache):
    """Start backends over one model in memory; nothing else is shared but tokenizer and folder."""
    started: list[LocalBackend] = []

    def start(disk: int = 64 << 20, **changes) -> LocalBackend:
        limits = EngineLimits(disk_budget_bytes=disk)
        started.append(LocalBackend(replace(loaded, **changes), limits=limits))
        return started[-1]

    yield start
    for each in started:
        each.close()


def asked_once(start, conversation=ASKED, **options) -> tuple[Conversation, dict]:
    """Ask in a backend that is closed then; returns the conversation with the answer's ids."""
    backend = start()
    answer = greedy(backend, conversation, **options)
    backend.close()
    ids = [token.id for token in answer.tokens]
    return conversation.assistant(answer.text), {len(conversation.messages): ids}


def go_on(backend, told, ids, words="And which one is older?", **options):
    """Ask a follow-up, with the answer's own tokens known, as a saved chat knows them."""
    conversation = told.user(words)
    backend.remember(conversation, ids, **options)
    return greedy(backend, conversation, **options)


def tower_runs(backend) -> list[int]:
    """Count what the vision tower is run on from now on."""
    runs = []
    embeddings = backend._loaded.model.model.vision_tower.embeddings
    embeddings.register_forward_pre_hook(lambda _, given: runs.append(len(given[0])))
    return runs


def assert_same(answer, expected):
    assert [token.id for token in answer.tokens] == [token.id for token in expected.tokens]
    for token, other in zip(answer.tokens, expected.tokens, strict=True):
        assert token.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_follow_up_after_a_restart_computes_its_new_words_alone(start, plain, tiny):
    told, ids = asked_once(start)
    backend = load(tiny, weights="fp32", disk_cache="64MiB")  # all of it anew
    runs = tower_runs(backend)
    conversation = told.user("And which one is older?")
    backend.remember(conversation, ids)
    said = backend.preview(conversation).cached_tokens
    answer = greedy(backend, conversation)
    assert said == answer.usage.cached_tokens > 150
    assert answer.usage.prompt_tokens - answer.usage.cached_tokens < 25
    assert not runs
    assert_same(answer, go_on(plain, told, ids, session="follow-up"))
    backend.close()


def test_several_restarts_go_on_from_one_another(start, plain):
    told, ids = asked_once(start)
    for turn in range(3):
        backend = start()
        answer = go_on(backend, told, ids, f"Question {turn}?")
        backend.close()
        assert answer.usage.prompt_tokens - answer.usage.cached_tokens < 25
        assert_same(answer, go_on(plain, told, ids, f"Question {turn}?", session=f"turn {turn}"))
        told = told.user(f"Question {turn}?")
        ids[len(told.messages)] = [token.id for token in answer.tokens]
        told = told.assistant(answer.text)


def test_a_saved_chat_goes_on(start, tmp_path):
    chat = Chat(start(), sampling=Greedy())
    chat.ask(WORDS, images=[picture(1)], max_new_tokens=12)
    chat.save(tmp_path / "chat.json")
    chat.backend.close()
    again = Chat.open(tmp_path / "chat.json", start())
    usage = again.ask("And?", max_new_tokens=4).usage
    assert usage.prompt_tokens - usage.cached_tokens < 20


def test_an_edited_last_turn_goes_on_from_the_turn_before(start, plain):
    told, ids = asked_once(start)
    backend = start()
    go_on(backend, told, ids, "Is it old? " * 8)
    backend.close()
    backend = start()
    runs = tower_runs(backend)
    answer = go_on(backend, told, ids, "No, I meant: how many mills are there?")
    assert answer.usage.cached_tokens > 150
    assert not runs
    expected = go_on(plain, told, ids, "No, I meant: how many mills are there?", session="edited")
    assert_same(answer, expected)


def test_an_edited_first_turn_still_needs_no_tower(start, plain):
    asked_once(start)
    backend = start()
    runs = tower_runs(backend)
    edited = Conversation().user(picture(2, 1200, 400, crops="on"), "What is this?", picture(1))
    answer = greedy(backend, edited)
    assert answer.usage.cached_tokens == 0
    assert not runs
    assert_same(answer, greedy(plain, edited, session="edited first"))


def test_an_eviction_from_memory_is_made_good(start):
    backend = start()
    answer = greedy(backend, ASKED)
    assert backend.engine.disk.flush(10.0)
    backend.engine.call(backend.engine._drop_caches)
    ids = {1: [token.id for token in answer.tokens]}
    runs = tower_runs(backend)
    usage = go_on(backend, ASKED.assistant(answer.text), ids).usage
    assert usage.prompt_tokens - usage.cached_tokens < 25
    assert not runs


def test_scores_and_several_at_once_start_from_it_too(start, plain):
    told, ids = asked_once(start)
    backend = start()
    conversation = told.user("Why?")
    for each, session in ((backend, ""), (plain, "scored")):
        each.remember(conversation, ids, session=session)
    streams = [
        backend.stream(conversation, sampling=Greedy(), max_new_tokens=6, logprobs=1)
        for _ in range(4)
    ]
    expected = greedy(plain, conversation, session="scored", max_new_tokens=6)
    for stream in streams:
        assert stream.answer.usage.cached_tokens > 150
        assert_same(stream.answer, expected)
    for token, other in zip(
        backend.score(conversation, "Because."),
        plain.score(conversation, "Because.", session="scored"),
        strict=True,
    ):
        assert token.logprob == pytest.approx(other.logprob, abs=1e-4)


# --- what must be equal ---


def assert_nothing_known(backend, told, ids, **options):
    runs = tower_runs(backend)
    usage = go_on(backend, told, ids, **options).usage
    assert usage.cached_tokens == 0
    assert sum(runs) == 2 + CROPS


def test_another_session_finds_nothing(start):
    told, ids = asked_once(start, session="one")
    backend = start()
    assert_nothing_known(backend, told, ids, session="two")
    assert_nothing_known(backend, told, ids)
    assert go_on(backend, told, ids, session="one").usage.cached_tokens > 150


def test_adapters_are_told_apart_by_their_weights(tiny, cache, tmp_path):
    red, blue = (save_adapter(tiny, tmp_path / str(n), seed=n, **KINDS["dora"]) for n in (1, 2))
    adapters = {"red": red, "blue": blue, "red again": red}
    adapters = {name.replace(" ", "-"): folder for name, folder in adapters.items()}
    with load(tiny, weights="fp32", adapters=adapters, disk_cache="64MiB") as backend:
        answer = greedy(backend, ASKED, adapter="red")
        assert backend.engine.disk.flush(10.0)
        told, ids = ASKED.assistant(answer.text), {1: [token.id for token in answer.tokens]}
        backend.engine.call(backend.engine._drop_caches)
        again = go_on(backend, told, ids, adapter="red-again")
        assert again.usage.cached_tokens > 150
        assert_nothing_known(backend, told, ids, adapter="blue")
        assert_nothing_known(backend, told, ids)
        backend.remove_adapter("red")


CHANGES = (
    *("revision", "fingerprint", "weights", "dtype", "device_map"),
    *("tower_in_pieces", "row_kernels"),
    *("preprocessor", "processor", "package"),
)


@pytest.mark.parametrize("changed", CHANGES)
def test_what_computes_otherwise_finds_nothing(start, loaded, monkeypatch, changed):
    told, ids = asked_once(start)
    changes = {}
    if changed in ("revision", "fingerprint"):
        changes = {changed: "another"}
    elif changed in ("weights", "dtype"):
        changes = {"plan": replace(loaded.plan, **{changed: "another"})}
    elif changed in ("tower_in_pieces", "row_kernels"):
        changes = {"plan": replace(loaded.plan, **{changed: not getattr(loaded.plan, changed)})}
    elif changed == "device_map":
        changes = {"plan": replace(loaded.plan, device_map={"": "mps"})}
    elif changed == "processor":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    elif changed == "preprocessor":
        changes = {"preprocessor": {**loaded.preprocessor, "resample": 3}}
    else:
        monkeypatch.setattr(local, "__version__", "99")
    assert_nothing_known(start(**changes), told, ids)


# --- the disk ---


def test_by_default_no_file_is_written_and_no_thread_is_started(start, cache):
    backend = start(disk=0)
    greedy(backend, ASKED)
    assert backend.engine.disk is None
    assert not cache.exists()
    assert "disk" not in " ".join(thread.name for thread in threading.enumerate())


def test_a_size_that_is_none_is_refused_before_anything_is_loaded(tiny):
    with pytest.raises(LoadError, match="no size"):
        load(tiny, disk_cache="much")


def test_closing_writes_what_waits_and_ends_the_thread(start, cache, monkeypatch):
    write, held = cache_folder.write_entry, threading.Event()
    monkeypatch.setattr(cache_folder, "write_entry", lambda *a: (held.wait(10.0), write(*a)))
    backend = start()
    greedy(backend, ASKED)
    threading.Timer(0.3, held.set).start()
    backend.close()
    assert len([*cache.glob("*.prefix.safetensors")]) == 1
    assert len([*cache.glob("*.picture.safetensors")]) == 2 + CROPS
    assert "disk" not in " ".join(thread.name for thread in threading.enumerate())


def test_a_full_disk_changes_no_answer(start, plain, cache, monkeypatch, caplog):
    def full(path, *_):
        path.write_bytes(b"the beginning")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(cache_folder, "write_entry", full)
    with caplog.at_level(logging.WARNING):
        told, ids = asked_once(start)
    assert len(caplog.records) == 1
    assert str(cache) not in caplog.text
    assert [*cache.iterdir()] == []
    assert_same(go_on(start(), told, ids), go_on(plain, told, ids, session="full disk"))


def test_damaged_entries_are_computed_anew(start, plain, cache):
    told, ids = asked_once(start)
    backend = start()  # which has read what there is
    for path in [*cache.iterdir()]:
        whole = path.read_bytes()
        aside = path.with_suffix(".new")
        aside.write_bytes(whole[:-6] + bytes([whole[-6] ^ 255]) + whole[-5:])
        aside.replace(path)
    runs = tower_runs(backend)
    answer = go_on(backend, told, ids)
    assert answer.usage.cached_tokens == 0
    assert sum(runs) == 2 + CROPS
    assert_same(answer, go_on(plain, told, ids, session="damaged"))


def test_two_engines_share_a_folder(start):
    one, other = start(disk=200 << 10), start(disk=200 << 10)
    for turn in range(4):
        streams = [
            backend.stream(
                Conversation().user(picture(number), f"{turn} {WORDS}"),
                sampling=Greedy(),
                max_new_tokens=3,
                session=str(number),
            )
            for number, backend in enumerate((one, other))
        ]
        assert all(stream.answer.tokens for stream in streams)
    one.close()
    other.close()
    last = start(disk=200 << 10)
    again = Conversation().user(picture(0), f"3 {WORDS}")
    assert last.preview(again, session="0").cached_tokens > 50
    assert last.preview(again, session="1").cached_tokens == 0
