"""What 16 bits cost a picture is measured as it is meant: nothing without them, a little with."""

import pytest

from gemma3vl_app.benchmark import features


def test_in_32_bits_nothing_is_lost(tiny):
    ours, theirs = features.errors(tiny, "fp32")
    assert ours < 1e-5 and theirs < 1e-5


def test_in_16_bits_ours_and_transformers_lose_about_the_same(tiny):
    ours, theirs = features.errors(tiny, "bf16")
    assert 1e-4 < theirs < 0.1
    assert ours == pytest.approx(theirs, rel=1.0)
