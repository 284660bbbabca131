"""What the hub refuses is told with what to do next, and gives no secret away."""

import logging

import pytest

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.hub import hub_folder
from tests.loading.hub.asked_for import REPO, TOKEN, WEIGHTS, check_whole, refusal


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
