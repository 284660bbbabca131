"""Writing a recorded chat again, and saying what came out differently and why it may have.

Each answer is written after the recorded turns, so that one difference does not cause the next.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from gemma3vl_app.backends.protocol import Backend, StreamOptions
from gemma3vl_app.errors import Gemma3VLError
from gemma3vl_app.generation import Answer, Sample, Token
from gemma3vl_app.messages import Conversation, Message, Text
from gemma3vl_app.transcript import Generated, ModelIdentity, Transcript, recorded_ids
from gemma3vl_app.wording import counted

ALTERNATIVES = 5  # asked for with each token, to say how close a different choice was
CLOSE = 0.01  # natural-log units; rounding alone moves log-probabilities by far less in fp32


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One answer written again.

    `turn` is its index in the transcript, `message` its number in its branch, counted from 1.

    `now` is the new text. Where it differs: `first_difference` is the index of the first token that
    is another, and `gap` how much likelier the new token was there than the recorded one, in
    natural-log units (None where that is not known). `skipped` says why it could not be tried.
    """

    turn: int
    message: int
    recorded: str
    now: str = ""
    same: bool = False
    tokens: int = 0
    first_difference: int | None = None
    gap: float | None = None
    skipped: str = ""

    def __str__(self) -> str:
        if self.skipped:
            return f"message {self.message}: not replayed. {self.skipped}"
        if self.same:
            return f"message {self.message}: the same ({counted(self.tokens, 'token')})"
        where = "" if self.first_difference is None else f" from token {self.first_difference} on"
        return f"message {self.message}: different{where}{self._how_close()}"

    def _how_close(self) -> str:
        if self.gap is None:
            return ""
        if abs(self.gap) < CLOSE:
            return "; both tokens were as good as equally likely there, so that rounding decides"
        more_or_less = "less" if self.gap > 0 else "more"
        return (
            f"; the recorded token is {abs(self.gap):.2f} {more_or_less} likely here than the new "
            "one (in natural logs)"
        )


@dataclass(frozen=True, kw_only=True)
class Replay:
    """All of it: `differences` are those of model, software and machine, one line each."""

    answers: tuple[Replayed, ...]
    differences: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether every answer came out as recorded."""
        return all(answer.same for answer in self.answers)


def replay(
    transcript: Transcript,
    backend: Backend,
    *,
    software: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    on_answer: Callable[[Replayed], None] | None = None,
) -> Replay:
    """Write every generated answer of all branches again, one by one.

    The same model in the same precision on the same kind of machine writes the same tokens, greedy
    or seeded; `Replay.differences` names what is not the same. `software` holds the versions
    recorded and those here; `on_answer` hears of each answer as it comes.
    """
    here = backend.capabilities.identity
    session = f"replay {secrets.token_hex(8)}"  # nothing left over from other answers is used
    models = list(dict.fromkeys(each.model for turn in transcript.turns for each in turn.generated))
    several = len({model.name for model in models}) > 1
    answers = []
    for index, turn in enumerate(transcript.turns):
        for piece in range(len(turn.generated)):
            written = turn.generated[piece]
            if several and not same_model(written.model, here):
                why = f"{written.model.name} wrote it, and {here.name} is loaded."
            else:
                why = _hindrance(written, backend)
            replayed = _replayed(transcript, index, piece, backend, session, why)
            answers.append(replayed)
            if on_answer is not None:
                on_answer(replayed)
    return Replay(
        answers=tuple(answers),
        differences=(*model_differences(models, here), *_changes(*software)),
    )


def same_model(recorded: ModelIdentity, here: ModelIdentity) -> bool:
    """Whether both are one model: by name, or by revision where a folder was moved."""
    same_files = bool(recorded.revision) and recorded.revision == here.revision
    return recorded.name == here.name or same_files


def model_differences(recorded: Sequence[ModelIdentity], here: ModelIdentity) -> tuple[str, ...]:
    """Return a line for each way in which the recorded models are not the one `here`."""
    lines: dict[str, None] = {}
    for model in recorded:
        if not same_model(model, here):
            lines[f"model: {model.name} then, {here.name} now"] = None
            continue
        changes = _changes({**asdict(model), "name": ""}, asdict(here))
        lines.update(dict.fromkeys(changes))
    return tuple(lines)


def _changes(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Return a line for each key that both know and that is not the same."""
    return tuple(
        f"{key.replace('_', ' ')}: {value} then, {now[key]} now"
        for key, value in then.items()
        if value and now.get(key) and now[key] != value
    )


