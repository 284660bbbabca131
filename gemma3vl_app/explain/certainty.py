"""How sure a model was of each token of its answer, and what it would say next."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gemma3vl_app.backends.protocol import Backend, Explains
from gemma3vl_app.explain.question import question
from gemma3vl_app.generation import Alternative, Answer, Report, Token
from gemma3vl_app.messages import Conversation
from gemma3vl_app.traces import Distributions

SAYS = (
    "How likely each token was, given all before it. A token can be sure and wrong, and a choice "
    "between synonyms looks unsure."
)
NEXT_SAYS = "What the model holds likely as the next token, before temperature and filters."


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """What a model held likely at each token, from the raw distribution (temperature 1).

    Attributes:
        says: in a line, what it shows and what it does not.
        tokens: of the answer, each with its log-probability and the likeliest alternatives.
        entropies: in nats, one for each token, and one for what would follow the last.
        following: the likeliest tokens to follow the last.
    """

    says: str
    tokens: tuple[Token, ...]
    entropies: tuple[float, ...]
    following: tuple[Alternative, ...]

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-probability of the answer's tokens."""
        if not self.tokens:
            return 1.0
        return math.exp(-sum(token.logprob or 0.0 for token in self.tokens) / len(self.tokens))


def tokens(
    backend: Backend | Explains,
    conversation: Conversation,
    answer: Answer | str | None = None,
    *,
    alternatives: int = 5,
    adapter: str | None = None,
    session: str = "",
    progress: Report | None = None,
) -> Certainty:
    """Return log-probability, entropy and alternatives of each token of an answer.

    `answer` None is the one that `conversation` ends with.
    """
    asked = question(
        backend, conversation, answer, adapter=adapter, session=session, progress=progress
    )
    traced = asked.trace(Distributions(top=alternatives))
    each = zip(traced.tokens, traced.logprobs.tolist(), traced.alternatives, strict=False)
    return Certainty(
        says=SAYS,
        tokens=tuple(
            Token(token.id, token.text, logprob, others) for token, logprob, others in each
        ),
        entropies=tuple(traced.entropies.tolist()),
        following=traced.alternatives[-1],
    )


def next(
    backend: Backend | Explains,
    conversation: Conversation,
    said: str = "",
    *,
    top: int = 10,
    adapter: str | None = None,
    session: str = "",
) -> Certainty:
    """Return the `top` likeliest tokens to come next: the answer's first, or after `said` of it."""
    asked = question(backend, conversation, said, adapter=adapter, session=session)
    traced = asked.trace(Distributions(top=top))
    return Certainty(
        says=NEXT_SAYS,
        tokens=(),
        entropies=(float(traced.entropies[-1]),),
        following=traced.alternatives[-1],
    )
