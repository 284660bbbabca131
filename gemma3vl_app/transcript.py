"""A chat as plain values: every branch, and how each answer came about, enough to write it again.

What `Chat` hands out and takes back, and what conversation files, exports and replays are made
of. Knows nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import FinishReason, Greedy, Sampling, Timing, Usage
from gemma3vl_app.messages import Conversation, Message

ROOT = -1  # the parent of a first message


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which model answered, exactly enough to ask it again; "" where that is not known.

    `name` is what a program calls it, `revision` the hub's commit or a digest of the files,
    `tokenizer_sha256` that of tokenizer.json: token ids mean the same under the same digest only.
    `weights` is their form ("fp32", "bf16", "nf4", "int8"), `arithmetic` says what computed with
    them, such as "float32, cpu AVX2, 2 threads".
    """

    name: str
    revision: str = ""
    tokenizer_sha256: str = ""
    weights: str = ""
    arithmetic: str = ""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One call of `Backend.stream` and what came of it.

    `ids` are all generated tokens, of which the first `said_tokens` say `text`; the others, if any,
    lie past a stop string.
    `schema` is a JSON schema. The conversation it answered is the path of turns up to it, with
    `system`.
    """

    ids: tuple[int, ...]
    said_tokens: int
    text: str
    finish_reason: FinishReason
    model: ModelIdentity
    system: str | None = None
    sampling: Sampling = field(default_factory=Greedy)
    max_new_tokens: int = 1024
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = field(default=None, hash=False)
    adapter: str | None = None
    usage: Usage = field(default_factory=Usage)
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True)
class Turn:
    """A message in the tree: `parent` is the index of the turn before it, `ROOT` for a first one.

    `generated` holds the calls that wrote an assistant's message: one, or more where it was
    resumed; none where it was given.
    """

    message: Message
    parent: int
    generated: tuple[Generated, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """All turns of a chat, parents before children, siblings oldest first.

    `head` is the turn where the chat stands (`ROOT`: at the beginning), `system` and `sampling`
    hold for what is asked next.
    """

    turns: tuple[Turn, ...] = ()
    head: int = ROOT
    system: str | None = None
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        for index, turn in enumerate(self.turns):
            if not ROOT <= turn.parent < index:
                raise ConversationError(
                    f"Turn {index} follows turn {turn.parent}, which does not come before it."
                )
            if turn.generated and turn.message.role != "assistant":
                raise ConversationError(f"Turn {index} is the user's, yet it was generated.")
        if not ROOT <= self.head < len(self.turns):
            raise ConversationError(f"The chat stands at turn {self.head}, which does not exist.")

    def path(self, index: int) -> tuple[Turn, ...]:
        """Return the turns from the first message down to turn `index`; none for `ROOT`."""
        path: list[Turn] = []
        while index != ROOT:
            path.append(self.turns[index])
            index = self.turns[index].parent
        return tuple(reversed(path))

    def conversation(self, index: int | None = None) -> Conversation:
        """Return the messages down to turn `index`, or to where the chat stands."""
        path = self.path(self.head if index is None else index)
        return Conversation(tuple(turn.message for turn in path), self.system)


def recorded_ids(
    pieces: Sequence[tuple[Generated, ...]],
    *,
    tokenizer_sha256: str,
    system: str | None,
    adapter: str | None,
) -> dict[int, list[int]]:
    """Return the tokens that `pieces`, by message, were written with and that still hold.

    That is under the same tokenizer only, and where the same system text and adapter stood before
    them: a chat that changes those has its earlier answers encoded anew.
    """
    asked = (tokenizer_sha256, system, adapter)
    return {
        index: [id for each in generated for id in each.ids[: each.said_tokens]]
        for index, generated in enumerate(pieces)
        if tokenizer_sha256
        and generated
        and all((g.model.tokenizer_sha256, g.system, g.adapter) == asked for g in generated)
    }
