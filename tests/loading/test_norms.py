"""Fewer operations than transformers' seven: the same numbers."""

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from gemma3vl_app.loading import load_model
from gemma3vl_app.loading.norms import FusedRMSNorm, plain_norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-4, 1.0, 3e4])
@pytest.mark.parametrize("rows", [(3, 5), (1, 1)])
def test_it_computes_what_transformers_computes(dtype, size, rows):
    torch.manual_seed(0)
    theirs, ours = Gemma3RMSNorm(64), FusedRMSNorm(0)
    theirs.weight.data = torch.randn(64).to(dtype)
    ours.take(theirs.weight.data)
    x = (size * (torch.randn(*rows, 64) + 1)).to(dtype)  # of a mean that must stay in
    found, expected = ours(x), theirs(x)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert torch.allclose(found, expected, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5)


def test_its_gradient_is_theirs():
    theirs, ours = Gemma3RMSNorm(16), FusedRMSNorm(0)
    ours.take(theirs.weight.data)
    gradients = []
    for norm in (theirs, ours):
        x = torch.linspace(-1, 2, 16, requires_grad=True)
        (norm(x) ** 3).sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, atol=1e-5)


def test_every_norm_of_a_loaded_models_text_is_fused(tiny):
    text = load_model(tiny, weights="fp32").model.model.language_model
    norms = [each for each in text.modules() if isinstance(each, Gemma3RMSNorm)]
    assert len(norms) == 6 * 6 + 1
    assert all(type(each) is FusedRMSNorm for each in norms)


def test_for_training_norms_are_transformers_own_and_learn(tiny):
    model = load_model(tiny, weights="fp32", for_training=True).model
    norms = [each for each in model.modules() if isinstance(each, Gemma3RMSNorm)]
    assert all(type(each) is Gemma3RMSNorm for each in norms)
    for norm in norms:
        norm.weight.requires_grad_(True)
    model(input_ids=torch.tensor([[2, 105, 7]])).logits.sum().backward()
    text = [
        each for each in model.model.language_model.modules() if isinstance(each, Gemma3RMSNorm)
    ]
    assert all(each.weight.grad is not None and each.weight.grad.abs().max() > 0 for each in text)


def test_transformers_own_norms_stand_in_meanwhile():
    fused = FusedRMSNorm(4)
    fused.take(torch.tensor([0.5, 0.0, -0.5, 1.0]))
    model, x = torch.nn.Sequential(fused), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    with plain_norms(model):
        assert type(model[0]) is Gemma3RMSNorm
        assert torch.allclose(model(x), FusedRMSNorm.forward(fused, x))
    assert type(model[0]) is FusedRMSNorm
