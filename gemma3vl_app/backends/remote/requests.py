"""The options of a request as the body of an HTTP request; what a server cannot keep is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gemma3vl_app.backends.options import checked_logprobs, checked_stop, whole_number
from gemma3vl_app.backends.protocol import Schema
from gemma3vl_app.backends.remote.dialects import DIALECTS, Dialect
from gemma3vl_app.backends.remote.probing import Facts
from gemma3vl_app.backends.remote.rendering import messages_of
from gemma3vl_app.errors import ContextLengthError, ConversationError
from gemma3vl_app.generation import Greedy, Preview, Sampling
from gemma3vl_app.messages import Conversation, Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting.template import validate
from gemma3vl_app.schemas import as_json_schema

# A rough count, for previews: English has about four characters a token, Chinese one or two.
_CHARS_PER_TOKEN, _TOKENS_PER_MESSAGE = 4, 5


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer that a server is asked for: the body, and what is made of what comes back."""

    body: dict[str, Any]
    stop: tuple[str, ...]
    alternatives: int | None
    estimate: Preview
    pictures: int
    home: str  # requests of one conversation have the same: the server that has it cached is best


def request_for(
    conversation: Conversation,
    facts: Facts,
    url_of: Callable[[Picture], str],
    *,
    sampling: Sampling,
    max_new_tokens: int,
    stop: Sequence[str],
    logprobs: int | None,
    schema: Schema | None,
    model: str,
    session: str,
) -> Request:
    """Return the request; raises `ConversationError` for an option the server cannot keep.

    `model` is the name that is asked for: the model itself or one of its adapters.
    """
    dialect = DIALECTS[facts.kind]
    check_conversation(conversation, facts)
    limit = whole_number("max_new_tokens", max_new_tokens, 1, None)
    stops = checked_stop(stop)
    estimate = preview_of(conversation, facts)
    room = facts.context_tokens - estimate.prompt_tokens
    body: dict[str, Any] = {
        "model": model,
        "messages": messages_of(conversation, url_of, cleans=dialect.cleans, crops=dialect.crops),
        "stream": True,
        "max_tokens": max(1, min(limit, room)),
        **dialect.always,
        **_drawing(sampling, dialect),
    }
    if stops:
        body["stop"] = list(stops)
    alternatives = checked_logprobs(logprobs)
    if alternatives is not None:
        _refuse_unless(facts.logprobs, dialect, "logprobs", "does not tell log-probabilities")
        # llama.cpp tells nothing at all where it is asked for no alternatives.
        body |= {"logprobs": True, "top_logprobs": max(1, alternatives)}
    if schema is not None:
        _refuse_unless(facts.schema, dialect, "schema", "cannot be held to a JSON schema")
        held = {"name": "answer", "schema": as_json_schema(schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": held}
    if conversation.messages[-1].role == "assistant":
        body |= _continuing(dialect, has_schema=schema is not None)
    if session and dialect.salted:
        body["cache_salt"] = hashlib.sha256(session.encode()).hexdigest()
    return Request(
        body=body,
        stop=stops,
        alternatives=alternatives,
        estimate=estimate,
        pictures=len(conversation.pictures),
        home=_home(conversation, session),
    )


def preview_of(conversation: Conversation, facts: Facts) -> Preview:
    """Return what a conversation costs, roughly: the server's tokenizer is not known here."""
    chars = len(conversation.system or "") + sum(len(m.text) for m in conversation.messages)
    image_tokens = facts.image_tokens * len(conversation.pictures)
    text_tokens = -(-chars // _CHARS_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(conversation.messages)
    return Preview(
        prompt_tokens=text_tokens + image_tokens,
        cached_tokens=0,
        image_tokens=image_tokens,
        crops=tuple(() for _ in conversation.pictures),
        context_tokens=facts.context_tokens,
        exact=False,
    )


def check_conversation(conversation: Conversation, facts: Facts) -> None:
    """Raise `ConversationError` for a conversation that the server cannot be asked at all."""
    validate(conversation, takes_pictures=facts.image_tokens > 0)
    dialect = DIALECTS[facts.kind]
    if not dialect.crops and any(picture.crops == "on" for picture in conversation.pictures):
        raise ConversationError(
            f"crops='on' cannot be asked of {dialect.title}: it shows the model whole pictures. "
            "Use crops='auto' or 'off', or cut the picture yourself."
        )
    at_least = facts.image_tokens * len(conversation.pictures)
    if at_least >= facts.context_tokens:
        raise ContextLengthError(
            f"The pictures alone take about {at_least:,} tokens; the server's context holds "
            f"{facts.context_tokens:,}. Take pictures out."
        )


def _drawing(sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    if isinstance(sampling, Greedy):
        return {"temperature": 0.0}
    drawing: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if dialect.top_k:
        drawing["top_k"] = sampling.top_k or _OFF.get(dialect.title, 0)
    elif sampling.top_k:
        raise ConversationError(
            f"top_k cannot be asked of {dialect.title}. Use top_k=0, which leaves it to the server."
        )
    if sampling.seed is not None:
        drawing["seed"] = sampling.seed
    return drawing


_OFF = {"vLLM": -1, "SGLang": -1}  # where 0 does not say "off" in every version


def _continuing(dialect: Dialect, *, has_schema: bool) -> dict[str, Any]:
    if not dialect.continues:
        raise ConversationError(
            f"An unfinished answer cannot be gone on with by {dialect.title}. Ask again instead, "
            "or serve the model with vLLM, SGLang or llama.cpp."
        )
    if has_schema:
        raise ConversationError(
            "schema: a server cannot go on with an unfinished answer and hold it to a schema. "
            "Ask again instead."
        )
    if dialect.continues == "flags":
        return {"continue_final_message": True, "add_generation_prompt": False}
    return {}


def _refuse_unless(can: bool, dialect: Dialect, option: str, why_not: str) -> None:
    if not can:
        raise ConversationError(
            f"{option}: the model at {dialect.title} {why_not}. Leave the option out, or use "
            "another server."
        )


def _home(conversation: Conversation, session: str) -> str:
    """Return what the requests of one conversation have in common: how it begins."""
    first = conversation.messages[0]
    said = [part.text if isinstance(part, Text) else part.sha256 for part in first.parts]
    return hashlib.sha256(repr((session, conversation.system, said)).encode()).hexdigest()
