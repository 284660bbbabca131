"""What a request's fields may be: strict types, nothing unknown, and errors in our own words.

Three kinds of fields are no part of a model here: what is harmless is left aside, what is not
supported is accepted only with a value that changes nothing, and the rest is refused by its name.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Self

import pydantic_core
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from gemma3vl_app.api.failures import RequestError

Neutral = tuple[Any, ...]  # values that ask for nothing; None always is one
_SHOWN_CHARS = 100


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# JSON has one kind of number: 8.0, as some languages write it, is 8.
Whole = Annotated[int, BeforeValidator(_whole)]


class Fields(BaseModel):
    """A strict JSON object; a whole number is no string, and no text is a number."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )
    # Harmless: what they say changes no answer.
    left_aside: ClassVar[frozenset[str]] = frozenset()
    # Not supported, but for the values given here, which change nothing.
    neutral: ClassVar[Mapping[str, Neutral]] = {}
    # What to say of an unsupported field beyond its name.
    instead: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        names = {field.alias or name for name, field in cls.model_fields.items()}
        for name, value in data.items():
            if name not in names and name not in cls.left_aside:
                cls._check_neutral(name, value, names)
        return {name: value for name, value in data.items() if name in names}

    @classmethod
    def _check_neutral(cls, name: str, value: Any, names: Collection[str]) -> None:
        """Raise pydantic's error unless a field that the model does not have asks for nothing."""
        if name in cls.neutral:
            if value is None or any(_is_same(value, each) for each in cls.neutral[name]):
                return
            said = f"is not supported. {cls.instead.get(name, 'Leave it out.')}"
            raise PydanticCustomError("unsupported_parameter", "", {"field": name, "said": said})
        close = difflib.get_close_matches(
            name[:_SHOWN_CHARS], [*names, *cls.neutral, *cls.left_aside], 1
        )
        advice = f"Did you mean '{close[0]}'?" if close else "Leave it out."
        said = f"is no field of this API. {advice}"
        raise PydanticCustomError("unknown_parameter", "", {"field": name, "said": said})

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the fields that are no part of the model, too: they are accepted."""
        reference = handler(core_schema)
        fields = handler.resolve_ref_schema(reference).setdefault("properties", {})
        for name in sorted(cls.left_aside):
            fields[name] = {"description": "Accepted; changes nothing."}
        for name, values in cls.neutral.items():
            said = cls.instead.get(name, "Leave it out.")
            fields[name] = {"enum": [None, *values], "description": f"Not supported. {said}"}
        return reference

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Return the fields of a JSON body; raises `RequestError` naming the first wrong one."""
        try:
            data = pydantic_core.from_json(body, allow_inf_nan=False)
        except ValueError as error:  # which also says where, but in the words of a library
            raise RequestError(
                "The body is not valid JSON. Send one JSON object in UTF-8.", code="invalid_json"
            ) from error
        if not isinstance(data, dict):
            raise RequestError("The body must be a JSON object.", code="invalid_json")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _in_our_words(error, data) from error


_TYPES = {
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "missing": "is missing",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "union_tag_invalid": "must be one of: {expected_tags}",
    "union_tag_not_found": "needs a '{discriminator}'",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_long": "has too many entries: at most {max_length} are accepted",
    "too_short": "has too few entries: at least {min_length} needed",
    "string_too_long": "is too long: at most {max_length} characters are accepted",
    "string_too_short": "is too short: at least {min_length} characters are needed",
}


def _in_our_words(error: ValidationError, data: Any) -> RequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    context = first.get("ctx", {})
    path = _path(first["loc"], data)
    if "said" in context:  # a field that is no part of the model
        path.append(context["field"])
        param = _shown(".".join(path))
        return RequestError(f"'{param}' {context['said']}", param=param, code=first["type"])
    if first["type"] == "missing":
        path.append(str(first["loc"][-1]))
    if first["type"] == "union_tag_invalid":
        path.append(context["discriminator"].strip("'"))
    param = _shown(".".join(path))
    words = _TYPES.get(first["type"], "has a value that is not accepted")
    if first["type"] == "string_type" and str(first["loc"][-1]) != path[-1]:  # a choice of two
        words = "must be a string or a list"
    said = words.format_map({k: str(v).replace("'", "") for k, v in context.items()})
    return RequestError(f"'{param}' {said}.", param=param, code="invalid_value")


def _path(location: tuple[int | str, ...], data: Any) -> list[str]:
    """Return where a value stands, such as messages, 0, content, without names of our types."""
    path: list[str] = []
    for step in location:
        inside = isinstance(data, dict) and step in data
        if inside or (isinstance(data, list) and isinstance(step, int) and step < len(data)):
            data = data[step]
            path.append(str(step))
    return path


def _is_same(value: Any, neutral: Any) -> bool:
    """Compare as JSON does: true is not 1, but 0 and 0.0 are one number."""
    if isinstance(value, bool) != isinstance(neutral, bool):
        return False
    return bool(value == neutral)


def _shown(path: str) -> str:
    """Return a field's path fit to be said back: short, and visible."""
    return "".join(c if c.isprintable() else "?" for c in path[:_SHOWN_CHARS])
