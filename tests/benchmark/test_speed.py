"""Speeds of one model: what work is counted, and what `gemma3vl bench` says of it."""

import json
import math

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from gemma3vl_app.benchmark import baseline, ceilings, speed, weights
from gemma3vl_app.benchmark.speed import Figure, Speed
from gemma3vl_app.cli import bench
from gemma3vl_app.loading import load_model
from tests.cli.conftest import run as run  # the command line, as tests/cli runs it


def test_the_bytes_of_a_token_are_those_of_the_weights_it_reads(tiny):
    model = load_model(tiny, weights="fp32").model
    text = model.model.language_model
    matrices = [module for module in text.layers.modules() if isinstance(module, torch.nn.Linear)]
    stored = sum(module.weight.numel() for module in matrices)
    found = weights.count(model)
    assert found.text_weights == stored
    assert found.token_bytes == 4 * (stored + model.lm_head.weight.numel())
    assert found.kv_bytes == 2 * 1 * 2 * 16 * 4  # one global layer, 2 heads of 16, fp32
    assert found.prefill_flop(10) == 20 * stored


def test_four_bits_are_counted_with_their_scales(tiny):
    exact, quantised = (
        load_model(tiny, weights=kind, fast_paths=False).model for kind in ("fp32", "nf4")
    )
    whole, packed = weights.count(exact), weights.count(quantised)
    head_bytes = 262_208 * 64 * quantised.lm_head.weight.itemsize
    assert packed.text_weights == whole.text_weights
    per_weight = (packed.token_bytes - head_bytes) / packed.text_weights
    assert 0.5 < per_weight < 0.6


def test_the_towers_operations_are_those_of_its_matrices(tiny):
    found = weights.count(load_model(tiny, weights="fp32").model).tower_flop
    patches, width, inner, layers = 64, 48, 96, 2
    matrices = layers * (4 * width**2 + 2 * width * inner) + 3 * 8**2 * width
    attention = layers * 4 * patches**2 * width
    projector = 2 * 16 * width * 64
    assert found == 2 * patches * matrices + attention + projector


def test_seconds_are_the_middle_of_several_after_a_first_that_does_not_count(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0, 30.0, 36.0])
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: next(clock))
    done = []
    assert ceilings.seconds(lambda: done.append(1) or torch.zeros(1), 3) == 3.0
    assert len(done) == 4


@pytest.mark.slow
def test_a_tiny_model_is_measured_beside_transformers(tiny):
    said = []
    ours = load_model(tiny, weights="w16")
    found = speed.measure(ours, contexts=[64, 512], say=said.append)
    theirs = baseline.load_theirs(tiny, ours.plan, {})
    assert {type(each) for each in theirs.model.modules() if isinstance(each, Gemma3RMSNorm)} == {
        Gemma3RMSNorm
    }
    assert theirs.plan.weights == "fp32"
    found = speed.beside(found, baseline.measure_transformers(theirs, said.append))
    assert list(found.sec_per_token) == [64, 512]
    assert [each.name for each in found.figures] == [
        "new pictures, tower and projector",
        "reading a prompt of 512 tokens",
        "writing, 512 tokens of context",
        "writing, 64 tokens of context",
        "writing, 8 conversations together",
    ]
    assert all(each.value > 0 and math.isfinite(each.value) for each in found.figures)
    assert all(0 <= each.share < 2 for each in found.figures)
    assert [each.ratio is not None for each in found.figures] == [True, True, True, False, True]
    assert said[0] == "the machine"


SPEED = Speed(
    ceilings=ceilings.Ceilings(20e9, 100e9),
    figures=(
        Figure(
            name="reading", value=50, unit="tokens/s", share=0.5, limit="multiplying", baseline=25
        ),
        Figure(name="writing", value=8, unit="t/s"),
    ),
    sec_per_token={512: 0.1, 2048: 0.2},
)


@pytest.fixture
def measured(monkeypatch):
    asked = []

    def measure(model, layers, lengths, wishes, *, fast_paths, against_transformers):
        asked.append((model, layers, lengths, wishes.weights, fast_paths, against_transformers))
        return {"model": model, "weights": "bf16", "arithmetic": "bfloat16 on cpu"}, SPEED

    monkeypatch.setattr(bench, "_measured", measure)
    return asked


def test_people_get_a_table_with_shares_ratios_and_a_chart(measured, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run("bench", "demo", "--vs", "transformers", "--contexts", "2048,512")
    assert code == 0
    assert measured == [("demo", None, [512, 2048], "auto", True, True)]
    assert "50% of multiplying" in out and "2.00" in out
    assert "reads 20.0 GB/s and multiplies at 100 GFLOP/s" in out
    assert f"2,048  {'█' * 40} 200.0" in out and f"512  {'█' * 20} 100.0" in out


def test_programs_get_one_line_of_json(measured, run):
    code, out, _ = run("bench", "--json")
    found = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert found["figures"][0]["ratio"] == 2
    assert found["sec_per_token"] == {"512": 0.1, "2048": 0.2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--contexts", "many"), "between 32 and 131,072"),
        (("--contexts", "5"), "between 32 and 131,072"),
        (("demo", "--layers", "2"), "as wide as 4b-it"),
        (("nothing-like-it",), "no model"),
    ],
)
def test_wishes_that_make_no_sense_are_told_in_a_line(run, words, message):
    code, _, err = run("bench", *words)
    assert code != 0
    assert message in " ".join(err.split())
