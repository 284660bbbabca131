"""The hub: a model arrives whole, once, or a person is told what to do; against a local hub."""

import json
import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest
import torch
from huggingface_hub import constants, try_to_load_from_cache

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress
from gemma3vl_app.loading import hub, hub_download, hub_errors
from gemma3vl_app.loading.checkpoint import open_checkpoint, stored_tensors
from gemma3vl_app.loading.hub import hub_folder, hub_revision
from tests.loading.fake_hub import COMMIT, FakeHub

REPO = "google/gemma-3-4b-it"
WEIGHTS = random.Random(0).randbytes(3_000_000)
OTHER_COMMIT = "b" * 40
TOKEN = "hf_SecretSecretSecretSecret"
SHARD = "model-00001-of-00002.safetensors"
FILES = {
    "config.json": b'{"model_type": "gemma3"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}' + b" " * 2000,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": SHARD, "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    SHARD: WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[:5000],
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "modeling_gemma3.py": b"import os",
    "model.gguf": b"GGUF",
    "README.md": b"# Gemma",
    "onnx/model.safetensors": b"other",
}


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
    monkeypatch.setattr(hub_errors, "FIRST_WAIT_SEC", 0.001)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub({REPO: FILES | UNWANTED}) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        yield running


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def refusal(repo=REPO, **options) -> str:
    """What is said instead of a folder: plain, short, and it gives nothing away."""
    with pytest.raises(LoadError) as caught:
        hub_folder(repo, **options)
    message = str(caught.value)
    for secret in (TOKEN, "/tmp", constants.HF_HUB_CACHE, "127.0.0.1", "signature", "Traceback"):
        assert secret not in message
    assert "\n" not in message and message.endswith((".", ")")) and 30 < len(message) < 320
    return message


def check_whole(folder, files=FILES):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def left_behind(tmp_path) -> list[str]:
    return sorted(path.name for path in tmp_path.rglob("*.incomplete"))


# --- when all is well


def test_a_model_arrives_with_what_is_loaded_and_nothing_else(server, tmp_path):
    folder = hub_folder(REPO)
    check_whole(folder)
    assert hub_revision(folder) == COMMIT
    assert left_behind(tmp_path) == []
    listings = [r for r in server.requests if r.path.startswith("/api/")]
    assert [r.path for r in listings] == [f"/api/models/{REPO}/revision/main"]
    assert len(server.requests) == 1 + 2 * len(FILES)


def test_the_second_load_asks_which_commit_is_newest_and_downloads_nothing(server):
    first = hub_folder(REPO)
    server.requests.clear()
    assert hub_folder(REPO) == first
    assert [r.path for r in server.requests] == [f"/api/models/{REPO}/revision/main"]


def test_a_commit_that_is_complete_costs_no_request(server):
    hub_folder(REPO, revision=COMMIT)
    server.requests.clear()
    check_whole(hub_folder(REPO, revision=COMMIT))
    assert server.requests == []


def test_other_tools_find_the_files_and_a_new_commit_shares_them(server, tmp_path):
    hub_folder(REPO)
    assert try_to_load_from_cache(REPO, SHARD, cache_dir=tmp_path / "hub") is not None
    server.commits[REPO] = OTHER_COMMIT
    server.repos[REPO] = FILES | {"config.json": b'{"model_type": "gemma3", "new": 1}'}
    server.requests.clear()
    folder = hub_folder(REPO)
    assert hub_revision(folder) == OTHER_COMMIT
    check_whole(folder, server.repos[REPO])
    assert {r.path.rpartition("/")[2] for r in server.requests if r.host == "storage"} == {
        "config.json"
    }


def test_a_branch_with_a_slash_is_a_revision(server):
    assert hub_revision(hub_folder(REPO, revision="refs/pr/1")) == COMMIT
    server.stop()
    assert hub_revision(hub_folder(REPO, revision="refs/pr/1")) == COMMIT


def test_progress_counts_the_bytes_of_all_files_and_names_each(server, monkeypatch):
    monkeypatch.setattr(hub_download, "REPORT_EVERY_SEC", 0.0)
    steps: list[Progress] = []
    hub_folder(REPO, progress=steps.append)
    total = sum(map(len, FILES.values()))
    assert {(step.stage, step.unit, step.total) for step in steps} == {("download", "bytes", total)}
    assert steps[0].done == 0 and steps[-1].done == total
    assert all(before.done <= after.done for before, after in pairwise(steps))
    assert {step.message.rpartition(" ")[2] for step in steps} == set(FILES)
    assert sum(SHARD in step.message for step in steps) > 10
    steps.clear()
    hub_folder(REPO, progress=steps.append)
    assert not steps


