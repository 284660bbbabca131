"""There and back again is the same file; transformers itself reads what is written."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForConditionalGeneration

from gemma3vl_app.conversion.converting import convert
from gemma3vl_app.conversion.formats import FORMATS
from gemma3vl_app.loading import load_model
from tests.conversion.conftest import assert_same_bits, weights_of

LOSSLESS = [each.name for each in FORMATS.values() if each.lossless and not each.needs_adapter]
FOLDERS = ("hub", "transformers5")


@torch.inference_mode()
def logits(model):
    """The logits of a prompt with a picture."""
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[2, 100, *[262_144] * 16, 900, 7, 41]])
    types = (ids == 262_144).long()
    dtype = next(model.parameters()).dtype
    output = model(input_ids=ids, token_type_ids=types, pixel_values=pixels.to(dtype))
    return output.logits.float()


@pytest.mark.parametrize("to", LOSSLESS)
def test_a_lossless_form_gives_every_bit_back(to, sized, tmp_path):
    shards = {"shard_bytes": 50_000} if FORMATS[to].has_shards else {}
    there = convert(sized, tmp_path / "there", to, check=True, **shards)
    back = convert(there, tmp_path / "back")
    assert_same_bits(weights_of(back), weights_of(sized))


def test_transformers_reads_its_own_form(sized, tmp_path):
    written = convert(sized, tmp_path / "out", "transformers5", shard_bytes=50_000)
    assert_transformers_reads_the_same(written, sized)


def test_transformers_reads_the_hubs_form_with_a_config_that_was_translated(small, tmp_path):
    there = convert(small, tmp_path / "there", "transformers5")
    written = convert(there, tmp_path / "out", "hub", shard_bytes=50_000)
    assert_transformers_reads_the_same(written, small)


def assert_transformers_reads_the_same(written, original):
    theirs, info = Gemma3ForConditionalGeneration.from_pretrained(written, output_loading_info=True)
    assert not any(info.values())
    expected = Gemma3ForConditionalGeneration.from_pretrained(original)
    assert torch.equal(logits(theirs), logits(expected))
    assert theirs.config.text_config.to_dict() == expected.config.text_config.to_dict()


@pytest.mark.parametrize("to", FOLDERS)
def test_we_read_what_is_written(to, small, tmp_path):
    written = convert(small, tmp_path / to, to)
    ours = load_model(written, weights="fp32")
    original = load_model(small, weights="fp32")
    assert torch.equal(logits(ours.model), logits(original.model))
    assert (ours.sampling, ours.stop_ids) == (original.sampling, original.stop_ids)


def test_names_in_transformers5_are_those_in_memory(small, tmp_path):
    written = convert(small, tmp_path / "out", "transformers5")
    in_memory = Gemma3ForConditionalGeneration.from_pretrained(small).state_dict()
    in_memory.pop("lm_head.weight")
    assert_same_bits(weights_of(written), in_memory)


def test_what_transformers_saves_is_read(small, tmp_path):
    model = Gemma3ForConditionalGeneration.from_pretrained(small)
    fresh = Gemma3ForConditionalGeneration(model.config).to(torch.bfloat16)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    (tmp_path / "saved" / "tokenizer.json").hardlink_to(small / "tokenizer.json")
    assert any(key.startswith("vision_tower.enc") for key in weights_of(tmp_path / "saved"))
    back = convert(tmp_path / "saved", tmp_path / "back")
    assert_same_bits(weights_of(back), weights_of(small))


def test_config_is_written_as_published_whatever_form_it_had(small, tmp_path):
    there = convert(small, tmp_path / "there", "transformers5")
    assert "rope_parameters" in config(there)["text_config"]
    back, original = config(convert(there, tmp_path / "back")), config(small)
    for part in ("text_config", "vision_config"):
        assert back[part].items() >= original[part].items()
    assert back["torch_dtype"] == "bfloat16"
    assert "rope_parameters" not in back["text_config"]
    assert config(convert(small, tmp_path / "same")) == original


def test_rounding_to_another_precision(small, tmp_path):
    wide = convert(small, tmp_path / "wide", precision="fp32")
    assert {each.dtype for each in weights_of(wide).values()} == {torch.float32}
    assert config(wide)["torch_dtype"] == "float32"
    back = convert(wide, tmp_path / "back", precision="bf16")
    assert_same_bits(weights_of(back), weights_of(small))


def config(folder: Path):
    return json.loads((folder / "config.json").read_text())
