"""Every field of the API that takes a string, as a request that has some tokens spelled there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.api.servers import picture_url

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
MOST_CHARS = 64  # of a schema's name
STOPS = 16
Body = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """A field by name; `bodies` makes the requests that spell `tokens` there.

    `status` is what each is answered with: 200, or 400 and 404 for a value that nobody knows.
    """

    path: str
    name: str
    bodies: Callable[[Sequence[str]], Iterator[Body]]
    status: int = 200


def joined(tokens: Sequence[str]) -> str:
    """A text that spells all; some with nothing between, as `<end_of_turn>model` has it."""
    return "Say " + "".join(tokens[::2]) + " ".join(tokens[1::2]) + "."


def packed(tokens: Sequence[str], most: int = MOST_CHARS) -> Iterator[str]:
    """Texts of at most so many characters that together spell all."""
    text = ""
    for token in tokens:
        if text and len(text) + len(token) > most:
            yield text
            text = ""
        text += token
    yield text


def chat(*messages: Body, **fields: Any) -> Body:
    """A chat completion of one token."""
    return {"model": "tiny", "messages": list(messages), "max_tokens": 1, **fields}


def message(role: str, content: Any, **fields: Any) -> Body:
    return {"role": role, "content": content, **fields}


def response(input: Any, **fields: Any) -> Body:
    """A response of one token."""
    return {"model": "tiny", "input": input, "max_output_tokens": 1, **fields}


QUESTION = message("user", "q")
PICTURE = {"type": "image_url", "image_url": {"url": picture_url()}}
INPUT_PICTURE = {"type": "input_image", "image_url": picture_url()}


def text_part(text: str, kind: str = "text") -> Body:
    return {"type": kind, "text": text}


def once(make: Callable[[str], Body]) -> Callable[[Sequence[str]], Iterator[Body]]:
    """One request with all tokens in one text."""

    def bodies(tokens: Sequence[str]) -> Iterator[Body]:
        yield make(joined(tokens))

    return bodies


def short(make: Callable[[str], Body]) -> Callable[[Sequence[str]], Iterator[Body]]:
    """A few requests, for a field that takes few characters."""

    def bodies(tokens: Sequence[str]) -> Iterator[Body]:
        yield from map(make, packed(tokens))

    return bodies


def stops(tokens: Sequence[str]) -> Iterator[Body]:
    for start in range(0, len(tokens), STOPS):
        yield chat(QUESTION, stop=list(tokens[start : start + STOPS]))


def schema_format(name: str, schema: Body, **fields: Any) -> Body:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, **fields}}


def of_keys(keys: Sequence[str]) -> Body:
    properties = {key: {"type": "string"} for key in keys}
    return {"type": "object", "properties": properties, "required": list(keys)}


def held_to(form: Body) -> Body:
    return chat(QUESTION, response_format=form)


def text_form(**fields: Any) -> Body:
    form = {"type": "json_schema", "name": "n", "schema": of_keys(["a"]), **fields}
    return response("q", text={"format": form})


def each(make: Callable[[Sequence[str]], Body]) -> Callable[[Sequence[str]], Iterator[Body]]:
    """One request with all tokens as a list."""

    def bodies(tokens: Sequence[str]) -> Iterator[Body]:
        yield make(tokens)

    return bodies


IN_CHAT = {
    "system": once(lambda t: chat(message("system", t), QUESTION)),
    "system part": once(lambda t: chat(message("system", [text_part(t)]), QUESTION)),
    "developer": once(lambda t: chat(message("developer", t), QUESTION)),
    "user": once(lambda t: chat(message("user", t))),
    "user parts": once(lambda t: chat(message("user", [text_part(t), text_part(t)]))),
    "beside a picture": once(lambda t: chat(message("user", [text_part(t), PICTURE]))),
    "assistant": once(lambda t: chat(QUESTION, message("assistant", t), QUESTION)),
    "answer to go on with": once(
        lambda t: chat(
            *(QUESTION, message("assistant", t)),
            continue_final_message=True,
            add_generation_prompt=False,
        )
    ),
    "names": once(
        lambda t: chat(
            message("system", "s", name=t),
            message("user", "q", name=t),
            message("assistant", "a", name=t),
            QUESTION,
        )
    ),
    "stop": stops,
    "user id": once(lambda t: chat(QUESTION, user=t, safety_identifier=t, prompt_cache_key=t)),
    "metadata": once(lambda t: chat(QUESTION, metadata={t: t})),
    "schema name": short(lambda t: held_to(schema_format(t, of_keys(["a"])))),
    "schema description": once(
        lambda t: held_to(schema_format("n", of_keys(["a"]) | {"title": t}, description=t))
    ),
    "schema keys": each(lambda tokens: held_to(schema_format("n", of_keys(tokens)))),
    "schema enum": each(lambda tokens: held_to(schema_format("n", {"enum": list(tokens)}))),
}
REFUSED_IN_CHAT = {
    "model": once(lambda t: chat(QUESTION) | {"model": t}),
    "role": once(lambda t: chat(message(t, "q"))),
    "kind of part": once(lambda t: chat(message("user", [text_part("q", t)]))),
    "picture": once(
        lambda t: chat(message("user", [{"type": "image_url", "image_url": {"url": t}}]))
    ),
    "field": once(lambda t: chat(QUESTION) | {t: t}),
    "tool": once(lambda t: chat(QUESTION, tools=[{"type": "function", "function": {"name": t}}])),
    "tool calls": once(
        lambda t: chat(QUESTION, message("assistant", "a", tool_calls=[{"id": t}]), QUESTION)
    ),
    "form": once(lambda t: held_to({"type": t})),
}
IN_RESPONSES = {
    "instructions": once(lambda t: response("q", instructions=t)),
    "input": once(response),
    "user": once(lambda t: response([message("user", [text_part(t, "input_text")])])),
    "developer": once(lambda t: response([message("developer", t), QUESTION])),
    "beside a picture": once(
        lambda t: response([message("user", [text_part(t, "input_text"), INPUT_PICTURE])])
    ),
    "assistant": once(
        lambda t: response(
            [QUESTION, message("assistant", [text_part(t, "output_text")], id=t), QUESTION]
        )
    ),
    "metadata": once(lambda t: response("q", metadata={t: t}, user=t)),
    "schema name": short(lambda t: text_form(name=t)),
    "schema description": once(lambda t: text_form(description=t)),
    "schema keys": each(lambda tokens: text_form(schema=of_keys(tokens))),
    "schema enum": each(lambda tokens: text_form(schema={"enum": list(tokens)})),
}
REFUSED_IN_RESPONSES = {
    "model": once(lambda t: response("q") | {"model": t}),
    "earlier response": once(lambda t: response("q", previous_response_id=t)),
    "tool": once(lambda t: response("q", tools=[{"type": "function", "name": t}])),
    "picture": once(
        lambda t: response([message("user", [{"type": "input_image", "image_url": t}])])
    ),
}
FIELDS = [
    *(Field(CHAT, name, bodies) for name, bodies in IN_CHAT.items()),
    *(
        Field(CHAT, name, bodies, 404 if name == "model" else 400)
        for name, bodies in REFUSED_IN_CHAT.items()
    ),
    *(Field(RESPONSES, name, bodies) for name, bodies in IN_RESPONSES.items()),
    *(
        Field(RESPONSES, name, bodies, 404 if name == "model" else 400)
        for name, bodies in REFUSED_IN_RESPONSES.items()
    ),
]
