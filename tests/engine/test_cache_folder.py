"""The disk cache's folder: private, bounded, and never a reason for anything else to fail."""

import errno
import logging
import os
import stat
import threading

import pytest
import torch

from gemma3vl_app.engine import cache_folder
from gemma3vl_app.engine.cache_folder import CacheFolder
from gemma3vl_app.engine.entry_files import file_bytes, open_entry

TENSORS = {"features": torch.ones(100, 10)}
SIZE = file_bytes({}, TENSORS)


def name(number: int) -> str:
    return f"{number:016x}-{0:032x}-{0:032x}.picture.safetensors"


def write(folder: CacheFolder, number: int) -> bool:
    written = folder.write(name(number), {}, TENSORS)
    if written:  # clocks of file systems are coarse
        os.utime(folder.path(name(number)), (number, number))
    return written


@pytest.fixture
def at(tmp_path):
    return tmp_path / "cache" / "conversations"


def refuse(number: int):
    def refusing(*_):
        raise OSError(number, os.strerror(number), "/secret/place")

    return refusing


def test_folder_and_files_are_their_owners_alone(at):
    at.mkdir(parents=True, mode=0o755)
    assert write(CacheFolder(at, 10 * SIZE), 1)
    assert stat.S_IMODE(at.stat().st_mode) == 0o700
    assert [stat.S_IMODE(each.stat().st_mode) for each in at.iterdir()] == [0o600]


def test_what_was_used_longest_ago_makes_room_and_the_bound_is_never_passed(at):
    gone = []
    folder = CacheFolder(at, 3 * SIZE, on_gone=gone.append)
    for number in (1, 2, 3):
        assert write(folder, number)
    assert folder.use(name(1))
    assert write(folder, 4)
    assert gone == [name(2)]
    assert sum(each.stat().st_size for each in at.iterdir()) <= 3 * SIZE
    again = CacheFolder(at, 3 * SIZE)  # another process, which knows nothing of the first
    assert again.write(name(5), {}, TENSORS)
    assert not folder.path(name(3)).exists()
    assert again.names()[-1] == name(4)


def test_a_smaller_bound_holds_from_the_start(at):
    folder = CacheFolder(at, 9 * SIZE)
    for number in range(1, 6):
        write(folder, number)
    CacheFolder(at, 2 * SIZE).tidy()
    assert {each.name for each in at.iterdir()} == {name(4), name(5)}


def test_what_is_larger_than_everything_drives_nothing_out(at):
    folder = CacheFolder(at, 2 * SIZE)
    write(folder, 1)
    assert not folder.write(name(2), {}, {"features": torch.ones(1000, 10)})
    assert folder.names() == [name(1)]


def test_only_its_own_files_are_touched_and_leftovers_only_when_old(at):
    folder = CacheFolder(at, 1)
    assert folder.is_private()
    others = [at / "notes.txt", at / ".0123456789abcdef.part", at / "x.prefix.safetensors"]
    for each in others:
        each.write_bytes(b"x" * 100)
    old = at / f".{'a' * 16}.part"
    old.write_bytes(b"x")
    os.utime(old, (1, 1))
    folder.tidy()
    assert all(each.exists() for each in others)
    assert not old.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_what_the_disk_refuses_is_said_once_without_paths(at, monkeypatch, caplog, number):
    folder = CacheFolder(at, 10 * SIZE)
    write(folder, 1)
    monkeypatch.setattr(cache_folder.os, "replace", refuse(number))
    with caplog.at_level(logging.WARNING):
        assert not folder.write(name(2), {}, TENSORS)
        assert not folder.write(name(3), {}, TENSORS)
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text
    assert str(at) not in caplog.text
    assert [each.name for each in at.iterdir()] == [name(1)]  # no part is left behind
    monkeypatch.undo()
    assert folder.write(name(2), {}, TENSORS)  # the disk may have room again


def test_a_folder_that_cannot_be_made_is_no_failure(at, caplog):
    at.parent.write_text("a file where a folder should be")
    folder = CacheFolder(at, 10 * SIZE)
    assert not folder.is_private()
    assert not write(folder, 1)
    assert folder.names() == []
    assert len(caplog.records) == 2  # one that it cannot be used, one that it cannot be read


def test_somebody_elses_folder_is_not_used(at, monkeypatch, caplog):
    folder = CacheFolder(at, 10 * SIZE)
    assert write(folder, 1)
    monkeypatch.setattr(cache_folder.os, "getuid", lambda: 12345)
    assert not folder.is_private()
    assert not write(folder, 2)
    assert "somebody else" in caplog.text


def test_a_link_in_place_of_the_folder_is_not_followed(at, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    at.parent.mkdir()
    at.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    folder = CacheFolder(at, 10 * SIZE)
    assert not write(folder, 1)
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_several_owners_at_once_leave_whole_files_only(at):
    def work(numbers):
        folder = CacheFolder(at, 5 * SIZE)
        for number in numbers:
            folder.write(name(number), {}, TENSORS)

    threads = [threading.Thread(target=work, args=(range(1, 40),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folder = CacheFolder(at, 5 * SIZE)
    folder.tidy()
    names = folder.names()
    assert 0 < len(names) <= 5
    for each in names:
        with open_entry(folder.path(each)) as entry:
            assert torch.equal(entry.read("features"), TENSORS["features"])
            entry.check()
