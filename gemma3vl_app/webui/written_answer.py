"""An answer as it was written, ready to be explained: after what, by whom, in which tokens."""

from __future__ import annotations

from dataclasses import dataclass

from gemma3vl_app.backends.protocol import Backend, Explains
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Answer, Token
from gemma3vl_app.messages import Conversation
from gemma3vl_app.traces import TracedToken
from gemma3vl_app.transcript import Generated, Transcript, recorded_ids


@dataclass(frozen=True)
class Clicked:
    """A word of a message of the page: its characters `start` to `stop` - 1, which say `word`."""

    index: int
    start: int
    stop: int
    word: str


@dataclass(frozen=True, kw_only=True)
class WrittenAnswer:
    """An answer, what came before it, and how to ask `backend` about it.

    `tokens` are those of the clicked word, as numbers in the answer. `wrote` names the model that
    wrote it where that is another one than the `backend` is, else "".
    """

    backend: Explains
    conversation: Conversation
    answer: Answer
    tokens: tuple[int, ...]
    adapter: str | None
    session: str
    wrote: str


def written_answer(
    transcript: Transcript, clicked: Clicked, backend: Backend, session: str
) -> WrittenAnswer:
    """Return the answer that `clicked` is in, of the branch that `transcript` shows.

    Its very tokens are used where they were recorded and mean the same to `backend`, and so are
    those of the answers before it, also in a conversation from the disk. Raises `ConversationError`
    where there is no such word any more, or the backend cannot be looked into.
    """
    path = transcript.path(transcript.head)
    turn = path[clicked.index] if 0 <= clicked.index < len(path) else None
    if turn is None or turn.message.role != "assistant":
        raise ConversationError("This answer is no longer shown. Click a word of one that is.")
    text = turn.message.text
    if not clicked.word.strip() or text[clicked.start : clicked.stop] != clicked.word:
        raise ConversationError("The answer has changed. Click the word again.")
    if not isinstance(backend, Explains):
        raise ConversationError(
            f"{backend.capabilities.model} does not run in this process, and cannot be looked into."
        )
    last = turn.generated[-1] if turn.generated else None
    adapter = last.adapter if last and last.adapter in backend.adapters else None
    system = last.system if last else transcript.system
    before = path[: clicked.index]
    conversation = Conversation(tuple(each.message for each in before), system)
    digest = backend.capabilities.tokenizer_sha256
    earlier = recorded_ids(
        [each.generated for each in before],
        tokenizer_sha256=digest,
        system=system,
        adapter=adapter,
    )
    if earlier:
        backend.remember(conversation, earlier, adapter=adapter, session=session)
    answer = Answer(text, "stop", tokens=_tokens_written(turn.generated, digest))
    asked = backend.answer_tokens(conversation, answer, adapter=adapter, session=session)
    return WrittenAnswer(
        backend=backend,
        conversation=conversation,
        answer=answer,
        tokens=tokens_saying(asked, clicked),
        adapter=adapter,
        session=session,
        wrote=_other_model(last, backend, adapter),
    )


def tokens_saying(tokens: tuple[TracedToken, ...], clicked: Clicked) -> tuple[int, ...]:
    """Return the numbers of the tokens that say the clicked characters, and not only white space.

    Tokens that brought only a part of a character, and so no text yet, go with the one after them.
    """
    whole = "".join(token.text for token in tokens)
    if whole[clicked.start : clicked.stop] != clicked.word:
        raise ConversationError(
            "This model's tokens say the answer in a slightly different way, so the word cannot be "
            "found in them."
        )
    found: list[int] = []
    waiting: list[int] = []
    at = 0
    for number, token in enumerate(tokens):
        end = at + len(token.text)
        waiting.append(number)
        if token.text:
            if whole[max(at, clicked.start) : min(end, clicked.stop)].strip():
                found += waiting
            waiting = []
        at = end
    return tuple(found)


def _tokens_written(generated: tuple[Generated, ...], digest: str) -> tuple[Token, ...]:
    """Return the recorded tokens of an answer; none where they mean something else by now."""
    if any(each.model.tokenizer_sha256 != digest for each in generated):
        return ()
    return tuple(Token(id, "") for each in generated for id in each.ids[: each.said_tokens])


def _other_model(last: Generated | None, backend: Backend, adapter: str | None) -> str:
    if last is None:
        return ""
    then, now = last.model, backend.capabilities.identity
    same = (then.name, then.revision, then.weights) == (now.name, now.revision, now.weights)
    if same and last.adapter == adapter:
        return ""
    return model_name(then.name, then.weights, last.adapter)


def model_name(name: str, weights: str, adapter: str | None) -> str:
    """Return how people are told which model it is: "4b-it, bf16 + my-adapter"."""
    return ", ".join(filter(None, (name, weights))) + (f" + {adapter}" if adapter else "")
