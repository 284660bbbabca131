"""A model that goes lets its answers finish, or tells them; then its memory is back."""

import threading
import time

import pytest

from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import EngineError, LoadError
from gemma3vl_app.generation import Greedy
from gemma3vl_app.loading.checkpoint import hub_name
from gemma3vl_app.manager import Freed, ModelManager
from tests.manager.loads import HELLO, in_threads


def test_running_answers_finish_before_their_model_goes(manager, loads):
    loads.seconds_per_chunk = 0.02
    stream = manager.load("a").stream(HELLO)
    freed = manager.unload("a", finish_sec=10)
    assert stream.answer.text == HELLO.messages[0].text
    assert isinstance(freed, Freed)
    assert (manager.resident, manager.current) == ((), None)


def test_answers_that_take_too_long_are_told_what_to_do(manager, loads):
    loads.seconds_per_chunk = 0.5
    chat = Chat(manager.load("a"))
    stream = chat.stream("one two three four five six")
    manager.unload("a", finish_sec=0.05)
    with pytest.raises(EngineError, match="'a' has been closed"):
        _ = stream.answer
    with pytest.raises(EngineError, match="'a' has been closed"):
        chat.ask("And now?")


def test_a_model_that_drains_takes_no_requests_and_can_be_loaded_anew(manager, loads):
    loads.seconds_per_chunk = 0.05
    old = manager.load("a")
    stream = old.stream(HELLO)
    unloading = threading.Thread(target=manager.unload, args=("a",))
    unloading.start()
    began = time.monotonic()
    while not old._closed:
        assert time.monotonic() - began < 30
        time.sleep(0.001)
    assert manager.resident[0].state == "draining"
    assert manager.current is None
    with pytest.raises(EngineError, match="closed"):
        old.stream(HELLO)
    new = manager.load("a")  # waits for the old one's memory
    assert stream.done
    assert new is not old
    unloading.join()


def test_unloading_twice_at_once_gives_both_the_same(manager, loads):
    loads.seconds_per_chunk = 0.05
    manager.load("a").stream(HELLO)
    first, second = in_threads(*[lambda: manager.unload("a")] * 2)
    late = [each for each in (first, second) if isinstance(each, LoadError)]
    assert first is second or (len(late) == 1 and "No model 'a' is loaded" in str(late[0]))
    with pytest.raises(LoadError, match=r"No model 'a' is loaded\. Loaded now: none"):
        manager.unload("a")


def test_a_backend_that_cannot_close_is_gone_all_the_same(manager, caplog):
    manager.load("a").close = lambda **options: 1 / 0
    manager.unload("a")
    assert manager.resident == ()
    assert "closing a failed" in caplog.text


def test_a_closed_manager_lets_everything_go(manager, loads):
    manager.load("a")
    manager.load("b")
    manager.close()
    manager.close()
    assert manager.resident == ()
    for backend in loads.made:
        with pytest.raises(EngineError):
            backend.stream(HELLO)
    with pytest.raises(EngineError, match="manager has been closed"):
        manager.load("c")


# --- memory ---


def wide_checkpoint(folder):
    """The tiny checkpoint with far wider layers: some 190 MB in fp32 besides the embeddings."""
    import json

    from safetensors.torch import save_file

    from gemma3vl_app.loading import base_270m_folder
    from gemma3vl_app.testing import tiny

    config = tiny._config(6, 32)
    config["text_config"]["intermediate_size"] = 40_000
    full = tiny.Gemma3Config.from_dict(json.loads(json.dumps(config)))
    folder.mkdir()
    save_file(
        {hub_name(n): t for n, t in tiny._random_weights(full, 0).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(tiny._PREPROCESSOR))
    (folder / "tokenizer.json").symlink_to(base_270m_folder() / "tokenizer.json")
    return folder


def test_the_memory_of_a_real_model_comes_back(tmp_path, tiny, monkeypatch):
    from gemma3vl_app.engine.memory import give_back
    from gemma3vl_app.loading.cache import CACHE_VARIABLE
    from tests.loading.peft_adapters import KINDS, save_adapter

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = wide_checkpoint(tmp_path / "wide")
    adapter = save_adapter(folder, tmp_path / "adapter", **KINDS["plain"])
    with ModelManager() as manager:
        manager.load(tiny, weights="fp32")  # what any first load leaves behind is not the question
        give_back()
        backend = manager.load(folder, weights="fp32", adapters={"a": adapter})
        stream = backend.stream(HELLO, sampling=Greedy(), max_new_tokens=4, adapter="a")
        assert len(stream.answer.tokens) == 4
        resident = manager.resident[1]
        weights = resident.plan.bytes_by_device["cpu"].weights
        assert weights > 200 << 20
        assert resident.memory["cpu"] > 0.8 * weights
        freed = manager.unload("wide")
        print(f"weights {weights >> 20} MiB, freed {freed.total >> 20} MiB")
        assert 0.8 * weights < freed.total < 1.5 * weights
        with pytest.raises(EngineError, match="'wide' has been closed"):
            backend.stream(HELLO)
