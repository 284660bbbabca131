"""The disk cache by itself: what is found again, by whom, and what becomes of damaged entries."""

import logging
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from gemma3vl_app.engine import cache_folder
from gemma3vl_app.engine.disk_cache import DiskCache, DiskSettings
from gemma3vl_app.engine.kv import SequenceKV
from gemma3vl_app.engine.model import Layout
from gemma3vl_app.engine.prefix import Snapshot
from gemma3vl_app.prompting.prompt import ImageInput, PreparedPrompt
from tests.engine.reference import picture

WINDOW, HEADS, WIDTH = 8, 2, 4
SCOPE = (None, "salt")
CPU = torch.device("cpu")
LAYOUT = Layout(
    windows=(WINDOW, None),
    devices=(CPU, CPU),
    heads=HEADS,
    head_dim=WIDTH,
    width=16,
    dtype=torch.float32,
)


def digest(adapter: str) -> bytes:
    return {"adapter0": b"red", "adapter1": b"blue"}[adapter]


@pytest.fixture
def settings(tmp_path):
    return DiskSettings(
        folder=tmp_path / "conversations", budget_bytes=1 << 24, identity="model", image_tokens=3
    )


@pytest.fixture
def opened(settings):
    """Make disk caches over one folder: each is as good as another process."""
    made = []

    def make(layout=LAYOUT, adapter_digest=digest, **changes) -> DiskCache:
        made.append(DiskCache(replace(settings, **changes), layout, adapter_digest))
        return made[-1]

    yield make
    for each in made:
        each.close()


def prompt(ids, pictures: dict[int, bytes] | None = None) -> PreparedPrompt:
    images = tuple(
        ImageInput(key, picture(0), None, start, start + 3)
        for start, key in (pictures or {}).items()
    )
    return PreparedPrompt(np.array(ids, dtype=np.int64), images)


def snapshot(known: PreparedPrompt, scope=SCOPE, length: int | None = None) -> Snapshot:
    """The prompt as computed token by token: each layer's keys and values are random."""
    length = len(known) if length is None else length
    kv = SequenceKV(LAYOUT.windows)
    generator = torch.Generator().manual_seed(int(known.ids[:length].sum()))
    for _ in range(length):
        for layer in range(2):
            kv.append(
                layer,
                *(torch.randn(HEADS, 1, WIDTH, generator=generator) for _ in range(2)),
            )
        kv.advance(1)
    return Snapshot(scope, known.key, kv)


def keep(cache: DiskCache, *snapshots: Snapshot) -> None:
    for each in snapshots:
        cache.keep_prefix(each)
        assert cache.flush(10.0)


def load(cache: DiskCache, found) -> SequenceKV | None:
    work = cache.load(found, expected_tokens=0, unit_sec=1e-9)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def same_view(a: SequenceKV, b: SequenceKV) -> bool:
    """Whether the next token sees the same in both."""
    return all(
        torch.equal(one, other)
        for layer in range(2)
        for one, other in zip(a.stored(layer), b.stored(layer), strict=True)
    )


LONG = list(range(100, 300))


def files(settings, kind: str = "prefix"):
    return sorted(settings.folder.glob(f"*.{kind}.safetensors"))


# --- prefixes ---


def test_a_longer_prompt_goes_on_from_what_another_process_kept(opened):
    kept = snapshot(prompt(LONG))
    keep(opened(), kept)
    cache = opened()
    found = cache.find(SCOPE, prompt([*LONG, 1, 2]))
    assert found.length == 200
    kv = load(cache, found)
    assert kv.length == 200
    assert same_view(kv, kept.kv)


def test_what_is_restored_can_be_appended_to_and_taken_back(opened):
    kept = snapshot(prompt(LONG))
    keep(opened(), kept)
    cache = opened()
    kv, whole = load(cache, cache.find(SCOPE, prompt([*LONG, 1]))), kept.kv.fork(200)
    for _ in range(3 * WINDOW):
        token = torch.randn(HEADS, 1, WIDTH)
        for layer in range(2):
            for mine, other in zip(
                kv.append(layer, token, token), whole.append(layer, token, token), strict=True
            ):
                assert torch.equal(mine, other)
        kv.advance(1)
        whole.advance(1)
    kv.take_back(kv.length - 1)