def test_a_token_goes_to_the_hub_and_not_to_its_storage(server, token):
    server.tokens[TOKEN] = True
    hub_folder(REPO)
    sent = {(r.host, r.headers.get("Authorization")) for r in server.requests}
    assert sent == {("hub", f"Bearer {TOKEN}"), ("storage", None)}
    assert not any(TOKEN in str(r.headers) for r in server.requests if r.host == "storage")


def test_an_adapter_needs_no_model_files(server):
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS[:99]}
    server.repos["me/lora"] = files
    check_whole(hub_folder("me/lora"), files)


def test_a_real_checkpoint_comes_through_and_opens(server, tiny):
    server.repos["me/tiny"] = {path.name: path.read_bytes() for path in tiny.iterdir()}
    got = open_checkpoint(hub_folder("me/tiny"), "tiny")
    expected = open_checkpoint(tiny)
    assert (got.config, got.preprocessor) == (expected.config, expected.preprocessor)
    tensors = stored_tensors(got)
    assert tensors.keys() == stored_tensors(expected).keys()
    for key, stored in stored_tensors(expected).items():
        assert torch.equal(tensors[key].read(), stored.read())


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


# --- refusals of the hub


def test_a_licence_that_is_not_accepted_is_told_with_its_page(server, monkeypatch):
    server.gated.add(REPO)
    message = refusal()
    assert f"https://huggingface.co/{REPO}" in message and "`hf auth login`" in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.tokens[TOKEN] = False
    message = refusal()
    assert f"https://huggingface.co/{REPO}" in message and "not accepted by your account" in message
    server.tokens[TOKEN] = True
    check_whole(hub_folder(REPO))


def test_a_token_that_the_hub_does_not_know_is_told(server, token):
    message = refusal()
    assert "does not accept the token" in message and "`hf auth login`" in message


def test_a_token_without_the_right_to_read_is_told(server, token):
    server.tokens[TOKEN] = True
    server.faults.always = {"config.json": (403, {}, b'{"error": "fine-grained"}')}
    assert "settings/tokens" in refusal()


def test_a_token_that_cannot_be_sent_is_told_without_showing_it(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN + "é ü")
    assert "HF_TOKEN" in refusal()
    assert server.requests == []


def test_tokens_are_in_no_message_and_no_log(server, token, caplog):
    caplog.set_level(logging.DEBUG)
    refusal()
    server.tokens[TOKEN] = True
    hub_folder(REPO)
    assert caplog.text.strip() and TOKEN not in caplog.text


def test_unknown_models_revisions_and_other_kinds_are_told(server):
    assert "has no model google/gemma-9" in refusal("google/gemma-9")
    assert "has no revision 'v9'" in refusal(revision="v9")
    assert "has no revision" in refusal(revision="c" * 40)
    server.datasets.add("me/pictures")
    assert "me/pictures is a dataset, not a model" in refusal("me/pictures")


@pytest.mark.parametrize("repo", ["../evil", "a/b/c", "a b", "", "a/..", "https://x/y", "a/b\n"])
def test_a_name_that_is_none_is_refused_before_any_request(server, repo):
    with pytest.raises(LoadError, match="no model of the hub"):
        hub_folder(repo)
    assert server.requests == []


@pytest.mark.parametrize(
    "revision", ["../../x", "/etc/passwd", "a/../b", "-x", "a b", "a\n", "x" * 999]
)
def test_a_revision_that_is_none_is_refused_before_any_request(server, revision):
    with pytest.raises(LoadError, match="is no revision"):
        hub_folder(REPO, revision=revision)
    assert server.requests == []


def test_pickles_alone_are_no_model(server, tmp_path):
    server.repos["old/model"] = {"config.json": b"{}", "pytorch_model.bin": WEIGHTS}
    message = refusal("old/model")
    assert "only 'pytorch_model.bin'" in message and "safetensors" in message
    server.repos["old/notes"] = {"README.md": b"hello"}
    assert "holds no weights" in refusal("old/notes")
    assert not (tmp_path / "hub").exists()


