"""`gemma3vl verify`: tables, JSON, one line of what is over a bound, and exit codes."""

import dataclasses
import json
import math
import signal

import pytest

from gemma3vl_app.cli import verify
from gemma3vl_app.errors import VerificationError
from gemma3vl_app.faithfulness import record
from gemma3vl_app.faithfulness.bounds import SAME, Bounds
from gemma3vl_app.faithfulness.path_results import PathResult, PathsVerification
from gemma3vl_app.faithfulness.results import (
    Agreement,
    Compared,
    Deep,
    LayerError,
    PromptAgreement,
    Spot,
    Verification,
    WeightDifference,
)

EQUAL = Agreement(
    positions=40,
    max_difference=0.0,
    mean_kl=0.0,
    max_kl=0.0,
    decided=39,
    kept=39,
    near_ties=1,
    near_ties_kept=1,
)
SPOT = Spot(
    prompt="two pictures", position=7, token=" red", in_answer=True, expected="A", found="B"
)
APART = dataclasses.replace(EQUAL, max_difference=0.5, mean_kl=0.01, max_kl=0.2, worst=SPOT)
DEEP = Deep(
    layers=(LayerError(name="model.language_model.layers.3", error=0.1),),
    first="model.language_model.layers.3",
    weights=(WeightDifference(name="model.norm.weight", error=0.05),),
    unread=2,
)


def side(source: str) -> Compared:
    return Compared(source=source, name=source, revision="", weights="fp32", arithmetic="float32")


def two(total: Agreement, deep: Deep | None = None, bounds: Bounds = SAME) -> Verification:
    """A comparison of which one prompt is all."""
    prompt = PromptAgreement(
        name="two pictures",
        crops="off",
        pictures=2,
        tokens=60,
        agreement=total,
        features_error=0.0,
    )
    return Verification(
        a=side("a"),
        b=side("b"),
        prompts=(prompt,),
        total=total,
        begins="language model" if total.max_difference else "nowhere",
        exceeded=bounds.exceeded(total),
        bounds=bounds.why,
        deep=deep,
    )


def on_paths(total: Agreement) -> PathsVerification:
    measured = PathResult(
        weights="int8",
        path="disk cache",
        crops="on",
        agreement=total,
        exceeded=SAME.exceeded(total),
        bounds="of a table",
    )
    refused = PathResult(
        weights="nf4", path="loading", crops="", agreement=None, note="no kernel here"
    )
    return PathsVerification(reference=side("a"), chosen="w16", results=(measured, refused))


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def asked(monkeypatch):
    """What the command asks for; whatever it is, the models turn out equal."""
    calls = []

    def note(result):
        return lambda *sources, **options: (calls.append((sources, options)), result)[1]

    monkeypatch.setattr(verify, "_two", note(two(EQUAL)))
    monkeypatch.setattr(verify, "_paths", note(on_paths(EQUAL)))
    return calls


def test_equal_models_end_with_0(run, asked, wide):
    code, out, err = run("verify", "demo", "4b-it")
    assert (code, err) == (0, "")
    assert "Every bound holds" in out
    assert "100.0%" in out and "1 of 1" in out
    assert "Picture features and language model are the same." in out


def test_models_that_differ_end_with_1_and_one_line(run, monkeypatch, wide):
    monkeypatch.setattr(verify, "_two", lambda *_, **__: two(APART, DEEP))
    code, out, err = run("verify", "demo", "4b-it", "--deep")
    assert code == 1
    assert err == (
        "Not the same: the largest difference of a logit is 0.5, over 0.0001, "
        "5e+03 times as much.\n"
    )
    assert "after token 7, ' red', in the answer: 'A' was likeliest, here 'B' is." in out
    assert "The difference begins in the language model" in out
    assert "first part whose output differs: model.language_model.layers.3" in out
    assert "Stored weights differ: model.norm.weight (relative error 0.05)" in out
    assert "fewer bits, so not compared: 2 tensors" in out


def test_paths_are_shown_with_those_that_are_not_for_this_machine(run, monkeypatch, wide):
    monkeypatch.setattr(verify, "_paths", lambda *_, **__: on_paths(APART))
    code, out, err = run("verify", "demo", "--against", "fp32")
    assert code == 1
    assert "disk cache" in out and "over the bound" in out
    assert "no kernel here" in out
    assert err.startswith("Not the same: int8, disk cache, crops on: the largest difference")


