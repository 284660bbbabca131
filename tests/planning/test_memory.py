"""What the formulas say that weights take is what quantising really stores."""

import pytest
import torch
from transformers import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer

from gemma3vl_app.loading import int8, nf4
from gemma3vl_app.planning import memory
from gemma3vl_app.planning.architecture import architecture

CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 64,
    "sliding_window": 16,
}


@pytest.mark.parametrize(("weights", "quantise"), [("int8", int8.quantise), ("nf4", nf4.quantise)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_quantised_layer_takes_what_the_formula_says(weights, quantise, dtype):
    # A real layer, really quantised: matrices with their float32 scales, norms in `dtype`.
    layer = Gemma3DecoderLayer(Gemma3TextConfig(**CONFIG), layer_idx=0).to(getattr(torch, dtype))
    matrices = {m.weight for m in layer.modules() if isinstance(m, torch.nn.Linear)}
    stored = sum(p.nbytes for p in layer.parameters() if p not in matrices)
    for matrix in matrices:
        parts = quantise(matrix.detach()).items()
        # nf4's parts hold its table of 16 levels and its settings, too: the same for any size.
        stored += sum(part.nbytes for key, part in parts if key in ("", int8.SCALE, nf4.ABSMAX))
    assert memory.weight_bytes(architecture(CONFIG).layers[0], weights, dtype) == stored


@pytest.mark.parametrize(("weights", "dtype"), [("bf16", "bfloat16"), ("fp32", "float32")])
def test_a_layer_as_it_is_takes_what_its_parameters_take(weights, dtype):
    layer = Gemma3DecoderLayer(Gemma3TextConfig(**CONFIG), layer_idx=0).to(getattr(torch, dtype))
    stored = sum(p.nbytes for p in layer.parameters())
    assert memory.weight_bytes(architecture(CONFIG).layers[0], weights, dtype) == stored
