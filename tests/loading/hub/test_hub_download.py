"""Downloads that break, lie or find no room: they go on, or a person is told what to do."""

import os
import re
import threading
import time

import pytest
from huggingface_hub import constants

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress
from gemma3vl_app.loading import hub_download
from gemma3vl_app.loading.hub import hub_folder
from tests.loading.hub.asked_for import (
    FILES,
    OTHER_COMMIT,
    REPO,
    SHARD,
    WEIGHTS,
    check_whole,
    left_behind,
    refusal,
)

# --- interruptions


def test_a_download_that_is_cut_again_and_again_continues_where_it_was(server):
    server.faults.cut_after = [10**9] * 5 + [1_000_000, 500_000, 0, 100_000]
    check_whole(hub_folder(REPO))
    ranges = [r.headers.get("Range") for r in server.downloads(SHARD)]
    assert ranges[0] is None and len(ranges) == 5
    starts = [int(r.removeprefix("bytes=").removesuffix("-")) for r in ranges[1:]]
    assert starts == [1_000_000, 1_500_000, 1_500_000, 1_600_000]


def test_a_later_run_continues_what_an_earlier_one_left(server, tmp_path):
    server.faults.cut_after = [10**9] * 5 + [2_000_000] + [0] * hub_download.FILE_TRIES
    message = refusal()
    assert "broke" in message and "again to continue" in message
    assert [p.stat().st_size for p in tmp_path.rglob("*.incomplete")] == [2_000_000]
    server.requests.clear()
    server.faults.cut_after = []
    steps: list[Progress] = []
    check_whole(hub_folder(REPO, progress=steps.append))
    assert [r.headers["Range"] for r in server.downloads(SHARD)] == ["bytes=2000000-"]
    assert {r.path.rpartition("/")[2] for r in server.requests if r.host == "storage"} == {SHARD}


def test_a_hub_that_cannot_continue_sends_the_file_again(server):
    server.faults.cut_after = [10**9] * 5 + [2_000_000]
    server.faults.no_ranges = True
    check_whole(hub_folder(REPO))


def test_a_hub_that_stops_sending_ends_in_an_error_and_not_in_waiting(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    server.faults.stall_after = [5] * 99
    started = time.monotonic()
    message = refusal()
    assert "stopped sending" in message and "HF_HUB_DOWNLOAD_TIMEOUT" in message
    assert time.monotonic() - started < 10


def test_a_short_stall_is_survived(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    server.faults.stall_after = [10, 10, 10]
    check_whole(hub_folder(REPO))


def test_errors_of_the_hub_pass_or_are_told_with_their_count(server):
    server.faults.errors = {"list": [(503, {}, b"")] * 2, SHARD: [(500, {}, b"<html>")] * 3}
    check_whole(hub_folder(REPO))
    server.commits[REPO] = OTHER_COMMIT
    server.faults.always = {"list": (502, {}, b"[1]")}
    assert "error 502, 3 tries" in refusal(revision="refs/pr/1x")


def test_a_hub_that_wants_fewer_requests_is_obeyed_for_a_while(server):
    server.faults.errors = {"list": [(429, {"Retry-After": "0"}, b"")]}
    check_whole(hub_folder(REPO))
    server.faults.always = {"list": (429, {"Retry-After": "300"}, b"")}
    started = time.monotonic()
    message = refusal(revision="refs/pr/1")
    assert "Wait a few minutes" in message and "hf auth login" in message
    assert time.monotonic() - started < 5


def test_several_at_once_download_each_file_once(server, monkeypatch):
    monkeypatch.setattr(hub_download, "LOCK_SEC", 0.1)
    released = server.faults.hold[SHARD] = threading.Event()
    folders, errors = [], []

    def load():
        try:
            folders.append(hub_folder(REPO))
        except LoadError as error:
            errors.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)  # one downloads the shard, and is held; the others have come to wait for it
    released.set()
    for thread in threads:
        thread.join()
    assert not errors and len(set(folders)) == 1
    check_whole(folders[0])
    assert [len(server.downloads(name)) for name in FILES] == [1] * len(FILES)


# --- lies


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lambda d: bytes([d[0] ^ 1]) + d[1:], id="one bit"),
        pytest.param(lambda d: d + b"more", id="longer"),
        pytest.param(lambda d: d[:-10], id="shorter"),
        pytest.param(lambda d: b"", id="empty"),
        pytest.param(lambda d: b"<html>Please log in</html>", id="a page"),
    ],
)
@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_other_bytes_than_announced_are_deleted_and_told(server, tmp_path, lie, name):
    server.faults.served = {name: lie(FILES[name])}
    message = refusal()
    assert name in message or "broke" in message
    assert name not in [path.name for path in tmp_path.rglob("*")]
    if "damaged" in message:
        assert left_behind(tmp_path) == []
    server.faults.served = {}
    check_whole(hub_folder(REPO))