def test_80_columns_show_every_figure_of_a_path_whole(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    total = dataclasses.replace(EQUAL, max_difference=3.4e-05, mean_kl=2.6e-13, max_kl=5.3e-12)
    long = PathResult(
        weights="int8",
        path="engine, prompt at once, fast paths of loading off",
        crops="off",
        agreement=dataclasses.replace(total, positions=1700),
        own_pass=dataclasses.replace(total, mean_kl=1.9e-13),
        features_error=4.9e-07,
        note="1,700 places of 6 prompts",
    )
    found = dataclasses.replace(on_paths(EQUAL), results=(long,))
    monkeypatch.setattr(verify, "_paths", lambda *_, **__: found)
    _, out, _ = run("verify", "demo", "--against", "fp32")
    assert max(map(len, out.splitlines())) <= 80
    for figure in ("1,700", "3.4e-05", "2.6e-13", "5.3e-12", "100.0%", "1.9e-13", "4.9e-07"):
        assert figure in out


def test_what_failed_alone_ends_with_3(run, monkeypatch, wide):
    failed = PathResult(
        weights="int4",
        path="loading",
        crops="",
        agreement=None,
        exceeded=("not compared: no room",),
    )
    good = on_paths(EQUAL)
    found = dataclasses.replace(good, results=(*good.results, failed))
    monkeypatch.setattr(verify, "_paths", lambda *_, **__: found)
    code, out, err = run("verify", "demo", "--against", "fp32", "--weights", "int4")
    assert (code, err) == (3, "Not compared: int4, loading: not compared: no room.\n")
    assert "Every bound holds" not in out
    assert "failed" in out


def test_not_quite_all_is_not_shown_as_all(run, monkeypatch, wide):
    nearly = dataclasses.replace(EQUAL, decided=5000, kept=4998)
    monkeypatch.setattr(verify, "_two", lambda *_, **__: two(nearly))
    _, out, _ = run("verify", "demo", "4b-it")
    assert "99.9%" in out and "100.0%" not in out


def test_json_has_no_infinity(run, monkeypatch, wide):
    far = dataclasses.replace(APART, max_difference=math.inf, mean_kl=math.inf)
    monkeypatch.setattr(verify, "_two", lambda *_, **__: two(far))
    code, out, err = run("verify", "demo", "4b-it", "--json", "-")
    assert code == 1
    assert "is inf, over 0.0001." in err
    assert json.loads(out, parse_constant=pytest.fail)["total"]["mean_kl"] == "Infinity"


@pytest.fixture
def handlers():
    """Signals that nobody takes fail a test instead of ending all of them."""

    def untaken(number, _frame):
        pytest.fail(f"nobody took signal {number}")

    before = {each: signal.signal(each, untaken) for each in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def test_what_was_written_aside_is_deleted_where_the_command_is_ended(
    run, monkeypatch, tmp_path, handlers
):
    monkeypatch.setattr(record.tempfile, "tempdir", str(tmp_path))

    def ended(*_, **__):
        with record.Record():
            assert list(tmp_path.iterdir()) != []
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(verify, "_two", ended)
    code, _, _ = run("verify", "demo", "4b-it")
    assert code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_json_goes_to_a_file_or_alone_to_stdout(run, asked, wide, tmp_path):
    code, out, _ = run("verify", "demo", "4b-it", "--json", "-")
    alone = json.loads(out)
    assert (code, alone["within"], alone["total"]["top1"]) == (0, True, 1)
    code, out, _ = run("verify", "demo", "4b-it", "--json", str(tmp_path / "found.json"))
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == alone
    assert "two pictures" in out


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(run, asked, tmp_path):
    for file in (tmp_path / "no" / "found.json", tmp_path):
        code, _, err = run("verify", "demo", "4b-it", "--json", str(file))
        assert code == 3
        assert "cannot be written" in err
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_comparison(run, asked, tmp_path):
    run(
        "verify",
        "demo",
        "4b-it",
        "--weights",
        "w16",
        "--weights-b",
        "nf4",
        "--max-kl",
        "0.1",
        "--deep",
    )
    run("verify", "demo", "--against", "fp32", "--weights", "int8", "--weights", "nf4")
    (sources, two_options), (alone, paths_options) = asked
    assert (sources, alone) == (("demo", "4b-it"), ("demo",))
    assert (two_options["weights"], two_options["weights_b"]) == ("w16", "nf4")
    assert two_options["bounds"].max_kl == 0.1
    assert two_options["deep"]
    assert paths_options["weights"] == ("int8", "nf4")
    assert not paths_options["bounds"].are_given


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo"], "Name a second MODEL, or compare with --against fp32"),
        (["demo", "4b-it", "--against", "fp32"], "Name a second MODEL"),
        (["demo", "--against", "nf4"], "fp32"),
        (["demo", "--against", "fp32", "--deep"], "for two models"),
        (["demo", "4b-it", "--weights", "fp16"], "--weights fp16 is refused"),
        (["demo", "4b-it", "--weights", "fp32", "--weights", "nf4"], "name --weights once"),
        (["demo", "4b-it", "--max-kl", "-1"], "--max-kl is -1.0; it must be 0 or more"),
        (["demo", "4b-it", "--min-top1", "2"], "--min-top1 is 2.0; it must be from 0 to 1"),
        (["demo", "http://127.0.0.1:1/v1"], "server's address"),
    ],
)
def test_a_wrong_command_line_ends_with_2(run, arguments, said):
    code, out, err = run("verify", *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_models_that_cannot_be_compared_are_refused_in_words(run, monkeypatch):
    def refuse(*_, **__):
        raise VerificationError("The models' tokenizers differ.")

    monkeypatch.setattr(verify, "_two", refuse)
    assert run("verify", "demo", "4b-it") == (3, "", "The models' tokenizers differ.\n")
