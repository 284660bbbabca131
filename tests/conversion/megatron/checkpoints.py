"""Checkpoints to convert to Megatron's form, and torch's own way to read and write that form."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp

ITERATION = "release"
ROWS, PADDED_ROWS = 300, 384  # of the embeddings, here and there


def with_heads(tiny, target, heads, groups, width):
    """Copy a tiny checkpoint with other heads, few embeddings and no usable tokenizer."""
    target.mkdir()
    generator = torch.Generator().manual_seed(heads)
    weights = weights_of(tiny)
    rows = {"q_proj": heads * width, "k_proj": groups * width, "v_proj": groups * width}
    for key, weight in weights.items():
        name = key.split(".")[-2]
        shape = list(weight.shape)
        if "language_model" not in key:
            continue
        if name in rows:
            shape[0] = rows[name]
        elif name == "o_proj":
            shape[1] = heads * width
        elif name in ("q_norm", "k_norm"):
            shape[0] = width
        elif name == "embed_tokens":
            shape[0] = ROWS
        weights[key] = torch.randn(shape, generator=generator).to(torch.bfloat16)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tiny / "config.json").read_text())
    config["text_config"] |= {"vocab_size": ROWS, "head_dim": width}
    config["text_config"] |= {"num_attention_heads": heads, "num_key_value_heads": groups}
    (target / "config.json").write_text(json.dumps(config))
    (target / "tokenizer.json").write_text("{}")
    for name in ("generation_config.json", "preprocessor_config.json"):
        shutil.copy(tiny / name, target)
    return target


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, other):
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


def read_by_torch(folder):
    """All tensors of an iteration, by torch.distributed.checkpoint itself."""
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        key: torch.empty(tuple(entry.size), dtype=entry.properties.dtype)
        for key, entry in metadata.items()
        if isinstance(entry, dcp.TensorStorageMetadata)
    }
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return state, metadata


def write_by_torch(folder, state):
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
