"""The tower runs in units, on patch vectors that lie one after the other."""

import torch

from gemma3vl_app.engine.vision import VisionEncoder
from gemma3vl_app.loading import load_model


@torch.inference_mode()
def test_patch_vectors_lie_in_order_before_and_after_each_layer(tiny):
    model = load_model(tiny, weights="fp32").model
    encoder = VisionEncoder(model.model, unit_sec=1.0)
    side = model.config.vision_config.image_size
    hidden = encoder.embed(torch.randn(2, 3, side, side))
    assert hidden.is_contiguous()
    for layer in encoder.layers:
        hidden = layer(hidden)
        assert hidden.is_contiguous()
