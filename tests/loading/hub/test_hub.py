"""The hub: a model arrives whole, once, also without a network; against a local hub."""

import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from huggingface_hub import constants, try_to_load_from_cache

from gemma3vl_app.generation import Progress
from gemma3vl_app.loading import hub, hub_download
from gemma3vl_app.loading.checkpoint import open_checkpoint, stored_tensors
from gemma3vl_app.loading.hub import hub_folder, hub_revision
from tests.loading.fake_hub import COMMIT, FakeHub
from tests.loading.hub.asked_for import (
    FILES,
    OTHER_COMMIT,
    REPO,
    SHARD,
    TOKEN,
    WEIGHTS,
    check_whole,
    left_behind,
    refusal,
)

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
