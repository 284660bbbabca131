"""Every form and path is compared with the reference; a path that computes wrongly is seen."""

import gc
import json
from dataclasses import replace

import pytest
import torch

from gemma3vl_app.errors import EngineError, LoadError, VerificationError
from gemma3vl_app.faithfulness import engine_paths, paths, reader, verify_paths
from gemma3vl_app.faithfulness.bounds import FORM_BOUNDS, Bounds
from gemma3vl_app.faithfulness.engine_paths import (
    AT_ONCE,
    BY_TRANSFORMERS,
    NO_KERNELS,
    PATHS,
)
from gemma3vl_app.faithfulness.paths import COMPILED_FORMS, COMPILED_FORMS_BF16
from gemma3vl_app.hardware import choose_dtype, default_device, detect
from gemma3vl_app.loading import compiled, compiled_bf16, load_model
from gemma3vl_app.loading.norms import FusedRMSNorm
from tests.faithfulness.conftest import Watched

SHORT = {("disk cache", "off")}  # of fewer than 64 tokens, which are not kept
WITHOUT = "fast paths of loading off"
HAPPENING = ("prefix reused", "disk cache", "written together", "guessed ahead")


@pytest.fixture(scope="module")
def two_questions(long_question, tmp_path_factory):
    """A question that the disk cache finds worth keeping, and a short one."""
    file = tmp_path_factory.mktemp("asked") / "two.txt"
    long = long_question.read_text(encoding="utf-8")
    file.write_text(f"{long}Name three colours of the rainbow.\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def exact(tiny, two_questions):
    """fp32 on every path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "ANSWER_TOKENS", 5)
        return verify_paths(tiny, weights=["fp32"], prompts=two_questions)


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def quantised(tiny, shown, watched):
    """int8 on its paths, with a picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "load_model", watched.load_model)
        patch.setattr(paths, "load_model", watched.load_model)
        patch.setattr(reader, "ANSWER_TOKENS", 4)
        return verify_paths(tiny, weights=["int8"], pictures=shown)


@pytest.fixture
def some_paths(monkeypatch):
    """Run few paths, on short answers."""

    def choose(*names: str, **changed) -> None:
        monkeypatch.setattr(paths, "PATHS", {name: PATHS[name] for name in names} | changed)
        monkeypatch.setattr(reader, "ANSWER_TOKENS", 4)

    return choose


def test_fp32_is_the_same_on_every_path(exact):
    assert [each.path for each in exact.results] == [name for name in PATHS if name != NO_KERNELS]
    assert exact.within and exact.compared
    for each in exact.results:
        assert each.agreement.max_difference < 1e-4
        assert each.agreement.top1 == 1
        assert each.agreement.positions >= 5
        assert (each.own_pass is None) == (each.path == BY_TRANSFORMERS)


def notes(found) -> dict[str, str]:
    return {each.path: each.note for each in found.results}


def test_what_a_path_is_about_really_happened(exact):
    told = notes(exact)
    assert "tokens were known" in told["prefix reused"]
    assert told["disk cache"].endswith("not at 1 of 2 prompts")  # the short one
    assert told["written together"] == "2 of 2 answers in one pass"
    right, _, guessed = told["guessed ahead"].split()[:3]
    assert 0 < int(right) < int(guessed)  # wrong guesses were taken back, too
    positions = {each.path: each.agreement.positions for each in exact.results}
    assert positions["disk cache"] == positions["prefix reused"] / 2


def test_a_path_that_did_not_come_about_has_a_reason_and_no_figures(
    tiny, questions, some_paths, monkeypatch
):
    some_paths(AT_ONCE, *HAPPENING)
    monkeypatch.setattr(engine_paths, "WHOLE", replace(engine_paths.WHOLE, prefix_budget_bytes=0))
    monkeypatch.setattr(engine_paths.Recorded, "propose", lambda self, wanted: [[] for _ in wanted])
    found = verify_paths(tiny, weights=["fp32"], prompts=questions)
    assert {each.path: each.agreement is None for each in found.results} == {
        AT_ONCE: False,
        **dict.fromkeys(HAPPENING, True),
    }
    assert found.within  # what did not happen breaks no bound
    told = notes(found)
    assert "no two answers" in told["written together"]
    assert "0 of 16 tokens were known" in told["disk cache"]
    assert "0 of 0 guesses" in told["guessed ahead"]