def _replayed(
    transcript: Transcript, index: int, piece: int, backend: Backend, session: str, why_not: str
) -> Replayed:
    """Write one piece of one answer again, unless there is a reason not to."""
    turn = transcript.turns[index]
    recorded = turn.generated[piece]
    result = Replayed(
        turn=index,
        message=len(transcript.path(index)),
        recorded=recorded.text,
        tokens=len(recorded.ids),
    )
    if why_not:
        return replace(result, skipped=why_not)
    conversation = _before(transcript, index, piece)
    try:
        _recall(transcript, index, piece, conversation, backend, session)
        answer = backend.stream(conversation, **_options(recorded, backend, session)).answer
    except Gemma3VLError as error:
        return replace(result, skipped=str(error))
    return _compared(result, recorded, answer, backend)


def _hindrance(recorded: Generated, backend: Backend) -> str:
    """Return why an answer cannot be written again here, or nothing."""
    if isinstance(recorded.sampling, Sample) and recorded.sampling.seed is None:
        return "It was drawn at random without a seed."
    if recorded.adapter is not None and recorded.adapter not in backend.adapters:
        return f"The adapter {recorded.adapter!r} is not loaded; load it under that name."
    return ""


def _before(transcript: Transcript, index: int, piece: int) -> Conversation:
    """Return what piece number `piece` of an answer was written after."""
    turn = transcript.turns[index]
    earlier = tuple(each.message for each in transcript.path(turn.parent))
    rest = sum(len(each.text) for each in turn.generated[piece:])
    begun = turn.message.text[: len(turn.message.text) - rest]  # by the pieces before, or given
    opened = (Message("assistant", (Text(begun),)),) if begun else ()
    return Conversation((*earlier, *opened), turn.generated[piece].system)


def _recall(
    transcript: Transcript,
    index: int,
    piece: int,
    conversation: Conversation,
    backend: Backend,
    session: str,
) -> None:
    """Give the backend the recorded tokens of the answers in `conversation`."""
    turn = transcript.turns[index]
    recorded = turn.generated[piece]
    answers = recorded_ids(
        [*(each.generated for each in transcript.path(turn.parent)), turn.generated[:piece]],
        tokenizer_sha256=backend.capabilities.tokenizer_sha256,
        system=recorded.system,
        adapter=recorded.adapter,
    )
    if answers:
        backend.remember(conversation, answers, adapter=recorded.adapter, session=session)


def _options(recorded: Generated, backend: Backend, session: str) -> StreamOptions:
    stopped_by_hand = recorded.finish_reason == "cancelled"
    # A remote server tells no ids: how long its stopped answer was is not known.
    stops_after = len(recorded.ids) if stopped_by_hand else 0
    return {
        "sampling": recorded.sampling,
        "max_new_tokens": stops_after or recorded.max_new_tokens,
        "stop": recorded.stop,
        "schema": recorded.schema,
        "adapter": recorded.adapter,
        "session": session,
        "logprobs": ALTERNATIVES if backend.capabilities.logprobs else None,
    }


def _compared(result: Replayed, recorded: Generated, answer: Answer, backend: Backend) -> Replayed:
    """Return how the new answer compares: by tokens where both mean the same, else by text."""
    here = backend.capabilities.tokenizer_sha256
    same_ids = bool(here) and recorded.model.tokenizer_sha256 == here
    first, gap = None, None
    if same_ids:
        now = tuple(token.id for token in answer.tokens)
        same = now == recorded.ids and answer.text == recorded.text
        if now != recorded.ids:
            first = _first_difference(recorded.ids, now)
            gap = _gap(recorded.ids[first : first + 1], answer.tokens[first : first + 1])
    else:
        same = answer.text == recorded.text
    return replace(result, now=answer.text, same=same, first_difference=first, gap=gap)


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _gap(recorded_id: Sequence[int], now: Sequence[Token]) -> float | None:
    """Return how much likelier the new token is than the recorded one; both are 0 or 1 long."""
    if not recorded_id or not now or now[0].logprob is None:
        return None
    known = {each.id: each.logprob for each in now[0].alternatives}
    if recorded_id[0] not in known:
        return None
    return now[0].logprob - known[recorded_id[0]]
