"""A model of the hub that tests ask for, and what is said where it does not come."""

import json
import random

import pytest
from huggingface_hub import constants

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.hub import hub_folder

REPO = "google/gemma-3-4b-it"
WEIGHTS = random.Random(0).randbytes(3_000_000)
OTHER_COMMIT = "b" * 40
TOKEN = "hf_SecretSecretSecretSecret"
SHARD = "model-00001-of-00002.safetensors"
FILES = {
    "config.json": b'{"model_type": "gemma3"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}' + b" " * 2000,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": SHARD, "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    SHARD: WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[:5000],
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "modeling_gemma3.py": b"import os",
    "model.gguf": b"GGUF",
    "README.md": b"# Gemma",
    "onnx/model.safetensors": b"other",
}


def refusal(repo=REPO, **options) -> str:
    """What is said instead of a folder: plain, short, and it gives nothing away."""
    with pytest.raises(LoadError) as caught:
        hub_folder(repo, **options)
    message = str(caught.value)
    for secret in (TOKEN, "/tmp", constants.HF_HUB_CACHE, "127.0.0.1", "signature", "Traceback"):
        assert secret not in message
    assert "\n" not in message and message.endswith((".", ")")) and 30 < len(message) < 320
    return message


def check_whole(folder, files=FILES):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def left_behind(tmp_path) -> list[str]:
    return sorted(path.name for path in tmp_path.rglob("*.incomplete"))