def test_answers_that_do_not_share_a_pass_are_not_called_together(
    tiny, two_questions, some_paths, monkeypatch
):
    some_paths("written together")
    monkeypatch.setattr(engine_paths.Counting, "note_pass", lambda self, rows, began: None)
    found = verify_paths(tiny, weights=["fp32"], prompts=two_questions)
    (only,) = found.results
    assert only.agreement is None and "0 of 2 answers in one pass" in only.note
    assert not found.within  # nothing else was compared


def computes_in_bfloat16():
    return choose_dtype(default_device(detect()), detect())[0] == "bfloat16"


def test_fewer_bits_are_measured_with_crops_off_and_on_with_fast_paths_and_without(quantised):
    shown = {(each.path, each.crops) for each in quantised.results}
    expected = {(path, crops) for path in PATHS for crops in ("off", "on")}
    if compiled.few_rows(paths.torch.bfloat16) is None:
        expected -= {(NO_KERNELS, "off"), (NO_KERNELS, "on")}
    assert shown == expected
    assert quantised.within
    measured = [each for each in quantised.results if each.agreement is not None]
    assert shown - {(each.path, each.crops) for each in measured} == SHORT
    in_bfloat16 = computes_in_bfloat16()
    for each in measured:
        assert each.agreement.mean_kl > 0
        encodes = each.path in (BY_TRANSFORMERS, AT_ONCE)
        # The tower stays as it is, but for its arithmetic.
        most = 0.01 if in_bfloat16 else 1e-5
        assert each.features_error < most if encodes else each.features_error is None
    loading = {each.note for each in quantised.results if each.path == AT_ONCE}
    pieces = ", tower in pieces" if in_bfloat16 else ""
    assert loading == {f"output matrix int8{pieces}", "fast paths of loading off"}


def test_every_path_is_gone_with_pictures_cropped_and_whole(tiny, shown, monkeypatch):
    monkeypatch.setattr(reader, "ANSWER_TOKENS", 4)
    found = verify_paths(tiny, weights=["fp32"], pictures=shown)
    assert found.within
    missing = {(each.path, each.crops) for each in found.results if each.agreement is None}
    assert missing == SHORT
    gone = {(each.path, each.crops) for each in found.results}
    assert gone == {(path, c) for path in PATHS for c in ("off", "on") if path != NO_KERNELS}


@pytest.mark.parametrize("form", ["w16", "bf16", "int4", "nf4"])
def test_every_form_goes_all_paths(form, tiny, two_questions, monkeypatch):
    monkeypatch.setattr(reader, "ANSWER_TOKENS", 5)
    found = verify_paths(tiny, weights=[form], prompts=two_questions)
    assert found.within
    if load_model(tiny, weights=form).plan.dtype == "bfloat16":
        has_kernels = form in COMPILED_FORMS_BF16 and compiled_bf16.is_here()
    else:
        has_kernels = form in COMPILED_FORMS and compiled.few_rows(torch.bfloat16) is not None
    expected = [name for name in PATHS if has_kernels or name != NO_KERNELS]
    assert [each.path for each in found.results if each.note != WITHOUT] == expected
    missing = {each.path: each.note for each in found.results if not each.agreement}
    assert not missing
    for each in found.results:
        assert (each.own_pass is None) == (each.path == BY_TRANSFORMERS)


def test_given_bounds_replace_those_of_the_table(quantised):
    measured = [each.agreement for each in quantised.results if each.agreement is not None]
    worst = max(measured, key=lambda each: each.mean_kl)
    assert worst.mean_kl < FORM_BOUNDS["int8"].max_mean_kl
    assert Bounds(max_mean_kl=worst.mean_kl / 2).exceeded(worst)


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_a_fast_path_that_computes_wrongly_is_seen(form, tiny, questions, monkeypatch, some_paths):
    right = FusedRMSNorm.forward
    monkeypatch.setattr(FusedRMSNorm, "forward", lambda norm, x: right(norm, x) * 1.02)
    some_paths(BY_TRANSFORMERS, AT_ONCE, "written alone")
    found = verify_paths(tiny, weights=[form], prompts=questions)
    assert not found.within and found.differs
    # At what an answer says this model is so sure that in bfloat16 its rounding hides the fault.
    hidden = form == "int8" and computes_in_bfloat16()
    expected = {AT_ONCE} if hidden else {AT_ONCE, "written alone"}
    assert {each.path for each in found.results if each.exceeded} == expected
    first = next(each for each in found.results if each.exceeded)
    assert any("next to transformers in the same form" in line for line in first.exceeded)
    # What fewer bits cost hides the fault.
    assert bool(FORM_BOUNDS[form].exceeded(first.agreement)) == (form == "fp32")


