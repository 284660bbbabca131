"""Tiny checkpoints with the heads of each released size, and ways to store them otherwise."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma3vl_app.testing import tiny_checkpoint
from tests.loading.gguf_files import cut_checkpoint, give_tokenizer, released_vocabulary

# Heads, their groups, and head_dim that is not width / heads, as in the released models
SIZES = {
    "4b": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16},
    "12b": {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 16},
    "27b": {
        **{"num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 8},
        "query_pre_attn_scalar": 168,
    },
}


@pytest.fixture(scope="package", params=SIZES)
def sized(request, tmp_path_factory):
    """A checkpoint in the hub's layout with the heads of a released size. Read only."""
    folder = tmp_path_factory.mktemp("sized") / request.param
    return tiny_checkpoint(folder, layers=2, text=SIZES[request.param])


@pytest.fixture(scope="package")
def small(tmp_path_factory):
    """A checkpoint of two layers, with the heads of the 4B. Read only."""
    return tiny_checkpoint(tmp_path_factory.mktemp("small") / "small", layers=2, text=SIZES["4b"])


def weights_of(folder):
    """All tensors in the safetensors of a folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def stored_as(folder, original, change):
    """Copy a checkpoint, with its tensors as `change` returns them."""
    shutil.copytree(original, folder)
    changed = {key: each.contiguous() for key, each in change(weights_of(original)).items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert tensor.dtype == ours[key].dtype, key
        bits = [each.contiguous().reshape(-1).view(torch.uint8) for each in (tensor, ours[key])]
        assert torch.equal(*bits), key


@pytest.fixture(scope="package")
def few_tokens(tiny, tmp_path_factory):
    """The tiny checkpoint with some hundred tokens: a vocabulary takes longest to write. Read only.

    Six layers, as llama.cpp knows Gemma 3 with every sixth layer global only.
    """
    folder = tmp_path_factory.mktemp("few")
    vocabulary = released_vocabulary().cut()
    checkpoint = cut_checkpoint(tiny, folder / "small", vocabulary)
    give_tokenizer(checkpoint, vocabulary)
    for name in ("preprocessor_config.json", "generation_config.json"):
        shutil.copy(tiny / name, checkpoint / name)
    return checkpoint
