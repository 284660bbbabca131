"""What the doctor says of the hub's token, address and licence."""

import time

import pytest

from gemma3vl_app.cli.checks import hub
from tests.cli.doctor.looking import (
    TOKEN,
    seen,
)


def test_a_token_is_found_and_never_shown(tmp_path):
    stored = tmp_path / "token"
    assert hub.token({}, stored).state == "warning"
    stored.write_text(TOKEN + "\n")
    for check in (hub.token({}, stored), hub.token({"HF_TOKEN": TOKEN}, tmp_path / "none")):
        assert check.state == "good"
        assert "secret" not in repr(check)
    assert "HF_TOKEN" in hub.token({"HF_TOKEN": TOKEN}, stored).message


@pytest.mark.parametrize("bad", ["hf_two words", "hf_täst", "hf_\x1b[2J"])
def test_a_token_that_cannot_be_one_is_broken_and_not_shown(bad, tmp_path):
    check = hub.token({"HF_TOKEN": bad}, tmp_path / "none")
    assert check.state == "broken" and "hf_" not in repr(check)


def test_a_token_that_is_kept_back_or_cannot_be_read_is_told(tmp_path):
    kept = {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    assert hub.token(kept, tmp_path / "none").state == "warning"
    assert hub.token({}, tmp_path).state == "broken"  # a folder


def test_variables_that_forbid_the_network_are_a_warning():
    assert hub.offline({}) == [] == hub.offline({"HF_HUB_OFFLINE": "0"})
    (check,) = hub.offline({"TRANSFORMERS_OFFLINE": "1"})
    assert (check.state, check.next_step) == ("warning", "unset TRANSFORMERS_OFFLINE")


def test_another_endpoint_is_told_without_its_password():
    assert hub.endpoint({}) == []
    (check,) = hub.endpoint({"HF_ENDPOINT": "https://me:secret@mirror.example/x"})
    assert check.state == "good"
    assert "mirror.example" in check.message and "secret" not in check.message
    for wrong in ("mirror.example", "ftp://x", "http://[", "file:///etc"):
        assert seen(hub.endpoint({"HF_ENDPOINT": wrong})) == {"endpoint": "broken"}


def test_without_asking_only_a_download_tells_that_the_licence_is_accepted():
    assert hub.licence_unasked(has_token=False, downloaded=False) == []
    (unknown,) = hub.licence_unasked(has_token=True, downloaded=False)
    assert (unknown.state, unknown.next_step) == ("warning", "gemma3vl doctor --online")
    (known,) = hub.licence_unasked(has_token=True, downloaded=True)
    assert known.state == "good"


@pytest.mark.parametrize(
    ("secret", "name", "state", "told"),
    [
        (TOKEN, "licence", "good", "accepted"),
        ("hf_not_accepted", "licence", "warning", "not accepted by this token's account"),
        ("hf_expired", "token", "broken", "wrong or has expired"),
        (None, "licence", "warning", "asks for its licence to be accepted"),
    ],
)
def test_the_hub_is_asked_about_the_licence(fake_hub, monkeypatch, secret, name, state, told):
    if secret:
        monkeypatch.setenv("HF_TOKEN", secret)
    check = hub.licence_online(is_offline=False)
    assert (check.name, check.state) == (name, state)
    assert told in check.message
    assert bool(check.next_step) == (state != "good")
    assert not secret or secret not in repr(check)


@pytest.mark.parametrize(
    ("answer", "state", "told"),
    [
        ((503, {}, b""), "broken", "error 503"),
        ((429, {"Retry-After": "60"}, b""), "broken", "error 429"),
        ((403, {}, b""), "broken", "may not read gated"),
        ((404, {"X-Error-Code": "RepoNotFound"}, b""), "warning", "HF_ENDPOINT"),
        ((200, {"Content-Type": "text/html"}, b"<h1>Log in</h1>"), "broken", "no hub"),
        ((200, {}, b"[]"), "broken", "no hub"),
    ],
)
def test_a_hub_in_trouble_is_told_in_one_line(fake_hub, answer, state, told):
    fake_hub.faults.always["list"] = answer
    check = hub.licence_online(is_offline=False)
    assert (check.state, "\n" in check.message) == (state, False)
    assert told in check.message and check.next_step


def test_a_hub_that_is_not_there_is_broken_at_once(fake_hub):
    fake_hub.stop()
    started = time.perf_counter()
    check = hub.licence_online(is_offline=False)
    assert time.perf_counter() - started < hub.LIMIT_SEC
    assert check.state == "broken" and "cannot be reached" in check.message


def test_offline_mode_is_respected_even_with_online(fake_hub):
    assert hub.licence_online(is_offline=True).state == "warning"
    assert fake_hub.requests == []