# --- no network


def test_without_a_network_a_complete_model_loads(server, caplog):
    folder = hub_folder(REPO)
    server.stop()
    assert hub_folder(REPO) == folder
    assert "cannot be reached" in caplog.text and "copy on this machine" in caplog.text


def test_without_a_network_a_model_that_is_not_here_is_told(server):
    server.stop()
    assert "cannot be reached" in refusal()


@pytest.mark.parametrize(
    "endpoint", ["nonsense", "ftp://x", "http://", "http://[x", "http://x:99999"]
)
def test_an_address_that_is_none_is_told(server, monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    refusal()


def test_offline_asks_nothing(server, monkeypatch):
    hub_folder(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.requests.clear()
    check_whole(hub_folder(REPO))
    assert "HF_HUB_OFFLINE" in refusal("google/gemma-3-12b-it")
    assert server.requests == []


def test_an_incomplete_model_is_not_taken_for_whole_offline(server, monkeypatch):
    server.faults.always = {SHARD: (404, {"X-Error-Code": "EntryNotFound"}, b"")}
    refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not complete on this machine" in refusal()
    assert "not complete on this machine" in refusal(revision=COMMIT)


def test_a_broken_off_update_leaves_the_older_commit_usable(server, monkeypatch):
    older = hub_folder(REPO)
    server.commits[REPO] = OTHER_COMMIT
    server.repos[REPO] = FILES | {SHARD: WEIGHTS[::-1]}
    server.faults.cut_after = [0] * 99
    assert hub_folder(REPO) == older
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_folder(REPO) == older


@pytest.mark.parametrize("missing", [None, "tokenizer.json", SHARD, "config.json"])
def test_what_another_tool_downloaded_is_used_offline_if_it_is_whole(
    server, monkeypatch, tmp_path, missing
):
    folder = hub_folder(REPO)
    for note in tmp_path.rglob("gemma3vl/*.json"):
        note.unlink()
    if missing:
        (folder / missing).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if missing:
        assert "not complete" in refusal()
    else:
        assert hub_folder(REPO) == folder


@pytest.mark.parametrize("note", ["", "[]", "{}", "[1]", '[{"name": 5}]', "\x00"])
def test_a_damaged_note_of_ours_is_no_obstacle(server, monkeypatch, tmp_path, note):
    folder = hub_folder(REPO)
    (path,) = tmp_path.rglob("gemma3vl/*.json")
    path.write_text(note)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_folder(REPO) == folder
    (folder / SHARD).unlink()
    assert "not complete" in refusal()


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


# --- other


@pytest.mark.parametrize(
    ("folder", "commit"),
    [
        (f"/x/models--google--gemma/snapshots/{COMMIT}", COMMIT),
        (f"/x/models--google--gemma/snapshots/{COMMIT}/", COMMIT),
        ("/x/models--google--gemma/snapshots/main", None),
        (f"/x/datasets--google--gemma/snapshots/{COMMIT}", None),
        (f"/x/y/{COMMIT}", None),
        ("/", None),
        (".", None),
    ],
)
def test_a_snapshot_folder_tells_its_commit(folder, commit):
    assert hub_revision(hub.Path(folder)) == commit


SCRIPT = """
import sys
from gemma3vl_app.loading.hub import hub_folder
folder = hub_folder("google/gemma-3-4b-it")
print(sum(path.stat().st_size for path in folder.iterdir()))
"""


@pytest.mark.slow
def test_environment_variables_are_obeyed_and_a_second_process_needs_no_hub(tmp_path):
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
    }

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
        )

    with FakeHub({REPO: FILES}) as server:
        server.tokens[TOKEN] = True
        environment["HF_ENDPOINT"] = server.endpoint
        first = run()
    assert first.stdout.strip() == str(sum(map(len, FILES.values()))), first.stderr
    assert (tmp_path / "home" / "hub" / "models--google--gemma-3-4b-it").is_dir()
    second = run()
    assert second.stdout == first.stdout, second.stderr
    assert "cannot be reached" in second.stderr and TOKEN not in first.stderr + second.stderr


def test_downloaded_models_are_listed_with_their_size(server):
    assert hub.downloaded_models() == []
    hub_folder(REPO)
    (found,) = hub.downloaded_models()
    assert found.name == REPO
    assert found.bytes > 0
