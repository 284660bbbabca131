"""Where two ways of running a model part: two precisions, crops on and off, with an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma3vl_app.backends.protocol import Backend, Explains
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.explain.question import Question, question
from gemma3vl_app.generation import Answer, Greedy, Report, Token
from gemma3vl_app.messages import Conversation, Message
from gemma3vl_app.pictures import Crops, Picture
from gemma3vl_app.traces import Distributions, Floats, TracedDistributions

SAYS = (
    "How far the second's expectations are from the first's at each token of one and the same "
    "answer. Small differences add up: the second might have written something else."
)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two: a loaded `backend`, or a `source` to load with `weights`; and how it is run.

    `crops` None leaves each picture's own setting.
    """

    source: str | Path = ""
    backend: Backend | None = None
    weights: str = "auto"
    adapter: str | None = None
    crops: Crops | None = None

    def __str__(self) -> str:
        model = self.backend.capabilities.model if self.backend else str(self.source)
        weights = self.backend.capabilities.weights if self.backend else self.weights
        extra = (
            f"adapter {self.adapter}" if self.adapter else "",
            f"crops {self.crops}" if self.crops else "",
        )
        return ", ".join(filter(None, (model, weights if weights != "auto" else "", *extra)))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What two sides expected at each token of an answer.

    Attributes:
        says: in a line, what it shows and what it does not. sides: their names.
        tokens: texts of the answer's tokens.
        kl: Kullback-Leibler divergence of the second's distribution from the first's, in nats; one
        for each token, and one for what would follow.
        logprobs: of the answer's tokens under each side (2, n).
        same_best: whether both hold the same token likeliest; as many as `kl`.
    """

    says: str
    sides: tuple[str, str]
    tokens: tuple[str, ...]
    kl: tuple[float, ...]
    logprobs: Floats
    same_best: tuple[bool, ...]


def compare(
    conversation: Conversation,
    a: Side | Backend,
    b: Side | Backend,
    answer: Answer | str | None = None,
    *,
    max_new_tokens: int = 128,
    progress: Report | None = None,
) -> Difference:
    """Return how far `b` is from `a` on the same conversation and answer, token by token.

    A side with a `source` is loaded, asked and let go before the other is loaded, so that both need
    not fit at once. `answer` None is the one the conversation ends with, or else what `a` answers
    (the likeliest tokens, up to `max_new_tokens`).
    """
    first, second = (each if isinstance(each, Side) else Side(backend=each) for each in (a, b))
    with _loaded(first) as backend:
        answer = answer if answer is not None else _given(conversation)
        if answer is None:
            with backend.stream(
                _cropped(conversation, first.crops),
                sampling=Greedy(),
                max_new_tokens=max_new_tokens,
                adapter=first.adapter,
            ) as stream:
                answer = stream.answer
        before = _traced(first, backend, conversation, answer, progress)
    # The very same tokens, which the other side may not remember or cut otherwise.
    text = answer if isinstance(answer, str) else answer.text
    tokens = tuple(Token(token.id, token.text) for token in before.tokens)
    answer = Answer(text, "stop", tokens=tokens)
    with _loaded(second) as backend:
        after = _traced(second, backend, conversation, answer, progress)
    if [t.id for t in before.tokens] != [t.id for t in after.tokens] or (
        before.whole.shape != after.whole.shape
    ):
        raise ConversationError(
            f"{first} and {second} cut the answer into different tokens, so their expectations "
            "cannot be compared. Compare models with the same vocabulary."
        )
    return Difference(
        says=SAYS,
        sides=(str(first), str(second)),
        tokens=tuple(token.text for token in before.tokens),
        kl=tuple(_kl(p, q) for p, q in zip(before.whole, after.whole, strict=True)),
        logprobs=np.stack([before.logprobs, after.logprobs]),
        same_best=tuple((before.whole.argmax(1) == after.whole.argmax(1)).tolist()),
    )


@contextmanager
def _loaded(side: Side) -> Iterator[Backend]:
    """Give the side's backend; one that is loaded for this is let go at the end."""
    if side.backend is not None:
        yield side.backend
        return
    if not str(side.source):
        raise ConversationError("A side to compare needs a backend, or a source to load.")
    # Here, not above: only this loads a model, and with it torch.
    from gemma3vl_app.backends.load import load

    with load(side.source, weights=side.weights) as backend:
        yield backend


def _given(conversation: Conversation) -> str | None:
    last = conversation.messages[-1] if conversation.messages else None
    return last.text if last is not None and last.role == "assistant" else None


def _traced(
    side: Side,
    backend: Backend | Explains,
    conversation: Conversation,
    answer: Answer | str,
    progress: Report | None,
) -> TracedDistributions:
    asked: Question = question(
        backend,
        _cropped(conversation, side.crops),
        answer,
        adapter=side.adapter,
        progress=progress,
    )
    return asked.trace(Distributions(whole=True))


def _cropped(conversation: Conversation, crops: Crops | None) -> Conversation:
    """Return the conversation with every picture's crops set so."""
    if crops is None:
        return conversation
    messages = tuple(
        Message(
            message.role,
            tuple(
                part.with_crops(crops) if isinstance(part, Picture) else part
                for part in message.parts
            ),
        )
        for message in conversation.messages
    )
    return Conversation(messages, conversation.system)


def _kl(p: Floats, q: Floats) -> float:
    """Return KL(p || q) in nats of two rows of log-probabilities (V,)."""
    first, second = p.astype(np.float64), q.astype(np.float64)
    return float((np.exp(first) * (first - second)).sum())