def test_an_edited_prompt_goes_on_from_where_it_differs_as_far_as_windows_reach(opened):
    cache = opened()
    earlier, later = snapshot(prompt(LONG[:150])), snapshot(prompt(LONG))
    keep(cache, earlier, later)
    # The later one has dropped what its sliding layer would need there; the earlier one has not.
    found = cache.find(SCOPE, prompt([*LONG[:150], 1, 2, 3]))
    assert found.length == 150
    assert same_view(load(cache, found), earlier.kv)
    assert cache.find(SCOPE, prompt([*LONG[:120], 1, 2, 3])) is None
    near = cache.find(SCOPE, prompt([*LONG[:-1], 1]))  # one token back is always there
    assert near.length == 199
    assert load(cache, near).length == 199


def test_at_least_what_is_wanted_is_left_uncomputed(opened):
    cache = opened()
    keep(cache, snapshot(prompt(LONG)))
    assert cache.find(SCOPE, prompt(LONG)).length == 199
    assert cache.find(SCOPE, prompt(LONG), uncomputed=0).length == 200


def test_it_must_be_clearly_more_than_is_known(opened):
    cache = opened()
    keep(cache, snapshot(prompt(LONG)))
    asked = prompt([*LONG, 1])
    assert cache.find(SCOPE, asked, known=100)
    assert cache.find(SCOPE, asked, known=190) is None
    keep(cache, snapshot(prompt(LONG[:20])))
    assert cache.find(SCOPE, prompt([*LONG[:20], 1])) is None  # too short to be kept


def test_pictures_count_by_their_keys(opened):
    ids = [*LONG[:80], 9, 9, 9, *LONG[80:]]
    writer = opened()
    keep(writer, snapshot(prompt(ids, {80: b"A"})))
    for cache in (writer, opened()):
        assert cache.find(SCOPE, prompt([*ids, 1], {80: b"A"})).length == 203
        assert cache.find(SCOPE, prompt([*ids, 1], {80: b"B"})) is None  # beyond the window


def test_a_prompt_that_was_stopped_on_its_way_counts_as_far_as_it_was_computed(opened):
    ids = [*LONG, 9, 9, 9, 5]
    cache = opened()
    keep(cache, snapshot(prompt(ids, {200: b"A"}), length=200))
    assert cache.find(SCOPE, prompt(ids, {200: b"A"})).length == 200
    assert opened().find(SCOPE, prompt(ids, {200: b"B"})).length == 200


@pytest.mark.parametrize("scope", [(None, "other"), (None, ""), ("adapter0", "salt"), (), (None,)])
def test_another_scope_finds_nothing(opened, scope):
    cache = opened()
    keep(cache, snapshot(prompt(LONG)))
    assert cache.find(scope, prompt([*LONG, 1])) is None
    assert opened().find(scope, prompt([*LONG, 1])) is None


def test_adapters_are_known_by_their_weights_not_by_their_keys(opened):
    keep(opened(), snapshot(prompt(LONG), ("adapter0", "salt")))
    asked = prompt([*LONG, 1])
    cache = opened(adapter_digest={"adapter0": b"green", "adapter1": b"red"}.__getitem__)
    assert cache.find(("adapter0", "salt"), asked) is None
    assert cache.find(("adapter1", "salt"), asked).length == 200
    assert cache.find(("adapter9", "salt"), asked) is None  # removed meanwhile


def test_another_model_finds_nothing_and_deletes_nothing(opened, settings):
    keep(opened(), snapshot(prompt(LONG)))
    assert opened(identity="other").find(SCOPE, prompt([*LONG, 1])) is None
    assert len(files(settings)) == 1


def test_the_salt_is_written_nowhere(opened, settings):
    salt = "a very secret salt"
    cache = opened()
    keep(cache, snapshot(prompt(LONG), (None, salt)))
    cache.keep_picture((None, salt), b"A", torch.ones(3, 16))
    cache.flush(10.0)
    for each in settings.folder.iterdir():
        assert salt.encode() not in each.read_bytes()
        assert "secret" not in each.name


def test_keys_and_values_that_are_no_numbers_are_not_kept(opened, settings):
    broken = snapshot(prompt(LONG))
    broken.kv.parts()[1][1][0, 100, 0] = float("nan")
    keep(opened(), broken)
    assert not files(settings)


