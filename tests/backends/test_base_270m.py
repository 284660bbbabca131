"""The released 270M base model through our loader and engine, against transformers' own reading."""

import json

import numpy as np

from gemma3vl_app.backends.local import load
from gemma3vl_app.engine.sequence import Request
from gemma3vl_app.generation import Greedy
from gemma3vl_app.prompting.prompt import PreparedPrompt
from tests.data.make_base_270m import RECORD, digest


def test_weights_and_greedy_continuation_are_those_that_transformers_reads_in_the_gguf():
    theirs = json.loads(RECORD.read_text(encoding="utf-8"))
    with load("270m-pt", weights="fp32") as backend:
        # 1) The same weights, every one of them.
        ours = backend._loaded.model.state_dict()
        assert {name: digest(weight) for name, weight in ours.items()} == theirs["weights"]
        # 2) The same greedy tokens, ours by the engine.
        ids = [2, *backend._tokenizer.encode(theirs["prompt"])]
        assert ids == theirs["ids"]
        request = Request(
            prompt=PreparedPrompt(np.array(ids)),
            sampling=Greedy(),
            max_new_tokens=len(theirs["continuation"]),
        )
        answer = backend.engine.submit(request).answer
    assert [token.id for token in answer.tokens] == theirs["continuation"]
    assert answer.text.startswith(" the capital of the country of France.")
