"""Two rows of logits, or two tensors, and how far they are apart.

Shapes: n positions, V vocabulary that both models have, k alternatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gemma3vl_app.faithfulness.bounds import NEAR_TIE
from gemma3vl_app.faithfulness.results import Agreement, Spot
from gemma3vl_app.generation import Token
from gemma3vl_app.prompting.tokenizer import TextTokenizer

_ROWS = 16  # compared at once: 1 MB each


@dataclass(frozen=True)
class Rows:
    """What was found at n positions, one entry each."""

    differences: list[float]
    kl: list[float]
    gaps: list[float]  # between the reference's two best logits
    expected: list[int]  # the likeliest token of the reference, and of the other
    found: list[int]


def compare_logits(expected: torch.Tensor, found: torch.Tensor) -> Rows:
    """Compare logits (n, V) with the reference's; log-probabilities may stand for either.

    What is not a number in `found` counts as infinitely far.
    """
    rows = Rows([], [], [], [], [])
    for first in range(0, len(expected), _ROWS):
        p, q = (each[first : first + _ROWS].float() for each in (expected, found))
        best = p.topk(2, -1)
        difference = p - q
        rows.differences.extend(_finite(difference.abs().amax(-1)))
        rows.kl.extend(_finite(_kl(p, difference)))
        rows.gaps.extend((best.values[:, 0] - best.values[:, 1]).tolist())
        rows.expected.extend(best.indices[:, 0].tolist())
        rows.found.extend(q.argmax(-1).tolist())
    return rows


def _kl(logits: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """Return KL (n,) of logits p (n, V) and p - difference, in nats.

    With d the difference, KL = E_p[d] + log(1 + E_p[exp(-d) - 1]): equal models give 0, and nearly
    equal ones keep their digits, which a difference of two log-probabilities would lose.
    """
    p = logits.softmax(-1)
    # A shift of all logits changes no distribution; without it exp stays small.
    d = difference - (p * difference).sum(-1, keepdim=True)
    if float(d.min()) < -80:  # beyond float32
        p, d = p.double(), d.double().clamp(min=-700.0)
    grown = (p * torch.expm1(-d)).sum(-1, dtype=torch.float64)
    kl: torch.Tensor = (p * d).sum(-1, dtype=torch.float64) + torch.log1p(grown)
    return kl.clamp(min=0.0)


def compare_answer(
    expected: torch.Tensor, tokens: Sequence[Token], answer_ids: Sequence[int]
) -> Rows:
    """Compare an answer's tokens, with their alternatives, with the reference's logits (n, V).

    Only up to the first token that is not the one of `answer_ids`, which `expected` was computed
    with: what follows it was predicted from something else. Differences are those of
    log-probabilities of the alternatives. KL is that of k + 1 cells, the k alternatives and all
    other tokens together: never more than that of whole distributions, of which an answer tells
    only the top. What is not a number counts as infinitely far.
    """
    rows = Rows([], [], [], [], [])
    for logits, token, answer_id in zip(expected, tokens, answer_ids, strict=False):
        known = {token.id: math.nan if token.logprob is None else token.logprob}
        known |= {each.id: each.logprob for each in token.alternatives}
        ids = [*known]
        reference = logits.double().log_softmax(-1)
        p, q = reference[ids], torch.tensor([known[id] for id in ids], dtype=torch.float64)
        best = logits.topk(2).values.double()
        rows.differences.extend(_finite((p - q).abs().amax()[None]))
        rows.kl.extend(_finite(_coarse_kl(p, q)[None]))
        rows.gaps.append(float(best[0] - best[1]))
        rows.expected.append(int(logits.argmax()))
        rows.found.append(token.id)
        if token.id != answer_id:
            break
    return rows


def agreement(rows: Rows, place: Place, tokenizer: TextTokenizer) -> Agreement:
    """Return the figures of one prompt; `place` says where its positions are."""
    decided = [gap > NEAR_TIE for gap in rows.gaps]
    kept = [a == b for a, b in zip(rows.expected, rows.found, strict=True)]
    worst = max(range(len(rows.kl)), key=lambda row: (rows.kl[row], rows.differences[row]))
    both = list(zip(decided, kept, strict=True))
    return Agreement(
        positions=len(rows.kl),
        max_difference=max(rows.differences),
        mean_kl=sum(rows.kl) / len(rows.kl),
        max_kl=rows.kl[worst],
        decided=sum(decided),
        kept=both.count((True, True)),
        near_ties=len(decided) - sum(decided),
        near_ties_kept=both.count((False, True)),
        worst=place.at(worst, rows, tokenizer) if rows.differences[worst] else None,
    )


@dataclass(frozen=True)
class Place:
    """The positions (n,) of a prompt that were compared, among its ids; its answer is the end."""

    prompt: str
    positions: list[int]
    ids: list[int]
    answer_start: int

    def at(self, row: int, rows: Rows, tokenizer: TextTokenizer) -> Spot:
        """Return where a row stands, in words."""
        position = self.positions[row]
        return Spot(
            prompt=self.prompt,
            position=position,
            token=tokenizer.token_text(self.ids[position]),
            in_answer=position >= self.answer_start - 1,
            expected=tokenizer.token_text(rows.expected[row]),
            found=tokenizer.token_text(rows.found[row]),
        )


class RelativeError:
    """The relative L2 error of one tensor, added up over parts of it: |found - expected| / |.|."""

    def __init__(self) -> None:
        self._difference = 0.0
        self._expected = 0.0

    def add(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        """Take a part of the tensor; both have one shape."""
        p, q = expected.double(), found.double()
        self._difference += float((p - q).square().sum())
        self._expected += float(p.square().sum())

    @property
    def value(self) -> float:
        """The error of all parts; not-a-number counts as infinite, and so does nothing expected."""
        if self._difference == 0:
            return 0.0
        if not self._expected or self._difference != self._difference:
            return float("inf")
        return float((self._difference / self._expected) ** 0.5)


def _finite(values: torch.Tensor) -> list[float]:
    # Without `posinf`, infinity would become the largest number of its kind.
    found: list[float] = values.nan_to_num(nan=math.inf, posinf=math.inf).tolist()
    return found


def _coarse_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return KL () of log-probabilities (k,) and a cell of all others, whose share is what is left.

    By the log-sum inequality at most that of the whole distributions.
    """
    least = torch.tensor(1e-12, dtype=torch.float64)
    rest_p = (1 - p.exp().sum()).clamp(min=least)
    rest_q = (1 - q.exp().sum()).clamp(min=least)
    named = (p.exp() * (p - q)).sum()
    kl: torch.Tensor = named + rest_p * (rest_p.log() - rest_q.log())
    return kl.clamp(min=0.0) if kl.isfinite() else kl.abs()