def test_it_is_bounded_and_what_went_is_no_longer_found(opened, settings):
    probe = opened()
    keep(probe, snapshot(prompt(LONG)))
    size = files(settings)[0].stat().st_size
    cache = opened(budget_bytes=2 * size + size // 2)
    for first in range(4):
        keep(cache, snapshot(prompt([first, *LONG[1:]])))
        assert sum(each.stat().st_size for each in settings.folder.iterdir()) <= 2.5 * size
        time.sleep(0.02)  # or all would have been used at the same time
    assert cache.find(SCOPE, prompt([0, *LONG[1:], 1])) is None
    assert cache.find(SCOPE, prompt([3, *LONG[1:], 1])).length == 200
    # The first owner has not heard of it: it finds out when it reads.
    gone = probe.find(SCOPE, prompt([*LONG, 1]))
    assert load(probe, gone) is None
    assert probe.find(SCOPE, prompt([*LONG, 1])) is None


def test_reading_an_entry_counts_as_using_it(opened, settings):
    cache = opened()
    keep(cache, snapshot(prompt(LONG)))
    (path,) = files(settings)
    os.utime(path, (1, 1))
    assert load(cache, cache.find(SCOPE, prompt([*LONG, 1])))
    assert path.stat().st_mtime > 1


# --- damage ---


def damaged_ways(path):
    whole = path.read_bytes()
    yield "flipped at the end", whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:]
    yield "cut off", whole[:-100]
    yield "empty", b""
    yield "header too large", (1 << 40).to_bytes(8, "little") + whole[8:]
    yield "something else", b"#!/bin/sh\necho hello\n" * 100


@pytest.mark.parametrize("way", range(5))
@pytest.mark.parametrize("when", ["before start", "while open"])
def test_a_damaged_prefix_is_deleted_and_not_believed(opened, settings, caplog, way, when):
    cache = opened()
    keep(cache, snapshot(prompt(LONG)))
    (path,) = files(settings)
    _, content = [*damaged_ways(path)][way]
    aside = path.with_name("aside")
    aside.write_bytes(content)
    aside.replace(path)
    if when == "before start":
        cache = opened()
    found = cache.find(SCOPE, prompt([*LONG, 1]))
    assert found is None or load(cache, found) is None
    assert not path.exists()
    assert cache.find(SCOPE, prompt([*LONG, 1])) is None
    assert len(caplog.records) == 1
    assert str(settings.folder) not in caplog.text
    keep(cache, snapshot(prompt(LONG)))  # and it is made anew
    assert load(cache, cache.find(SCOPE, prompt([*LONG, 1])))


def test_an_entry_under_another_ones_name_is_not_believed(opened, settings):
    cache = opened()
    keep(cache, snapshot(prompt(LONG)), snapshot(prompt(LONG), (None, "other")))
    one, other = files(settings)
    other.write_bytes(one.read_bytes())  # of another session
    names = {each.name for each in (one, other)}
    opened()
    assert len(names & {each.name for each in files(settings)}) == 1


def test_an_entry_of_another_shape_is_not_believed(opened, settings):
    keep(opened(), snapshot(prompt(LONG)))
    cache = opened(layout=replace(LAYOUT, heads=HEADS + 1))
    assert load(cache, cache.find(SCOPE, prompt([*LONG, 1]))) is None
    assert not files(settings)
    keep(opened(), snapshot(prompt(LONG)))
    opened(layout=replace(LAYOUT, windows=(WINDOW, None, None), devices=(CPU,) * 3))
    assert not files(settings)


def test_a_reader_that_gives_up_on_its_way_leaves_all_as_it_was(opened, settings):
    cache = opened()
    keep(cache, snapshot(prompt(LONG)))
    work = cache.load(cache.find(SCOPE, prompt([*LONG, 1])), expected_tokens=0, unit_sec=1e-9)
    next(work)
    work.close()
    assert len(files(settings)) == 1


# --- encoded pictures ---


def test_pictures_come_back_for_the_same_scope_and_key_alone(opened):
    features = torch.randn(3, 16)
    first = opened()
    first.keep_picture(SCOPE, b"A", features)
    assert first.flush(10.0)
    cache = opened()
    assert torch.equal(cache.picture(SCOPE, b"A"), features)
    assert cache.picture(SCOPE, b"B") is None
    assert cache.picture((None, "other"), b"A") is None
    assert opened(identity="other").picture(SCOPE, b"A") is None


