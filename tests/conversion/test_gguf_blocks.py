"""Numbers in GGUF's blocks: ggml's own rule, and weights that lie on a Q4_0 grid already."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma3vl_app.conversion.gguf_blocks import encode, on_the_grid

BLOCKS = 500


def decoded(stored, kind=Kind.Q4_0):
    return torch.from_numpy(gguf.dequantize(stored, kind).copy())


def grid(seed, largest, exponents=(-18, 4)):
    """Random blocks d * q in fp32, |q| up to `largest` (8: from -8 to 7), d anything of fp16."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(*exponents, (BLOCKS, 1), generator=generator).float().exp2()
    d = (torch.randn(BLOCKS, 1, generator=generator) * sizes).to(torch.float16).float()
    q = torch.randint(-largest, min(largest, 7) + 1, (BLOCKS, 32), generator=generator)
    return d * q


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    largest=st.integers(1, 8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_weights_on_a_grid_come_back_bit_by_bit(seed, largest, dtype):
    """In fp32 a product of d and q is whole; in bf16, as Google ships weights, it is rounded."""
    weights = grid(seed, largest).to(dtype)
    found, _, _ = on_the_grid(weights)
    assert len(found) == (weights != 0).any(1).sum()
    back = decoded(encode(weights, Kind.Q4_0)).to(dtype)
    assert torch.equal(back, weights)


def test_ggmls_rule_alone_would_lose_such_a_grid():
    """The reason for looking: a block whose largest number is 7 d gets another d."""
    weights = grid(1, largest=7)
    assert not torch.equal(decoded(gguf.quantize(weights.numpy(), Kind.Q4_0)), weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_that_ggml_made_come_back_as_the_same_bytes(dtype):
    numbers = torch.randn(64, 128, generator=torch.Generator().manual_seed(2)).numpy()
    stored = gguf.quantize(numbers, Kind.Q4_0)
    weights = decoded(stored).to(dtype)
    again = encode(weights, Kind.Q4_0)
    if dtype == torch.float32:
        assert np.array_equal(again, stored)
    else:  # what rounding leaves of d may be said by several; q is the same
        apart = [each.reshape(-1, 18) for each in (again, stored)]
        assert np.array_equal(apart[0][:, 2:], apart[1][:, 2:])
        assert torch.equal(decoded(again).to(dtype), weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_weights_are_stored_by_ggmls_rule(dtype):
    weights = torch.randn(64, 128, generator=torch.Generator().manual_seed(3)).to(dtype)
    weights[0] = 0
    assert len(on_the_grid(weights.reshape(-1, 32))[0]) == 0
    assert np.array_equal(
        encode(weights, Kind.Q4_0), gguf.quantize(weights.float().numpy(), Kind.Q4_0)
    )


def test_a_row_may_have_blocks_of_both_kinds():
    weights = torch.randn(8, 64, generator=torch.Generator().manual_seed(4))
    weights[:, 32:] = grid(4, largest=6)[:8]
    back = decoded(encode(weights, Kind.Q4_0))
    assert torch.equal(back[:, 32:], weights[:, 32:])
    by_ggml = decoded(gguf.quantize(weights[:, :32].contiguous().numpy(), Kind.Q4_0))
    assert torch.equal(back[:, :32], by_ggml)


def test_values_that_are_not_numbers_do_not_pass_for_a_grid():
    weights = grid(5, largest=8)[:4]
    weights[0, 3], weights[1, 5] = float("nan"), float("inf")
    assert set(on_the_grid(weights)[0].tolist()) <= {2, 3}


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0])
def test_the_other_types_are_the_gguf_packages_own(kind):
    weights = torch.randn(16, 64, generator=torch.Generator().manual_seed(6))
    theirs = gguf.quantize(weights.numpy(), kind)
    assert encode(weights, kind).tobytes() == theirs.tobytes()
