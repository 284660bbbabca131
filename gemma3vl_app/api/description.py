"""The API described for programs, as OpenAPI 3.1, made from the fields that requests are read by.

https://spec.openapis.org/oas/v3.1.1
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from gemma3vl_app import __version__
from gemma3vl_app.api.requests import ChatCompletionRequest
from gemma3vl_app.api.response_requests import ResponseRequest

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_ERRORS = {
    "400": "What was sent cannot be answered; `param` names the field.",
    "401": "A key is needed.",
    "404": "There is no such model, or nothing at this path.",
    "405": "This path does not take this method.",
    "408": "The request took too long to arrive.",
    "413": "The request is too large.",
    "415": "The body is not application/json.",
    "429": "This key has too many requests; Retry-After says when to come again.",
    "500": "A defect of the server; its log has the details.",
    "503": "No place, no memory or no model now; Retry-After says when to come again.",
}


@cache
def openapi(chat_path: str, responses_path: str, models_path: str) -> dict[str, Any]:
    """Return the OpenAPI document of the three paths; the same object each time."""
    _, requests = models_json_schema(
        [(ChatCompletionRequest, "validation"), (ResponseRequest, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gemma3vl_app",
            "version": __version__,
            "description": "Gemma 3 vision-language models over OpenAI's protocol.",
        },
        "security": [{}, {"key": []}],
        "paths": {
            chat_path: _post("ChatCompletionRequest", "ChatCompletion", "Answer a conversation."),
            responses_path: _post("ResponseRequest", "Response", "Answer; the newer endpoint."),
            models_path: _get("Models", "List the model and its adapters."),
            f"{models_path}/{{name}}": {
                **_get("Model", "Tell of one model."),
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": _TEXT}],
            },
        },
        "components": {
            "schemas": {**requests["$defs"], **_answers()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _post(request: str, answer: str, summary: str) -> dict[str, Any]:
    event = {  # of server-sent events
        "type": "object",
        "description": "One event of the stream, with stream: true; its data is JSON, or [DONE].",
        "properties": {"data": _TEXT, "event": _TEXT},
        "required": ["data"],
    }
    good = {
        "description": "The answer, whole or as events.",
        "content": {**_json(answer), "text/event-stream": {"schema": event}},
    }
    body = {"required": True, "content": _json(request)}
    told = {"summary": summary, "requestBody": body, "responses": {"200": good, **_failed()}}
    return {"post": told}


def _get(answer: str, summary: str) -> dict[str, Any]:
    good = {"description": "What was asked for.", "content": _json(answer)}
    return {"get": {"summary": summary, "responses": {"200": good, **_failed()}}}


def _failed() -> dict[str, Any]:
    return {s: {"description": said, "content": _json("Failure")} for s, said in _ERRORS.items()}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _answers() -> dict[str, Any]:
    """Return the schemas of what is sent back: the fields that a program can rely on."""
    finished = {"enum": ["stop", "length"]}
    message = _object(role={"const": "assistant"}, content=_TEXT, refusal={"type": "null"})
    choice = _object(
        index=_COUNT,
        message=message,
        finish_reason=finished,
        logprobs={"type": ["object", "null"]},
    )
    counted = _object(
        prompt_tokens=_COUNT,
        completion_tokens=_COUNT,
        total_tokens=_COUNT,
        prompt_tokens_details=_object(cached_tokens=_COUNT, image_tokens=_COUNT),
    )
    model = _object(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT)
    reason = {"type": ["string", "null"]}
    return {
        "ChatCompletion": _object(
            id=_TEXT,
            object={"const": "chat.completion"},
            created=_COUNT,
            model=_TEXT,
            system_fingerprint=_TEXT,
            choices={"type": "array", "items": choice, "minItems": 1},
            usage=counted,
        ),
        "Response": _object(
            id=_TEXT,
            object={"const": "response"},
            created_at=_COUNT,
            model=_TEXT,
            status={"enum": ["completed", "incomplete"]},
            output={"type": "array", "items": _object(type={"const": "message"}), "minItems": 1},
            usage=_object(input_tokens=_COUNT, output_tokens=_COUNT, total_tokens=_COUNT),
        ),
        "Models": _object(object={"const": "list"}, data={"type": "array", "items": model}),
        "Model": model,
        "Failure": _object(error=_object(message=_TEXT, type=_TEXT, param=reason, code=reason)),
    }


def _object(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields)}
