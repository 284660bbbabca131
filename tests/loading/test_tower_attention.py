"""The tower's attention in pieces is attention."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gemma3vl_app.loading import load_model, tower_attention


@pytest.mark.parametrize("queries", [1, 3, 64, 512])
def test_it_equals_torchs(queries, monkeypatch):
    monkeypatch.setattr(tower_attention, "QUERIES", queries)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 10, 4, 12).transpose(1, 2) for _ in range(3))
    found, weights = tower_attention.attend(
        torch.nn.Module(), query, key, value, None, scaling=0.3, dropout=0.0, is_causal=False
    )
    expected = scaled_dot_product_attention(query, key, value, scale=0.3).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-5)
    assert weights is None


def test_in_bfloat16_it_errs_at_most_twice_as_much_as_torchs():
    torch.manual_seed(1)
    exact = [torch.randn(1, 4, 256, 72) for _ in range(3)]
    rounded = [each.bfloat16() for each in exact]
    expected = scaled_dot_product_attention(*(each.float() for each in rounded))
    theirs = scaled_dot_product_attention(*rounded).float()
    ours, _ = tower_attention.attend(torch.nn.Module(), *rounded, None, scaling=72**-0.5)
    error = (ours.transpose(1, 2).float() - expected).norm()
    assert error < 3 * (theirs - expected).norm()


def test_a_gradient_flows():
    query, key, value = (torch.randn(1, 2, 6, 4, requires_grad=True) for _ in range(3))
    tower_attention.attend(torch.nn.Module(), query, key, value, None, scaling=0.5)[
        0
    ].sum().backward()
    mine = value.grad.clone()
    value.grad = None
    scaled_dot_product_attention(query, key, value, scale=0.5).sum().backward()
    assert torch.allclose(mine, value.grad, atol=1e-5)


def test_a_tower_with_it_sees_the_same(tiny):
    model = load_model(tiny, weights="fp32").model
    side = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.get_image_features(pixels).pooler_output
        tower_attention.use(model)
        found = model.get_image_features(pixels).pooler_output
    assert torch.allclose(found, expected, atol=1e-4)
