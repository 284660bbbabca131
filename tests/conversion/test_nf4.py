"""Files in 4 bits hold what loading in 4 bits computes, and bitsandbytes' users can read them."""

import json

import pytest
import torch
from transformers import Gemma3ForConditionalGeneration

from gemma3vl_app.conversion.converting import Bridge, convert
from gemma3vl_app.errors import ConversionError
from gemma3vl_app.loading import load_model, nf4
from tests.conversion.conftest import assert_same_bits, weights_of
from tests.conversion.test_round_trips import logits


@pytest.fixture(scope="module")
def written(small, tmp_path_factory):
    return convert(small, tmp_path_factory.mktemp("nf4") / "out", "nf4", shard_bytes=40_000)


def test_loading_it_equals_quantising_on_load(written, small):
    from_file = load_model(written, weights="nf4")
    on_load = load_model(small, weights="nf4")
    assert from_file.plan.weights == on_load.plan.weights == "nf4"
    assert torch.equal(logits(from_file.model), logits(on_load.model))


def test_transformers_reads_it_with_the_same_logits(written, small):
    from transformers import BitsAndBytesConfig

    theirs, info = Gemma3ForConditionalGeneration.from_pretrained(written, output_loading_info=True)
    assert not any(info.values())
    layer = theirs.model.language_model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == "Linear4bit"
    assert type(theirs.model.vision_tower.encoder.layers[0].mlp.fc1).__name__ == "Linear"
    settings = json.loads((written / "config.json").read_text())["quantization_config"]
    quantising = Gemma3ForConditionalGeneration.from_pretrained(
        small, quantization_config=BitsAndBytesConfig.from_dict(settings)
    )
    assert torch.equal(logits(theirs), logits(quantising))


def test_what_is_not_quantised_has_its_bits(written, small):
    ours, original = weights_of(written), weights_of(small)
    plain = {key for key in original if "proj.weight" not in key or "vision" in key}
    assert plain > {"language_model.model.embed_tokens.weight"}
    assert_same_bits({k: ours[k] for k in plain}, {k: original[k] for k in plain})
    quantised = original.keys() - plain
    assert len(quantised) == 2 * 7
    assert all(ours[key].dtype == torch.uint8 for key in quantised)


def test_quantised_weights_keep_their_bits_when_they_are_written_again(written, tmp_path):
    again = convert(written, tmp_path / "again", "nf4", shard_bytes=40_000)
    assert_same_bits(weights_of(again), weights_of(written))
    assert json.loads((again / "config.json").read_text()) == json.loads(
        (written / "config.json").read_text()
    )


def test_as_numbers_it_is_what_the_4_bits_stand_for(written, tmp_path):
    bridge = Bridge.open(written)
    assert "4 bits" in str(bridge.detected)
    dense = bridge.write(tmp_path / "dense", "hub", check=True)
    theirs = Gemma3ForConditionalGeneration.from_pretrained(written)
    theirs = theirs.dequantize().state_dict()
    theirs.pop("lm_head.weight")
    ours = convert(dense, tmp_path / "names", "transformers5")
    assert_same_bits(weights_of(ours), {k: each.to(torch.bfloat16) for k, each in theirs.items()})
    assert "quantization_config" not in json.loads((dense / "config.json").read_text())


def test_4_bits_cannot_be_checked_bit_by_bit_or_made_wider(small, tmp_path):
    with pytest.raises(ConversionError, match="gemma3vl verify"):
        convert(small, tmp_path / "out", "nf4", check=True)
    with pytest.raises(ConversionError, match="no other precision"):
        convert(small, tmp_path / "out", "nf4", precision="fp32")
    assert not [*tmp_path.iterdir()]


def test_quantising_in_pieces_is_quantising_at_once(monkeypatch):
    from bitsandbytes import functional

    weight = torch.randn(37, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    monkeypatch.setattr(nf4, "PIECE", 500)  # three rows
    pieces = nf4.quantise(weight)
    data, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    theirs = {f".{key}": part for key, part in state.as_dict(packed=True).items()} | {"": data}
    assert_same_bits(pieces, theirs)
    assert nf4.quantised_sizes(weight.shape, weight.dtype) == {
        key: (part.dtype, tuple(part.shape)) for key, part in theirs.items()
    }
