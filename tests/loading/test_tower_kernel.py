"""The tower's attention in C: right where it is compiled, and never missed where it is not."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gemma3vl_app.loading import c_library, tower_attention, tower_kernel
from gemma3vl_app.loading.cache import CACHE_VARIABLE

ROUNDED = 4e-3  # relative error: what torch's own attention in bfloat16 errs by, twice


@pytest.fixture
def kernel():
    found = tower_kernel.tower_kernel()
    if found is None:
        pytest.skip("no compiler here, or a processor without AVX512-BF16")
    return found


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Nothing is compiled yet, and nothing of it stays."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    tower_kernel.tower_kernel.cache_clear()
    yield tmp_path
    tower_kernel.tower_kernel.cache_clear()


def given(*shape, seed=0):
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=made).bfloat16() for _ in range(3)]


def exact(query, key, value, scaling):
    wide = (each.float().transpose(1, 2) for each in (query, key, value))
    return scaled_dot_product_attention(*wide, scale=scaling).transpose(1, 2)


def error(found, expected):
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("patches", [1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 300])
@pytest.mark.parametrize(("heads", "width"), [(1, 2), (3, 12), (2, 70), (2, 72), (1, 128)])
def test_it_attends_as_torch_does_in_float32(kernel, pictures, patches, heads, width):
    inputs = given(pictures, patches, heads, width, seed=patches)
    found = kernel(*inputs, width**-0.5)
    assert found.dtype == torch.bfloat16
    assert error(found, exact(*inputs, width**-0.5)) < ROUNDED


@pytest.mark.parametrize("size", [1e-3, 1.0, 10.0, 300.0])
def test_scores_of_any_size_are_softened_rightly(kernel, size):
    query, key, value = given(1, 400, 2, 72)
    query = query * size  # of 300: one key takes all, and others are nothing
    assert error(kernel(query, key, value, 0.1), exact(query, key, value, 0.1)) < ROUNDED


def test_it_does_not_matter_in_which_order_the_largest_scores_come(kernel):
    query, key, value = given(1, 512, 1, 72)
    rising = key[:, torch.argsort((query[:, :1] * key).sum(-1)[0, :, 0])]
    for keys in (rising, rising.flip(1)):
        assert error(kernel(query, keys, value, 1.0), exact(query, keys, value, 1.0)) < ROUNDED


def test_what_lies_scattered_in_memory_is_attended_rightly(kernel):
    inputs = [each.permute(3, 2, 0, 1) for each in given(2, 8, 65, 3)]
    assert not inputs[0].is_contiguous()
    assert error(kernel(*inputs, 0.3), exact(*inputs, 0.3)) < ROUNDED
    shifted = [each.flatten()[1:-7].view(1, 49, 2, 4) for each in given(1, 50, 2, 4)]
    assert error(kernel(*shifted, 0.3), exact(*shifted, 0.3)) < ROUNDED


@pytest.mark.parametrize("which", [0, 1, 2])
def test_not_a_number_stays_one_and_in_its_head(kernel, which):
    inputs = given(1, 200, 2, 72)
    inputs[which][0, 150, 1, 3] = float("nan")
    found, expected = kernel(*inputs, 0.1), exact(*inputs, 0.1)
    assert found.isnan().equal(expected.isnan())
    assert found[:, :, 1].isnan().any() and not found[:, :, 0].isnan().any()


@pytest.mark.parametrize("shape", [(0, 5, 2, 4), (1, 0, 2, 4), (1, 5, 0, 4)])
def test_of_nothing_comes_nothing(kernel, shape):
    assert kernel(*given(*shape), 0.5).shape == shape


@pytest.mark.parametrize(
    ("inputs", "scaling"),
    [
        ([torch.ones(1, 4, 2, 8)] * 3, 0.5),
        ([torch.ones(4, 2, 8).bfloat16()] * 3, 0.5),
        ([torch.ones(1, 4, 2, 7).bfloat16()] * 3, 0.5),
        ([torch.ones(1, 4, 2, 130).bfloat16()] * 3, 0.5),
        ([torch.ones(1, 4, 2, 8).bfloat16()] * 3, -0.5),
        ([torch.ones(1, 4, 2, 8).bfloat16(), *[torch.ones(1, 3, 2, 8).bfloat16()] * 2], 0.5),
        ([*[torch.ones(1, 4, 2, 8).bfloat16()] * 2, torch.ones(1, 4, 2, 8)], 0.5),
        ([torch.ones(1, 4, 2, 8, device="meta").bfloat16()] * 3, 0.5),
    ],
)
def test_other_kinds_and_sizes_are_refused_before_memory_is_read(kernel, inputs, scaling):
    with pytest.raises(TypeError):
        kernel(*inputs, scaling)


@pytest.mark.parametrize(
    ("dtype", "width", "scaling", "learns", "by_kernel"),
    [
        (torch.bfloat16, 8, 0.5, False, True),
        (torch.bfloat16, 7, 0.5, False, False),
        (torch.bfloat16, 8, -0.5, False, False),
        (torch.bfloat16, 8, 0.5, True, False),
        (torch.float32, 8, 0.5, False, False),
    ],
)
def test_torch_stands_in_for_what_the_kernel_cannot_do(
    dtype, width, scaling, learns, by_kernel, monkeypatch
):
    used = []

    def kernel(query, key, value, scaling):
        used.append(query.shape)
        return exact(query, key, value, scaling).to(query.dtype)

    monkeypatch.setattr(tower_attention, "tower_kernel", lambda: kernel)
    inputs = [each.to(dtype).requires_grad_(learns) for each in given(1, 5, 2, width)]
    seen = (each.transpose(1, 2) for each in inputs)
    found, _ = tower_attention.attend(torch.nn.Module(), *seen, None, scaling=scaling)
    assert used == ([(1, 5, 2, width)] if by_kernel else [])
    assert error(found.detach(), exact(*inputs, scaling).detach()) < 0.02
    assert found.requires_grad == learns


@pytest.mark.parametrize(
    "trouble",
    [
        {"COMPILERS": ("no-such-compiler",)},
        {"FLAGS": ("--no-such-flag",)},
        {"CLOSE": -1.0},
        {"COMPILE_SEC": 1e-6},
    ],
)
def test_without_a_kernel_torch_stands_in(fresh, monkeypatch, trouble):
    for name, value in trouble.items():
        owner = tower_kernel if hasattr(tower_kernel, name) else c_library
        monkeypatch.setattr(owner, name, value)
    assert tower_kernel.tower_kernel() is None
    inputs = given(1, 70, 2, 8)
    seen = (each.transpose(1, 2) for each in inputs)
    found, _ = tower_attention.attend(torch.nn.Module(), *seen, None, scaling=0.5)
    assert error(found, exact(*inputs, 0.5)) < 0.02


def test_it_is_not_compiled_for_a_processor_without_the_instructions(fresh, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert tower_kernel.tower_kernel() is None
    assert not any(fresh.iterdir())