def test_a_wrong_etag_does_no_harm_since_the_bytes_are_checked(server):
    server.faults.wrong_etag = True
    check_whole(hub_folder(REPO))


def test_a_part_from_the_wrong_place_is_not_appended(server):
    server.faults.cut_after = [10**9] * 5 + [2_000_000]
    server.faults.wrong_range = True
    assert "damaged" in refusal()
    check_whole(hub_folder(REPO))


def test_a_damaged_part_of_an_earlier_run_is_noticed(server, tmp_path):
    server.faults.cut_after = [10**9] * 5 + [2_000_000] + [0] * hub_download.FILE_TRIES
    refusal()
    (part,) = tmp_path.rglob("*.incomplete")
    part.write_bytes(bytes(1000))
    assert "damaged" in refusal()
    check_whole(hub_folder(REPO))


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    server.faults.cut_after = [10**9] * 5 + [2_000_000] + [0] * hub_download.FILE_TRIES
    refusal()
    (part,) = tmp_path.rglob("*.incomplete")
    part.write_bytes(WEIGHTS + b"more")
    check_whole(hub_folder(REPO))


def test_a_file_that_was_cut_in_the_cache_is_fetched_again(server):
    folder = hub_folder(REPO)
    os.truncate(folder / SHARD, 100)
    check_whole(hub_folder(REPO))


@pytest.mark.parametrize(
    "answer",
    [b"<html>log in</html>", b"", b"[]", b"7", b"[" * 100_000, b'{"id": 1}', b"\xff"],
    ids=["page", "nothing", "list", "number", "nested", "other", "no text"],
)
def test_a_listing_that_is_none_is_told(server, answer):
    server.faults.always = {"list": (200, {}, answer)}
    assert "no hub" in refusal()


ENTRY = {"rfilename": "model.safetensors", "size": 5, "blobId": "a" * 40}


@pytest.mark.parametrize(
    "listing",
    [
        {"sha": "../../etc"},
        {"sha": None},
        {"siblings": None},
        {"siblings": [1]},
        {"siblings": [{**ENTRY, "size": -5}]},
        {"siblings": [{**ENTRY, "size": None}]},
        {"siblings": [{**ENTRY, "size": 1e300}]},
        {"siblings": [{**ENTRY, "blobId": "../../../evil"}]},
        {"siblings": [{**ENTRY, "lfs": {"size": 5}}]},
        {"siblings": [{**ENTRY, "lfs": 5}]},
        {"siblings": [{**ENTRY, "rfilename": 5}]},
    ],
)
def test_a_listing_with_nonsense_is_refused(server, listing, tmp_path):
    server.faults.listing = listing
    assert "no hub" in refusal()
    assert not (tmp_path / "hub").exists()


def test_names_that_lead_out_of_the_folder_are_not_fetched(server, tmp_path):
    evil = {**ENTRY, "rfilename": "../evil.safetensors"}
    server.faults.listing = {"siblings": [evil, {**evil, "rfilename": "/etc/x.safetensors"}]}
    assert "holds no weights" in refusal()


@pytest.mark.parametrize(
    "body", [b"[1]", b'"text"', b'{"errors": 5}', b'{"error": [[1]]}', b"\xff"]
)
def test_an_odd_error_page_is_an_error_like_others(server, body):
    server.faults.always = {"list": (404, {}, body)}
    refusal()
    server.faults.always = {SHARD: (403, {}, body)}
    refusal()


# --- the disk


def test_a_model_larger_than_the_disk_is_refused_before_downloading(server):
    entry = {"rfilename": "model.safetensors", "size": 10**17, "blobId": "a" * 40}
    server.faults.listing = {"siblings": [entry]}
    message = refusal()
    assert re.search(r"needs 100,000,000\.0 GB more, but .* has [\d,.]+ GB left", message)
    assert "HF_HOME" in message
    assert [r.path for r in server.requests if r.host == "storage"] == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full disk")
def test_a_disk_that_fills_up_on_the_way_is_told(server, tmp_path):
    folder = hub_folder(REPO)
    blob = (folder / SHARD).resolve()
    (folder / SHARD).unlink()
    blob.unlink()
    blob.with_name(blob.name + ".incomplete").symlink_to("/dev/full")
    message = refusal()
    assert "is full" in message and "again to continue" in message and "HF_HOME" in message


def test_a_cache_that_cannot_be_written_is_told(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert "cannot be written" in refusal()
