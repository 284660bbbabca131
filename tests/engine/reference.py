"""Ask our engine and plain transformers the same, and compare."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import Gemma3ForConditionalGeneration

from gemma3vl_app.backends.local import LocalBackend
from gemma3vl_app.generation import Answer, Greedy
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting.pixels import pixels
from gemma3vl_app.prompting.prompt import PreparedPrompt

TOKENS = 12  # of an answer in these tests


def picture(seed: int, width: int = 70, height: int = 50, crops: str = "off") -> Picture:
    """A picture of large random blocks: different seeds look different to the tower."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    grown = blocks.repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)[:height, :width]
    return Picture.open(np.ascontiguousarray(grown), name=f"{seed}.png", crops=crops)


@dataclass
class Reference:
    """Full recomputes by transformers: nothing cached, one conversation at a time, fp32."""

    model: Gemma3ForConditionalGeneration
    backend: LocalBackend

    @torch.inference_mode()
    def logits(self, prompt: PreparedPrompt, answer_ids: list[int]) -> torch.Tensor:
        """Logits (n + 1, V) that predict each answer token and the one after, in one pass."""
        ids = torch.tensor([[*prompt.ids.tolist(), *answer_ids]])
        token_types = torch.zeros_like(ids)
        token_types[0, : len(prompt)] = torch.tensor(prompt.token_types)
        features = [torch.from_numpy(each) for each in self.pixels(prompt)]
        output = self.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=token_types,
            pixel_values=torch.stack(features) if features else None,
        )
        return output.logits[0, len(prompt) - 1 :]

    def pixels(self, prompt: PreparedPrompt) -> list[np.ndarray]:
        """The pixels (3, S, S) of every picture of a prompt."""
        return [pixels(image, self.backend._format) for image in prompt.images]

    def check(self, conversation: Conversation, answer: Answer, *, session: str = "") -> None:
        """Assert that `answer` is what a full recompute gives: log-probabilities and greedy tokens.

        `answer` needs its log-probabilities with alternatives. History counts with the ids that
        were generated for it.
        """
        prompt = self.backend._prepare(conversation, session)
        ids = [token.id for token in answer.tokens]
        expected = self.logits(prompt, ids).log_softmax(-1)
        for step, token in enumerate(answer.tokens):
            row = expected[step]
            assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
            for other in token.alternatives:
                assert other.logprob == pytest.approx(float(row[other.id]), abs=1e-4)
            values, order = row.topk(2)
            if float(values[0] - values[1]) > 1e-3:
                assert token.id == int(order[0])


def greedy(backend: LocalBackend, conversation: Conversation, **options) -> Answer:
    """Ask for a short greedy answer with log-probabilities."""
    settings = {"sampling": Greedy(), "max_new_tokens": TOKENS, "logprobs": 5, **options}
    return backend.stream(conversation, **settings).answer
