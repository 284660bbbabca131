"""Data from pictures: an answer that is held to a JSON schema, and read back as a typed value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, Unpack, overload

from pydantic import BaseModel, ValidationError

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.generation import Answer
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Crops, Picture, PictureSource
from gemma3vl_app.schemas import closed, parse_json
from gemma3vl_app.tasks import prompts
from gemma3vl_app.tasks.requests import TaskOptions, TaskRequest, open_pictures
from gemma3vl_app.tasks.results import Extraction
from gemma3vl_app.wording import counted

Model = TypeVar("Model", bound=BaseModel)


@overload
def extract(
    backend: Backend,
    pictures: PictureSource | Iterable[PictureSource],
    schema: type[Model],
    *,
    instructions: str | None = None,
    crops: Crops = "auto",
    **options: Unpack[TaskOptions],
) -> Extraction[Model]: ...


@overload
def extract(
    backend: Backend,
    pictures: PictureSource | Iterable[PictureSource],
    schema: Mapping[str, Any],
    *,
    instructions: str | None = None,
    crops: Crops = "auto",
    **options: Unpack[TaskOptions],
) -> Extraction[Any]: ...


def extract(
    backend: Backend,
    pictures: PictureSource | Iterable[PictureSource],
    schema: type[BaseModel] | Mapping[str, Any],
    *,
    instructions: str | None = None,
    crops: Crops = "auto",
    **options: Unpack[TaskOptions],
) -> Extraction[Any]:
    """Take data from one picture or several, as a pydantic model or a JSON schema says it.

    The result's `value` is an instance of the model, or the parsed JSON. `options` are those of
    `Backend.stream`. Raises `PictureError` for a bad picture, `ConversationError` where the schema
    is none or `max_new_tokens` ended the answer, `EngineError` where it does not fit the schema.
    """
    request = extract_request(open_pictures(pictures, crops), schema, instructions=instructions)
    with request.stream(backend, options) as stream:
        answer = stream.answer
    return Extraction(answer, read_value(answer, schema))


def extract_request(
    pictures: Iterable[Picture],
    schema: type[BaseModel] | Mapping[str, Any],
    *,
    instructions: str | None = None,
) -> TaskRequest:
    """Return what `extract` asks: the prompt shows the schema that the answer is held to."""
    shown = _json_schema(schema)
    try:
        prompt = prompts.EXTRACT.text.format(schema=json.dumps(shown, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConversationError("The schema is not valid JSON; give a JSON schema.") from error
    if instructions and instructions.strip():
        prompt += f"\n\n{instructions.strip()}"
    return TaskRequest(Conversation().user(*pictures, prompt), shown)


def read_value(answer: Answer, schema: type[BaseModel] | Mapping[str, Any]) -> Any:
    """Return the value of a finished answer; raises as `extract` does."""
    if answer.finish_reason == "length":
        raise ConversationError(
            f"The answer was cut after {counted(answer.usage.completion_tokens, 'token')}, in the "
            "middle of its JSON. Raise max_new_tokens, or ask for less in the schema."
        )
    if answer.finish_reason == "cancelled":
        raise EngineError("The answer was stopped in the middle of its JSON. Ask again.")
    try:
        parsed = parse_json(answer.text)
        return schema.model_validate_json(answer.text) if isinstance(schema, type) else parsed
    except ValidationError as error:
        raise EngineError(_explain(error)) from error
    except ValueError as error:
        raise EngineError(
            f"The answer is not valid JSON ({error}), so this model does not keep to schemas. "
            "Use another one."
        ) from error


def _json_schema(schema: type[BaseModel] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(schema, Mapping):
        return dict(closed(dict(schema)))
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return dict(closed(schema.model_json_schema()))
    raise ConversationError("schema must be a JSON schema (a dict) or a pydantic model.")


def _explain(error: ValidationError) -> str:
    """Return where and why a value does not fit, in a line."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(each) for each in first["loc"]) or "the value"
    return (
        f"The answer does not fit {error.title}: {where}: {first['msg']}. "
        "Ask again with instructions about it, or loosen the model."
    )
