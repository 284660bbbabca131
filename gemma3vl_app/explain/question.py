"""What an explanation is about: the conversation before an answer, the answer, words of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex

from gemma3vl_app.backends.protocol import Backend, Explains
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Answer, Report
from gemma3vl_app.messages import Conversation
from gemma3vl_app.traces import Result, Trace, TracedToken

# Text of the answer, or numbers of its tokens
Words = str | SupportsIndex | Sequence[str | SupportsIndex] | None
_SHOWN_CHARS = 60


@dataclass(frozen=True, kw_only=True)
class Question:
    """An answer to explain: what was asked of whom, which tokens it has, which of them matter."""

    backend: Explains
    conversation: Conversation  # what came before the answer
    answer: Answer | str
    tokens: tuple[TracedToken, ...]
    chosen: tuple[int, ...]
    adapter: str | None
    session: str
    progress: Report | None

    @property
    def words(self) -> str:
        """The chosen tokens as text, gaps between them shown as such."""
        runs: list[str] = []
        for before, token in zip((-2, *self.chosen), self.chosen, strict=False):
            text = self.tokens[token].text
            if token == before + 1:
                runs[-1] += text
            else:
                runs.append(text)
        return " … ".join(run.strip() for run in runs)

    def trace(self, asked: Trace[Result]) -> Result:
        """Ask the backend."""
        return self.backend.trace(
            self.conversation,
            self.answer,
            asked,
            adapter=self.adapter,
            session=self.session,
            progress=self.progress,
        )


def question(
    backend: Backend | Explains,
    conversation: Conversation,
    answer: Answer | str | None,
    words: Words = None,
    *,
    adapter: str | None = None,
    session: str = "",
    progress: Report | None = None,
) -> Question:
    """Check and put together what an explanation needs.

    `conversation` may or may not end with the answer; `answer` None is the one it ends with. Raises
    `ConversationError` where the model cannot be looked into, and for words the answer has not.
    """
    if not isinstance(backend, Explains):
        raise ConversationError(
            f"{backend.capabilities.model} does not run in this process, and cannot be looked "
            "into. Load a model here, such as gv.load('demo')."
        )
    before, said = _split(conversation, answer)
    tokens = backend.answer_tokens(before, said, adapter=adapter, session=session)
    return Question(
        backend=backend,
        conversation=before,
        answer=said,
        tokens=tokens,
        chosen=_chosen(tokens, words),
        adapter=adapter,
        session=session,
        progress=progress,
    )


def _split(
    conversation: Conversation, answer: Answer | str | None
) -> tuple[Conversation, Answer | str]:
    """Return what came before an answer, and the answer."""
    messages = conversation.messages
    ends_with_answer = bool(messages) and messages[-1].role == "assistant"
    if answer is None:
        if not ends_with_answer:
            raise ConversationError(
                "The conversation does not end with an answer; give the answer to explain."
            )
        answer = messages[-1].text
    text = answer if isinstance(answer, str) else answer.text
    for number in reversed(range(len(messages))):  # a chat may have gone on since
        message = messages[number]
        if message.role == "assistant" and text.strip() and message.text.strip() == text.strip():
            return Conversation(messages[:number], conversation.system), answer
    if ends_with_answer and text:
        raise ConversationError(
            "The conversation ends with another answer, and this one is not in it. Give the "
            "conversation as it was when the answer was written."
        )
    return conversation, answer


def _chosen(tokens: tuple[TracedToken, ...], words: Words) -> tuple[int, ...]:
    """Return the numbers of the tokens that say `words`; all that say something for None."""
    if words is None:
        return tuple(n for n, token in enumerate(tokens) if token.text.strip())
    wanted: list[str | SupportsIndex]
    wanted = [words] if isinstance(words, str) or not isinstance(words, Iterable) else list(words)
    chosen: set[int] = set()
    for each in wanted:
        chosen.update(_saying(tokens, each) if isinstance(each, str) else [index(each)])
    return tuple(sorted(chosen))


def _saying(tokens: tuple[TracedToken, ...], text: str) -> list[int]:
    """Return the tokens that the first `text` in the answer is part of."""
    whole = "".join(token.text for token in tokens)
    start = whole.find(text) if text.strip() else -1
    if start < 0:
        shown = whole.strip()
        shown = shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "…"
        raise ConversationError(
            f"The answer does not say {text[:_SHOWN_CHARS]!r}. It says: {shown}"
        )
    stop, at, found = start + len(text), 0, []
    for number, token in enumerate(tokens):
        end = at + len(token.text)
        # A token that only brings the space before the word is no part of it.
        inside = whole[max(at, start) : min(end, stop)]
        if inside.strip():
            found.append(number)
        at = end
    return found
