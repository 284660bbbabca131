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

from gemma3vl_app.testing import tiny_checkpoint

SHARD = 16 << 20
LAYERS, WIDTH, INNER = 16, 512, 4096

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak can be set back on Linux only"
)


@pytest.fixture(scope="module")
def layered(tmp_path_factory):
    """A text-only checkpoint of 16 layers, 13 MiB each, in one file; and a tiny one like it."""
    return [
        text_only(tmp_path_factory.mktemp("layered") / str(layers), layers)
        for layers in (1, LAYERS)
    ]


def text_only(folder, layers):
    tiny_checkpoint(folder, layers=1)
    config = json.loads((folder / "config.json").read_text())["text_config"] | {
        **{"architectures": ["Gemma3ForCausalLM"], "eos_token_id": [1, 106], "vocab_size": 512},
        **{"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": layers},
        "layer_types": ["full_attention"] * layers,
    }
    with torch.device("meta"):
        model = Gemma3ForCausalLM(Gemma3TextConfig.from_dict(config))
    save_file(
        {
            name: torch.full(each.shape, 0.01, dtype=torch.bfloat16)
            for name, each in model.named_parameters()
            if name != "lm_head.weight"
        },
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").unlink()
    return folder


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
    whole = (layered[1] / "model.safetensors").stat().st_size
    peaks = dict(line.split() for line in done.stdout.splitlines())
    assert peaks.keys() == {"transformers5", "nf4"}
    for to, peak_bytes in peaks.items():
        files = [path.stat().st_size for path in (tmp_path / to).glob("*.safetensors")]
        assert len(files) > 2
        assert max(files) <= SHARD + 10_000
        assert 0 < int(peak_bytes) <= 2 * max(files) < whole / 5, to
    shutil.rmtree(tmp_path)
