"""Choosing the next token of one sequence from its logits. Shapes: V vocabulary."""

from __future__ import annotations

import torch

from gemma3vl_app.generation import Greedy, Sample, Sampling


class Sampler:
    """Choose tokens by one sampling rule; with a seed, the draws depend on that seed alone."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if isinstance(sampling, Sample) and sampling.seed is not None:
            self._generator.manual_seed(sampling.seed)
        else:
            self._generator.seed()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return isinstance(self._sampling, Greedy)

    def choose(self, logits: torch.Tensor) -> int:
        """Return the id chosen from fp32 logits (V,)."""
        if isinstance(self._sampling, Greedy):
            return int(logits.argmax())
        probabilities, ids = candidates(logits, self._sampling)
        # One number a token, looked up in the order of ids, not of probabilities: rounding, which
        # differs with what else is in the batch, would swap neighbours there and change what the
        # seed gives.
        ids, order = ids.cpu().sort()
        reached = probabilities.cpu()[order].double().cumsum(-1)
        drawn = torch.rand((), dtype=torch.float64, generator=self._generator) * reached[-1]
        return int(ids[torch.searchsorted(reached, drawn, right=True).clamp(max=len(ids) - 1)])


def candidates(logits: torch.Tensor, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probabilities (k,), falling, and ids (k,) that remain after the filters.

    Temperature, then top-k, then top-p over what top-k left, as transformers' logits warpers do:
    a token stays while the probability of those before it is below `top_p`.
    """
    kept = min(sample.top_k or logits.numel(), logits.numel())
    values, ids = logits.topk(kept)  # first: what follows then passes over few
    probabilities = ((values - values[0]) / sample.temperature).softmax(-1)  # no overflow if cold
    if sample.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        stay = before < sample.top_p
        stay[0] = True
        probabilities, ids = probabilities[stay], ids[stay]
    return probabilities / probabilities.sum(), ids
