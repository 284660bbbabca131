"""Every form and path is compared with the reference; a path that computes wrongly is seen."""

import gc

import pytest

from gemma3vl_app.errors import LoadError, VerificationError
from gemma3vl_app.faithfulness import paths, reader, verify_paths
from gemma3vl_app.faithfulness.bounds import FORM_BOUNDS, Bounds
from gemma3vl_app.faithfulness.engine_paths import NO_KERNELS, OF_EVERY_FORM, PATHS
from gemma3vl_app.loading import compiled
from gemma3vl_app.loading.norms import FusedRMSNorm
from tests.faithfulness.conftest import Watched

SOME = ("engine, prompt at once", "written together")


@pytest.fixture(scope="module")
def exact(tiny, long_question):
    """fp32 on every path."""
    return verify_paths(tiny, weights=["fp32"], prompts=long_question)


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def quantised(tiny, shown, watched):
    """int8 on its paths, with a picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "load_model", watched.load_model)
        patch.setattr(paths, "load_model", watched.load_model)
        return verify_paths(tiny, weights=["int8"], pictures=shown)


def test_fp32_is_the_same_on_every_path(exact):
    assert [each.path for each in exact.results] == [name for name in PATHS if name != NO_KERNELS]
    assert exact.within
    for each in exact.results:
        assert each.agreement.max_difference < 1e-4
        assert each.agreement.top1 == 1
        assert each.agreement.positions >= 16


def notes(found) -> dict[str, str]:
    return {each.path: each.note for each in found.results}


def test_what_a_path_is_about_really_happened(exact):
    known = {path: int(note.split()[0]) for path, note in notes(exact).items() if "known" in note}
    assert known.keys() == {"prefix reused", "disk cache"}
    assert min(known.values()) >= 64
    right, _, guessed = notes(exact)["guessed ahead"].split()[:3]
    assert 0 < int(right) < int(guessed)  # wrong guesses were taken back, too


def test_fewer_bits_are_measured_with_crops_off_and_on_with_fast_paths_and_without(quantised):
    shown = {(each.path, each.crops) for each in quantised.results}
    expected = {(path, crops) for path in OF_EVERY_FORM for crops in ("off", "on")}
    if compiled.few_rows(paths.torch.bfloat16) is None:
        expected -= {(NO_KERNELS, "off"), (NO_KERNELS, "on")}
    assert shown == expected
    assert quantised.within
    assert all(each.agreement.mean_kl > 0 for each in quantised.results)
    assert all(each.features_error < 1e-5 for each in quantised.results)  # the tower stays as it is
    loading = {each.note for each in quantised.results if each.path == OF_EVERY_FORM[0]}
    assert loading == {"output matrix int8", "fast paths of loading off"}


def test_given_bounds_replace_those_of_the_table(quantised):
    worst = max(each.agreement.mean_kl for each in quantised.results)
    assert worst < FORM_BOUNDS["int8"].max_mean_kl
    assert Bounds(max_mean_kl=worst / 2).exceeded(
        max((each.agreement for each in quantised.results), key=lambda each: each.mean_kl)
    )


def test_a_fast_path_that_computes_wrongly_is_seen(tiny, questions, monkeypatch):
    right = FusedRMSNorm.forward
    monkeypatch.setattr(FusedRMSNorm, "forward", lambda norm, x: right(norm, x) * 1.01)
    monkeypatch.setattr(paths, "PATHS", {name: PATHS[name] for name in (NO_KERNELS, *SOME)})
    found = verify_paths(tiny, weights=["fp32"], prompts=questions)
    assert not found.within
    assert {each.path for each in found.results if each.exceeded} == {*SOME}
    assert "fp32, engine, prompt at once, crops off: the largest difference" in found.exceeded[0]


def test_a_form_that_cannot_run_here_is_told_and_is_not_over_a_bound(tiny, questions, monkeypatch):
    def refuse(*_, **__):
        raise LoadError("weights='int4' needs AVX2.")

    monkeypatch.setattr(paths, "load_model", refuse)
    found = verify_paths(tiny, weights=["int4"], prompts=questions)
    (only,) = found.results
    assert (only.agreement, only.note) == (None, "weights='int4' needs AVX2.")
    assert found.within


def test_each_model_is_gone_before_the_next_is_loaded(quantised, watched):
    assert watched.alive == [False] * 3  # the reference, int8, int8 without fast paths
    gc.collect()
    assert not any(model() is not None for model in watched.models)


def test_auto_is_no_form(tiny):
    with pytest.raises(VerificationError, match="auto"):
        verify_paths(tiny, weights=["auto"])


def test_the_kernels_are_on_again_after_they_were_switched_off():
    before = compiled.few_rows(paths.torch.bfloat16)
    with compiled.switched_off():
        assert compiled.few_rows(paths.torch.bfloat16) is None
        assert compiled.widen_4() is None
    assert compiled.few_rows(paths.torch.bfloat16) is before
