"""Cached folders are built once, whole, by one process, and never trusted when damaged."""

import json
import os
import subprocess
import sys

import pytest

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.cache import (
    CONVERSATIONS,
    MANIFEST,
    cache_root,
    cached_folder,
    cached_folders,
    remove_cached,
)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA3VL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Counts its calls and writes two files."""

    calls = 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "a.bin").write_bytes(b"0123456789")
        (folder / "b.txt").write_text("text")


def test_a_folder_is_built_once():
    build = Builder()
    first = cached_folder("thing", build)
    assert cached_folder("thing", build) == first
    assert build.calls == 1
    assert {path.name for path in first.iterdir()} == {"a.bin", "b.txt", MANIFEST}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "a.bin").write_bytes(b"01234"),
        lambda folder: (folder / "a.bin").write_bytes(b"012345678X"),
        lambda folder: (folder / "b.txt").unlink(),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text("{"),
        lambda folder: (folder / MANIFEST).write_text(json.dumps({"a.bin": 3})),
    ],
    ids=["truncated", "byte changed", "file gone", "manifest gone", "half a manifest", "nonsense"],
)
def test_a_damaged_folder_is_built_anew(damage):
    build = Builder()
    folder = cached_folder("thing", build)
    damage(folder)
    cached_folder("thing", build)
    assert build.calls == 2
    assert (folder / "a.bin").read_bytes() == b"0123456789"


def test_a_build_that_fails_leaves_nothing_behind(root):
    def fail(folder):
        (folder / "a.bin").write_bytes(b"half")
        raise LoadError("The package is altered.")

    with pytest.raises(LoadError, match="altered"):
        cached_folder("thing", fail)
    assert not [path for path in root.iterdir() if path.is_dir()]


def test_what_a_killed_process_left_is_swept_away(root):
    leftover = root / ".thing-k1ll3d"
    leftover.mkdir(parents=True)
    (leftover / "a.bin").write_bytes(b"half")
    cached_folder("thing", Builder())
    assert not leftover.exists()


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GEMMA3VL_CACHE", str(tmp_path / "file"))
    with pytest.raises(LoadError, match="GEMMA3VL_CACHE") as caught:
        cached_folder("thing", Builder())
    assert str(tmp_path) not in str(caught.value)


def test_the_cache_lies_in_the_home_folder_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("GEMMA3VL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "gemma3vl"


def test_of_several_processes_one_builds_and_all_get_the_folder(root):
    script = (
        "import time, os\n"
        "from gemma3vl_app.loading.cache import cached_folder\n"
        "def build(folder):\n"
        "    (folder.parent / f'built-{os.getpid()}').touch()\n"
        "    time.sleep(1)\n"
        "    (folder / 'a.bin').write_bytes(b'0123456789')\n"
        "assert (cached_folder('thing', build) / 'a.bin').read_bytes() == b'0123456789'\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script], env=os.environ) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert len(list(root.glob("built-*"))) == 1


def test_without_hashes_only_sizes_are_checked(root):
    build = Builder()
    folder = cached_folder("large", build, hashed=False)
    (folder / "a.bin").write_bytes(b"9876543210")
    cached_folder("large", build, hashed=False)
    assert build.calls == 1
    (folder / "a.bin").write_bytes(b"short")
    cached_folder("large", build, hashed=False)
    assert build.calls == 2


def test_no_room_on_the_disk_is_said_with_both_numbers(root):
    build = Builder()
    with pytest.raises(LoadError, match=r"needs 1048576\.0 GiB.*GiB are free"):
        cached_folder("huge", build, needs_bytes=2**50)
    assert build.calls == 0


def test_what_the_cache_holds_is_listed_by_last_use(root):
    cached_folder("old", Builder())
    os.utime(root / "old", (1, 1))
    cached_folder("new", Builder())
    (root / "half-made").mkdir()
    first, second = cached_folders()
    assert (first.name, second.name) == ("new", "old")
    assert first.bytes == sum(path.stat().st_size for path in (root / "new").iterdir())
    cached_folder("old", Builder())
    assert cached_folders()[0].name == "old"


def test_a_removed_folder_is_gone_and_made_again_when_needed(root):
    build = Builder()
    folder = cached_folder("thing", build)
    size = cached_folders()[0].bytes
    assert remove_cached("thing") == size
    assert not folder.exists()
    cached_folder("thing", build)
    assert build.calls == 2


def test_kept_conversations_are_listed_and_removed_like_the_rest(root):
    assert CONVERSATIONS not in {each.name for each in cached_folders()}
    (root / CONVERSATIONS).mkdir(parents=True)
    (root / CONVERSATIONS / "entry").write_bytes(b"x" * 10)
    assert [(each.name, each.bytes) for each in cached_folders()] == [(CONVERSATIONS, 10)]
    assert remove_cached(CONVERSATIONS) == 10
    assert not (root / CONVERSATIONS).exists()


@pytest.mark.parametrize("name", ["nothing", "../cache", "", "."])
def test_what_is_not_in_the_cache_cannot_be_removed(root, name):
    cached_folder("thing", Builder())
    with pytest.raises(LoadError, match="cache list"):
        remove_cached(name)
    assert (root / "thing").exists()