def test_features_that_are_gone_are_not_compared(tiny, shown, some_paths, monkeypatch):
    some_paths(AT_ONCE)
    monkeypatch.setattr(engine_paths, "WHOLE", replace(engine_paths.WHOLE, feature_budget_bytes=1))
    found = verify_paths(tiny, weights=["fp32"], pictures=shown)
    assert [each.features_error for each in found.results] == [None, None]
    assert found.within


def refusing(monkeypatch, why: str, *forms: str) -> None:
    """Let forms fail to load, or all."""
    load = paths.load_model

    def refuse(*arguments, **options):
        if not forms or options["weights"] in forms:
            raise LoadError(why)
        return load(*arguments, **options)

    monkeypatch.setattr(paths, "load_model", refuse)


def test_a_form_that_was_named_and_cannot_be_loaded_is_over_the_bound(tiny, questions, monkeypatch):
    refusing(monkeypatch, "Memory ran out.")
    found = verify_paths(tiny, weights=["int4"], prompts=questions)
    (only,) = found.results
    assert (only.agreement, only.failed, only.note) == (None, True, "Memory ran out.")
    assert found.exceeded == ("int4, loading: not compared: Memory ran out",)
    assert not found.within and not found.differs


def test_only_forms_that_are_not_made_for_this_machine_are_let_pass(
    tiny, questions, monkeypatch, some_paths
):
    some_paths(AT_ONCE)
    plan_for = paths.plan_for

    def plan(*arguments, weights="auto", **options):
        if weights == "nf4":
            raise LoadError("weights='nf4' is made for others.")
        return plan_for(*arguments, weights=weights, **options)

    monkeypatch.setattr(paths, "plan_for", plan)
    monkeypatch.setattr(paths, "FORMS", ("fp32", "int4", "nf4"))
    refusing(monkeypatch, "It is damaged.", "int4")
    found = verify_paths(tiny, prompts=questions)
    assert [(each.weights, each.failed) for each in found.results] == [
        ("fp32", False),
        ("int4", True),
        ("nf4", False),
    ]
    assert found.results[-1].note == "weights='nf4' is made for others."
    assert found.exceeded == ("int4, loading: not compared: It is damaged",)
    nothing = replace(found, results=found.results[-1:])
    assert nothing.exceeded == ("none of these forms could be compared on this machine",)
    assert not nothing.within


def test_a_path_or_a_second_load_that_fails_is_told_and_keeps_what_others_found(
    tiny, questions, some_paths, monkeypatch
):
    def fail(_):
        raise EngineError("The engine was ended.")

    def refuse(*arguments, fast_paths, **options):
        if not fast_paths:
            raise LoadError("Memory ran out.")
        return load(*arguments, fast_paths=fast_paths, **options)

    load = paths.load_model
    monkeypatch.setattr(paths, "load_model", refuse)
    some_paths(AT_ONCE, **{"written together": fail})
    found = verify_paths(tiny, weights=["int8"], prompts=questions)
    assert [each.failed for each in found.results] == [False, True, True]
    assert found.exceeded == (
        "int8, written together: not compared: The engine was ended",
        "int8, loading: not compared: Memory ran out",
    )
    assert found.results[-1].note == "fast paths of loading off; Memory ran out."
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["within"] is False


def test_each_model_is_gone_before_the_next_is_loaded(quantised, watched):
    assert watched.alive == [False] * 3  # the reference, int8, int8 without fast paths
    gc.collect()
    assert not any(model() is not None for model in watched.models)


def test_auto_is_no_form(tiny):
    with pytest.raises(VerificationError, match="'auto' is none of them"):
        verify_paths(tiny, weights=["auto"])


def test_the_kernels_are_on_again_after_they_were_switched_off():
    before = compiled.few_rows(paths.torch.bfloat16)
    with compiled.switched_off():
        assert compiled.few_rows(paths.torch.bfloat16) is None
        assert compiled.widen_4() is None
    assert compiled.few_rows(paths.torch.bfloat16) is before
