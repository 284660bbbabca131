"""`POST /v1/responses`: the basics of OpenAI's newer endpoint; nothing is stored."""

from __future__ import annotations

import time
import uuid
from typing import Any

from gemma3vl_app.api import failures, sampling
from gemma3vl_app.api.chat_completions import start_streams
from gemma3vl_app.api.conversations import SentPicture, Turn, conversation
from gemma3vl_app.api.failures import RequestError
from gemma3vl_app.api.requests import JsonObjectFormat
from gemma3vl_app.api.response_requests import (
    InputImage,
    Item,
    ResponseRequest,
    SchemaFormat,
)
from gemma3vl_app.api.serving import Call, Event, Events
from gemma3vl_app.backends.protocol import Capabilities, StreamOptions
from gemma3vl_app.generation import Answer


async def create(call: Call) -> dict[str, Any] | Events:
    """Answer one request: the whole object, or the events of a stream."""
    request = await call.in_thread(lambda: _start(call))
    response = _head(request)
    if request.stream:
        return _events(call, response)
    (answer,) = await call.choices.answers(idle_sec=call.idle_sec)
    call.metrics.count_answer(answer)
    return _finished(response, _message(answer.text), answer)


# --- from fields to a stream ---


def _start(call: Call) -> ResponseRequest:
    """Read the body, decode its pictures and start its stream; takes time."""
    request = ResponseRequest.read(call.body)
    backend = call.backend
    capabilities = backend.capabilities
    options = StreamOptions(
        adapter=sampling.adapter_of(request.model, backend),
        session=call.caller,
        schema=_schema(request, capabilities),
        max_new_tokens=sampling.answer_tokens(
            request.max_output_tokens, capabilities, call.limits, "max_output_tokens"
        ),
    )
    chosen = sampling.sampling(
        capabilities.sampling, temperature=request.temperature, top_p=request.top_p
    )
    asked = conversation(
        _turns(request),
        call.limits,
        remote=call.remote_pictures,
        system=request.instructions,
    )
    start_streams(call.choices, backend, asked, chosen, options, 1)
    return request


def _schema(request: ResponseRequest, capabilities: Capabilities) -> dict[str, Any] | None:
    match request.text and request.text.format:
        case SchemaFormat(schema_=asked):
            found = sampling.schema(asked, "text.format.schema")
        case JsonObjectFormat():
            found = dict(sampling.ANY_OBJECT)
        case _:
            return None
    if not capabilities.schema:
        raise RequestError(
            "This model cannot be held to a form. Leave text.format out.", param="text.format"
        )
    return found


def _turns(request: ResponseRequest) -> list[Turn]:
    if isinstance(request.input, str):
        return [Turn("user", (request.input,), "input")]
    return [_turn(number, item) for number, item in enumerate(request.input)]


def _turn(number: int, item: Item) -> Turn:
    where = f"input.{number}"
    if isinstance(item.content, str):
        return Turn(item.role, (item.content,), where)
    parts: list[str | SentPicture] = []
    for place, part in enumerate(item.content):
        if isinstance(part, InputImage):
            param = f"{where}.content.{place}.image_url"
            parts.append(SentPicture(part.image_url, part.detail or "auto", param))
        else:
            parts.append(part.text)
    return Turn(item.role, tuple(parts), where)


# --- from an answer to objects ---


def _head(request: ResponseRequest) -> dict[str, Any]:
    asked = request.text and request.text.format
    form = asked.model_dump(by_alias=True, exclude_none=True) if asked else {"type": "text"}
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "model": request.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": False,
        "temperature": request.temperature,
        "text": {"format": form},
        "tool_choice": "auto",
        "tools": [],
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "metadata": {},
    }


def _message(text: str) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [_part(text)],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _finished(response: dict[str, Any], message: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Return the response with its one message; one that was cut off says so."""
    used = answer.usage
    is_whole = answer.finish_reason == "stop"
    status = "completed" if is_whole else "incomplete"
    return {
        **response,
        "status": status,
        "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
        "output": [{**message, "status": status}],
        "usage": {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": used.cached_tokens,
                "image_tokens": used.image_tokens,
            },
            "output_tokens": used.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used.prompt_tokens + used.completion_tokens,
        },
    }


class _Numbered:
    """Makes the events of one response, each with its number."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, kind: str, **fields: Any) -> Event:
        event = Event({"type": kind, "sequence_number": self._count, **fields}, name=kind)
        self._count += 1
        return event


async def _events(call: Call, response: dict[str, Any]) -> Events:
    """Yield the events of a stream in OpenAI's order."""
    event, message, text = _Numbered(), _message(""), ""
    place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    try:
        yield event("response.created", response=response)
        yield event("response.in_progress", response=response)
        begun = {**message, "status": "in_progress", "content": []}
        yield event("response.output_item.added", output_index=0, item=begun)
        yield event("response.content_part.added", **place, part=_part(""))
        async for each in call.choices.chunks(idle_sec=call.idle_sec):
            if each is None:
                yield None
            elif isinstance(each[1], Answer):
                answer = each[1]
            elif each[1].text:
                text += each[1].text
                yield event("response.output_text.delta", **place, delta=each[1].text, logprobs=[])
        call.metrics.count_answer(answer)
        whole = {**message, "content": [_part(text)]}
        done = _finished(response, whole, answer)
        yield event("response.output_text.done", **place, text=text, logprobs=[])
        yield event("response.content_part.done", **place, part=_part(text))
        yield event("response.output_item.done", output_index=0, item=done["output"][0])
        yield event(f"response.{done['status']}", response=done)
    except Exception as error:  # the response has begun: an event is what is left to tell it
        failure = failures.describe(error)
        told = {"code": failure.code, "message": failure.message, "param": failure.param}
        yield event("error", **told, **failure.body)
