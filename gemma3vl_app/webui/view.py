"""What the page shows, as plain values: no gradio, no HTML, no models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Greedy, Sample, Sampling, Token


@dataclass(frozen=True)
class Draft:
    """What a person has written and not sent, or what they just sent: text and picture files."""

    text: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """One message of the page; `files` are pictures of a user's message.

    It is number `version` (from 0) of `versions` branches. `tokens` say how sure the model was of
    each, where that was asked for.
    """

    role: Literal["user", "assistant"]
    text: str
    files: tuple[str, ...] = ()
    version: int = 0
    versions: int = 1
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class View:
    """What the page shows: messages, a line of plain text below them, and the box to write in.

    It is of conversation `id`. `details` is a second line: where an answer's time went, and which
    model wrote it. `draft` None leaves the box as the person has it. `can_continue` is true where
    the last answer was cut.
    """

    messages: tuple[Shown, ...]
    id: str = ""
    line: str = ""
    details: str = ""
    is_error: bool = False
    answering: bool = False
    can_continue: bool = False
    draft: Draft | None = None


EMPTY = View(())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How answers are asked for; None leaves it to the model.

    A `temperature` of 0 always takes the likeliest token. `confidence` asks how sure the model is
    of each token. `schema` is the JSON schema that the answer has to follow, as text.
    """

    system: str = ""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = None
    crops: Literal["off", "on", "auto"] = "auto"
    adapter: str | None = None
    confidence: bool = False
    schema: str = ""

    def sampling(self, default: Sampling) -> Sampling:
        """Return the rule for the next answer; raises `ConversationError` for bad numbers."""
        if self.temperature == 0 or (self.temperature is None and isinstance(default, Greedy)):
            return Greedy()
        base = default if isinstance(default, Sample) else Sample()
        return Sample(
            temperature=base.temperature if self.temperature is None else self.temperature,
            top_k=base.top_k if self.top_k is None else self.top_k,
            top_p=base.top_p if self.top_p is None else self.top_p,
            seed=self.seed,
        )

    def json_schema(self) -> dict[str, Any] | None:
        """Return the schema as a value, None for none; raises `ConversationError`."""
        if not self.schema.strip():
            return None
        try:
            value = json.loads(self.schema)
        except (ValueError, RecursionError) as error:
            raise ConversationError(f"The schema in the settings is no JSON: {error}.") from None
        if not isinstance(value, dict):
            raise ConversationError("The schema in the settings has to be a JSON object: {...}.")
        return value


DEFAULTS = Settings()
