"""4 bits in groups of 32: the kernel's product is that of the matrix that the parts stand for."""

import os
import subprocess
import sys

import pytest
import torch

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading import compiled, compiled_bf16, int4, load_model, nf4

N, K = 192, 128


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, params=["order here", "order of torch"])
def _order(request, monkeypatch):
    """Where our own kernel has an order, torch's must be right beside it: elsewhere it is used."""
    if request.param == "order of torch":
        monkeypatch.setattr(compiled_bf16, "is_here", lambda: False)
    int4.is_supported.cache_clear()
    yield
    monkeypatch.undo()
    int4.is_supported.cache_clear()


def relative(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def test_it_errs_less_than_nf4_on_normal_weights():
    weight = torch.randn(512, 1280)
    error = relative(int4.dequantise(int4.quantise(weight), torch.float32), weight)
    assert error < 0.08 < relative(nf4.dequantise(nf4.quantise(weight)), weight)


@pytest.mark.parametrize("scales_are", [torch.bfloat16, torch.float16])
def test_weights_on_the_grid_of_q4_0_keep_their_codes(scales_are):
    scales = (torch.rand(N, K // 32, 1) + 0.01).to(scales_are).float()
    codes = torch.randint(0, 16, (N, K // 32, 32)).float()
    codes[..., 0] = 0  # the value that gives Q4_0 its scale: -8 of it
    weight = ((codes - 8) * scales).reshape(N, K)
    found = int4.dequantise(int4.quantise(weight), torch.float32)
    assert relative(found, weight) <= (0 if scales_are == torch.bfloat16 else 0.003)


@pytest.mark.parametrize("value", [0.0, 1e-30, -3.0, 1e4])
def test_constant_groups_are_kept(value):
    weight = torch.full((N, K), value)
    found = int4.dequantise(int4.quantise(weight), torch.float32)
    assert torch.isfinite(found).all()
    assert torch.allclose(found, weight, rtol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_and_without_the_compiled_kernel_the_matrix_is_the_same(dtype, monkeypatch):
    monkeypatch.setattr(int4, "ROWS_AT_ONCE", 64)  # in pieces of a larger table of scales
    parts = int4.quantise(torch.randn(N, K))
    found = int4.dequantise(parts, dtype)
    monkeypatch.setattr(compiled, "widen_4", lambda: None)
    expected = int4.dequantise(parts, dtype)
    assert found.dtype == expected.dtype == dtype
    # The kernel rounds to bf16 once, torch after each of its steps.
    assert relative(found, expected) < (0.01 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 32, 33, 65])
def test_the_product_is_that_of_the_matrix(rows, dtype, monkeypatch):
    monkeypatch.setattr(int4, "WIDENED", 1)  # one block of the matrix at a time
    parts = int4.quantise(torch.randn(N, K))
    layer, x = int4.Int4Linear(parts), torch.randn(2, rows, K).to(dtype)[:, : (rows + 1) // 2]
    expected = x.float() @ int4.dequantise(parts, torch.float32).T
    found = layer(x)
    assert found.dtype == dtype and found.shape == expected.shape
    assert relative(found, expected) < 0.01  # the kernel's activations and results are bf16


def test_many_rows_in_float32_are_exact():
    parts = int4.quantise(torch.randn(N, K))
    x = torch.randn(33, K)
    expected = x @ int4.dequantise(parts, torch.float32).T
    assert relative(int4.Int4Linear(parts)(x), expected) < 1e-6


def test_a_gradient_flows_through_the_numbers():
    parts = int4.quantise(torch.randn(N, K))
    x = torch.randn(2, K, requires_grad=True)
    int4.Int4Linear(parts)(x).sum().backward()
    assert torch.allclose(x.grad[0], int4.dequantise(parts, torch.float32).sum(0), atol=1e-4)


def test_where_the_kernel_has_another_order_it_is_not_offered():
    code = (
        "from gemma3vl_app.loading import int4; from gemma3vl_app.loading.loader import load_model;"
        "print(int4.is_supported())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int4.is_supported(), other.stdout.strip()) == (True, "False")


def test_a_model_is_refused_where_the_kernel_has_another_order(tiny, monkeypatch):
    monkeypatch.setattr(int4, "is_supported", lambda: False)
    with pytest.raises(LoadError, match=r"needs a processor with AVX2.*Use 'int8'"):
        load_model(tiny, weights="int4")


def test_shapes_that_the_kernel_cannot_take_are_told():
    assert int4.fits((64, 32)) and int4.fits((192, 96))
    assert not int4.fits((63, 32)) and not int4.fits((64, 48))
