"""Log-probabilities of a given answer, from a server that tells those of its prompt (vLLM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemma3vl_app.backends.remote.connection import Connection
from gemma3vl_app.backends.remote.failures import about
from gemma3vl_app.backends.remote.rendering import messages_of, neutralised
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.generation import Token
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting.template import check_text


async def score(
    connection: Connection,
    model: str,
    conversation: Conversation,
    text: str,
    url_of: Callable[[Picture], str],
) -> tuple[Token, ...]:
    """Return the tokens of `text` as the next answer: those by which the prompt grows with it."""
    check_text(text, "The text to score")
    if not text:
        raise ConversationError("There is no text to score; give at least one character.")
    if conversation.messages[-1].role == "assistant":
        raise ConversationError("The conversation ends with an answer. End it with a question.")
    messages = messages_of(conversation, url_of)
    answer = {"role": "assistant", "content": neutralised(text)}
    before = await _prompt(connection, {"model": model, "messages": messages})
    goes_on = {"continue_final_message": True, "add_generation_prompt": False}
    both = await _prompt(connection, {"model": model, "messages": [*messages, answer], **goes_on})
    tokens = tuple(_token(entry) for entry in both[len(before) :])
    if not tokens or any(token.logprob is None for token in tokens):
        what = "The {server} did not tell the log-probabilities of the text."
        raise about(connection.host, EngineError, what, "Use another server.")
    return tokens


async def _prompt(connection: Connection, body: dict[str, Any]) -> list[Any]:
    told = await connection.ask(
        "/chat/completions", {**body, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
    )
    entries = told.get("prompt_logprobs")
    return entries if isinstance(entries, list) else []


def _token(entry: object) -> Token:
    """Return the token of an entry: {id: {"logprob", "decoded_token"}}; its own is the first."""
    if not isinstance(entry, dict) or not entry:
        return Token(0, "")
    id, told = next(iter(entry.items()))
    told = told if isinstance(told, dict) else {}
    logprob = told.get("logprob")
    return Token(
        int(id) if str(id).isdecimal() else 0,
        str(told.get("decoded_token") or ""),
        float(logprob) if isinstance(logprob, int | float) else None,
    )
