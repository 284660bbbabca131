"""What fewer bits cost is measured as it is meant: nothing without loss, more with fewer bits."""

import pytest
import torch

from gemma3vl_app.benchmark import quality, speed
from gemma3vl_app.engine.attention import Batch
from gemma3vl_app.engine.model import TextModel
from gemma3vl_app.loading import load_model

IDS = [2, *range(500, 640)]


@pytest.fixture
def here(monkeypatch):
    """A processor without bfloat16, wherever the tests run."""
    monkeypatch.setattr(quality, "unquantised", lambda: "w16")


def test_the_divergence_grows_with_what_is_lost(tiny, here):
    exact, eight, four = (quality.divergence(tiny, kind, IDS) for kind in ("fp32", "int8", "int4"))
    assert abs(exact) < 1e-6
    assert exact < eight < four
    whole_table = quality.divergence(tiny, "int4", IDS, fast_paths=False)
    assert whole_table == pytest.approx(four, rel=0.5)


def test_the_text_has_2000_tokens_after_its_first():
    ids = quality.text_ids()
    assert len(ids) == 2000 and ids[0] == 2


@torch.inference_mode()
def test_random_keys_and_values_are_those_of_a_sequence_of_that_length(tiny):
    model = load_model(tiny, weights="fp32").model
    text = TextModel(model)
    kv = speed.random_kv(text, 100)
    assert kv.length == 100
    hidden = text.forward(text.embed(torch.tensor([[7]])), Batch([kv], 1))
    assert kv.length == 101 and torch.isfinite(hidden).all()
    assert speed.step_sec(model, 64) > 0
