"""What each layer would say: the logit lens."""

from __future__ import annotations

from dataclasses import dataclass

from gemma3vl_app.backends.protocol import Backend, Explains
from gemma3vl_app.explain.question import Words, question
from gemma3vl_app.generation import Alternative, Answer, Report
from gemma3vl_app.messages import Conversation
from gemma3vl_app.traces import Floats, LogitLens

SAYS = (
    "What each layer's output says when it is read as if it were the last. Early layers do not "
    "write for this reader: where they say nothing sensible, they may still know."
)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """By layer and token of the answer: the likeliest token, and the real one's log-probability.

    Attributes:
        says: in a line, what it shows and what it does not.
        tokens: texts of the tokens, as they were written.
        likeliest: one row a layer, one entry a token.
        logprobs: of the real tokens (layers, tokens).
        kinds: "global" or "sliding", a layer.
    """

    says: str
    tokens: tuple[str, ...]
    likeliest: tuple[tuple[Alternative, ...], ...]
    logprobs: Floats
    kinds: tuple[str, ...]


def layers(
    backend: Backend | Explains,
    conversation: Conversation,
    answer: Answer | str | None = None,
    words: Words = None,
    *,
    adapter: str | None = None,
    session: str = "",
    progress: Report | None = None,
) -> Layers:
    """Return what each layer would say at each token of `words`.

    `answer` None is the one that `conversation` ends with; `words` as for `attention`.
    """
    asked = question(
        backend, conversation, answer, words, adapter=adapter, session=session, progress=progress
    )
    traced = asked.trace(LogitLens(tokens=asked.chosen))
    return Layers(
        says=SAYS,
        tokens=tuple(traced.tokens[token].text for token in asked.chosen),
        likeliest=traced.likeliest,
        logprobs=traced.logprobs,
        kinds=traced.kinds,
    )
