"""Settings that a form has no place for are refused, and not lost."""

import json
import shutil

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from gemma3vl_app.conversion.converting import convert
from gemma3vl_app.conversion.gguf_blocks import encode
from gemma3vl_app.errors import ConversionError

LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0}
SLIDING = {"rope_type": "default", "rope_theta": 10_000.0}


def changed(source, folder, **text):
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("to", ["hub", "gguf", "megatron"])
def test_scaled_positions_of_sliding_layers_are_refused(small, tmp_path, to):
    rope = {"full_attention": LINEAR, "sliding_attention": LINEAR}
    source = changed(small, tmp_path / "source", rope_parameters=rope)
    with pytest.raises(ConversionError, match="sliding layers"):
        convert(source, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()
    assert (convert(source, tmp_path / "whole", "transformers5") / "config.json").is_file()


@pytest.mark.parametrize("to", ["gguf", "megatron"])
@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"attn_logit_softcapping": 50.0}, "capped attention"),
        ({"final_logit_softcapping": 30.0}, "capped logits"),
        ({"hidden_activation": "relu"}, "the activation 'relu'"),
        ({"use_bidirectional_attention": True}, "attention both ways"),
    ],
)
def test_what_files_of_other_programs_cannot_say_is_refused(small, tmp_path, to, setting, told):
    with pytest.raises(ConversionError, match=told):
        convert(changed(small, tmp_path / "source", **setting), tmp_path / "out", to)


def test_the_dtype_of_a_part_does_not_contradict_the_whole(small, tmp_path):
    source = changed(small, tmp_path / "source", torch_dtype="float16")
    config = json.loads((convert(source, tmp_path / "out") / "config.json").read_text())
    assert "torch_dtype" not in config["text_config"]


def test_numbers_beyond_f16_are_refused_and_not_made_infinite():
    with pytest.raises(ConversionError, match="65,504"):
        encode(torch.full((1, 32), 1e5), Kind.F16)
