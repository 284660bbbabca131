"""What the doctor says of caches and disks."""

import shlex
from pathlib import Path

import pytest

from gemma3vl_app.cli.checks import storage
from tests.cli.doctor.looking import (
    GIB,
    named,
    seen,
)


def test_a_cache_that_cannot_be_written_is_broken(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inside", Path("/proc/gemma3vl")):
        why_not = storage.why_not_writable(folder)
        assert why_not
        assert seen(storage.own_cache(folder, [], [], why_not)) == {"our cache": "broken"}
        assert seen(storage.hub_cache(folder, [], [], why_not)) == {"hub cache": "broken"}


def test_a_cache_that_is_there_or_can_be_made_is_good_and_untouched(tmp_path):
    for folder in (tmp_path, tmp_path / "not" / "yet"):
        assert storage.why_not_writable(folder) == ""
    assert list(tmp_path.iterdir()) == []
    (check,) = storage.own_cache(tmp_path, [GIB, GIB], [], "")
    assert check.state == "good" and "2 models converted here, 2.0 GiB" in check.message


def test_only_old_leftovers_are_a_warning(tmp_path):
    for name in (".demo-nf4-1-abc", ".demo-nf4-1.lock", "demo-nf4-1"):
        (tmp_path / name).mkdir()
    (tmp_path / ".demo-nf4-1-abc" / "half.safetensors").write_bytes(bytes(5000))
    (leftover,) = storage.find_leftovers(tmp_path)[:1]
    assert leftover.bytes == 5000 and leftover.age_sec < 60
    assert seen(storage.own_cache(tmp_path, [], [leftover], "")) == {"our cache": "good"}
    old = storage.Leftover(leftover.path, leftover.bytes, age_sec=2 * 3600)
    check = named(storage.own_cache(tmp_path, [], [old], ""), "leftovers")
    assert check.state == "warning"
    assert shlex.split(check.next_step) == ["rm", "-r", str(leftover.path)]


def test_an_incomplete_download_is_a_warning_with_the_command_that_goes_on(tmp_path):
    blobs = tmp_path / "models--google--gemma-3-4b-it" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(bytes(5 << 20))
    check = named(
        storage.hub_cache(tmp_path, [], storage.find_incomplete(tmp_path), ""), "download"
    )
    assert check.state == "warning" and "5 MiB" in check.message
    assert "google/gemma-3-4b-it" in check.next_step


@pytest.mark.parametrize(
    ("free_bytes", "state"), [(50 * GIB, "good"), (9 * GIB, "warning"), (GIB // 2, "broken")]
)
def test_little_room_is_a_warning_and_none_is_broken(free_bytes, state, tmp_path):
    assert storage.disk([tmp_path], free_bytes).state == state


def test_folders_on_one_disk_are_one_line(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b" / "c"]
    assert storage.by_disk(folders) == [(folders, tmp_path)]