def test_a_damaged_picture_is_deleted_and_not_believed(opened, settings):
    cache = opened()
    cache.keep_picture(SCOPE, b"A", torch.randn(3, 16))
    cache.flush(10.0)
    (path,) = files(settings, "picture")
    for _, content in damaged_ways(path):
        path.write_bytes(content)
        assert cache.picture(SCOPE, b"A") is None
        assert not path.exists()
    cache.keep_picture(SCOPE, b"A", torch.randn(4, 16))  # not what a picture of this model is
    cache.flush(10.0)
    assert cache.picture(SCOPE, b"A") is None


# --- the disk's moods ---


def test_a_full_disk_and_its_end(opened, settings, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device", str(settings.folder))

    cache = opened()
    monkeypatch.setattr(cache_folder, "write_entry", full)
    with caplog.at_level(logging.WARNING):
        keep(cache, snapshot(prompt(LONG)), snapshot(prompt(LONG[:150])))
    assert [record.getMessage() for record in caplog.records] == [
        "The disk cache cannot be written (No space left on device). Answers go on without it."
    ]
    monkeypatch.undo()
    keep(cache, snapshot(prompt(LONG)))
    assert cache.find(SCOPE, prompt([*LONG, 1]))


def test_a_disk_that_may_only_be_read_is_read(opened, monkeypatch):
    keep(opened(), snapshot(prompt(LONG)))

    def refused(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache_folder.os, "utime", refused)
    monkeypatch.setattr(cache_folder, "write_entry", refused)
    cache = opened()
    assert load(cache, cache.find(SCOPE, prompt([*LONG, 1])))
    keep(cache, snapshot(prompt(LONG[:150])))


def test_an_unusable_folder_switches_it_off(opened, settings):
    settings.folder.write_text("a file where the folder should be")
    cache = opened()
    keep(cache, snapshot(prompt(LONG)))
    cache.keep_picture(SCOPE, b"A", torch.randn(3, 16))
    assert cache.find(SCOPE, prompt([*LONG, 1])) is None
    assert cache.picture(SCOPE, b"A") is None


def test_a_slow_disk_makes_nobody_wait(opened, settings, monkeypatch):
    held = threading.Event()
    write = cache_folder.write_entry
    monkeypatch.setattr(cache_folder, "write_entry", lambda *a: (held.wait(10.0), write(*a)))
    cache, kept = opened(), snapshot(prompt(LONG))
    began = time.monotonic()
    for first in range(50):
        cache.keep_prefix(Snapshot(SCOPE, prompt([first, *LONG[1:]]).key, kept.kv.fork(200)))
    assert time.monotonic() - began < 1.0
    held.set()
    assert cache.flush(10.0)
    assert files(settings)


def test_what_is_written_later_is_what_was_kept(opened, monkeypatch):
    # The writer copies nothing: others go on from the same buffers meanwhile.
    held = threading.Event()
    write = cache_folder.write_entry
    monkeypatch.setattr(cache_folder, "write_entry", lambda *a: (held.wait(10.0), write(*a)))
    cache, kept = opened(), snapshot(prompt(LONG))
    before = kept.kv.parts()
    before = [(first, keys.clone(), values.clone()) for first, keys, values in before]
    cache.keep_prefix(Snapshot(SCOPE, kept.key, kept.kv.fork(200)))
    for follower in (kept.kv.fork(200), kept.kv.fork(200), kept.kv.fork(199)):
        for _ in range(40):
            token = torch.full((HEADS, 1, WIDTH), 7.0)
            for layer in range(2):
                follower.append(layer, token, token)
            follower.advance(1)
    held.set()
    assert cache.flush(10.0)
    kv = load(cache, cache.find(SCOPE, prompt(LONG), uncomputed=0))
    for layer, (first, keys, values) in enumerate(before):
        stored = kv.stored(layer)
        begin = (200 - stored[0].shape[1]) - first
        assert torch.equal(stored[0], keys[:, begin:])
        assert torch.equal(stored[1], values[:, begin:])
