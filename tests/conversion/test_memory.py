"""However large a model is, converting it needs the memory of a shard or two."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tests.conversion.memory_worker import ADAPTER

SHARD = 16 << 20
LAYERS, WIDTH, INNER = 12, 512, 2048
ROWS = 1 << 15
EMBEDDINGS = ROWS * WIDTH * 2  # bytes: larger than a shard, so a file of their own
ADAPTED = ("q_proj", "down_proj")
PYTHONS_OWN = 4 << 20  # bytes: objects, of a model of any size
WAYS = {"transformers5", "nf4", "hub, checked", "merged", "gguf", "megatron", "hub of megatron"}

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak can be set back on Linux only"
)


@pytest.fixture(scope="module")
def layered(few_tokens, tmp_path_factory):
    """A text-only checkpoint of 12 layers, 7.5 MiB each, in one file; and a tiny one like it."""
    folder = tmp_path_factory.mktemp("layered")
    return [
        text_only(folder / "tiny", few_tokens, layers=1, rows=1000),
        text_only(folder / "whole", few_tokens, layers=LAYERS, rows=ROWS),
    ]


def text_only(folder, few_tokens, *, layers, rows):
    folder.mkdir()
    shutil.copy(few_tokens / "tokenizer.json", folder)
    kinds = ["full_attention" if n % 6 == 5 else "sliding_attention" for n in range(layers)]
    config = json.loads((few_tokens / "config.json").read_text())["text_config"] | {
        **{"architectures": ["Gemma3ForCausalLM"], "eos_token_id": [1, 106], "vocab_size": rows},
        **{"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": layers},
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
        **{"query_pre_attn_scalar": 64, "layer_types": kinds},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = Gemma3ForCausalLM(Gemma3TextConfig.from_dict(config))
    shapes = {name: each.shape for name, each in model.named_parameters()}
    shapes.pop("lm_head.weight", None)
    filled = {key: torch.full(shape, 0.01, dtype=torch.bfloat16) for key, shape in shapes.items()}
    save_file(filled, folder / "model.safetensors", metadata={"format": "pt"})
    write_adapter(folder / ADAPTER, shapes)
    return folder


def write_adapter(folder, shapes):
    """An adapter of rank 4 on two matrices of each layer."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": [*ADAPTED]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {}
    for key, shape in shapes.items():
        if key.split(".")[-2] in ADAPTED:
            module = "base_model.model." + key.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = torch.full((4, shape[1]), 0.1)
            tensors[f"{module}.lora_B.weight"] = torch.full((shape[0], 4), 0.1)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_the_peak_is_at_most_twice_the_largest_file(layered, tmp_path):
    command = [sys.executable, "-m", "tests.conversion.memory_worker", *map(str, layered)]
    done = subprocess.run(
        [*command, str(tmp_path), str(SHARD)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    peaks = {line.split(": ")[0]: int(line.split(": ")[1]) for line in done.stdout.splitlines()}
    assert peaks.keys() == WAYS
    files = {name: files_of(tmp_path / name) for name in ("5", "nf4", "hub", "merged", "back")}
    for name, sizes in files.items():
        assert len(sizes) > 2, name
        assert sorted(sizes)[-2] <= SHARD + 10_000, name  # what is larger is one weight's file
        assert max(sizes) == pytest.approx(EMBEDDINGS, abs=10_000), name
    whole = (layered[1] / "model.safetensors").stat().st_size
    bound = 2 * EMBEDDINGS + PYTHONS_OWN
    assert bound < 0.6 * whole
    for name, peak_bytes in peaks.items():
        assert 0 < peak_bytes <= bound, (name, peak_bytes)
    # The embeddings are read alone, and not once more as a whole file
    assert peaks["hub of megatron"] <= EMBEDDINGS + SHARD
    shutil.rmtree(tmp_path)


def files_of(folder):
    return [path.stat().st_size for path in folder.glob("*.safetensors")]
