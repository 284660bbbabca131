"""The fields of `POST /v1/responses`, the basics of it; docs/api.md has them as a table."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from gemma3vl_app.api.fields import Fields, Whole
from gemma3vl_app.api.requests import Detail, JsonObjectFormat, TextFormat

_USED_BY_TOOLS = "This server calls no tools. Leave it out."
_NOT_STORED = "Answers are not stored: send the earlier turns as input."


class InputText(Fields):
    """A run of text."""

    type: Literal["input_text"]
    text: str


class InputImage(Fields):
    """A picture as a data URL."""

    neutral: ClassVar = {"file_id": ()}
    instead: ClassVar = {"file_id": "Send the picture as a data URL in image_url."}
    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None


class OutputText(Fields):
    """A text that the model said, as it came."""

    left_aside: ClassVar = frozenset({"logprobs"})
    neutral: ClassVar = {"annotations": ([],)}
    type: Literal["output_text"]
    text: str


def _text_or_list(value: Any) -> str:
    return "list" if isinstance(value, list) else "text"


InputPart = Annotated[InputText | InputImage, Field(discriminator="type")]
SaidPart = Annotated[OutputText | InputText, Field(discriminator="type")]
InputContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[InputPart], Tag("list"), Field(min_length=1)],
    Discriminator(_text_or_list),
]
SystemContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[InputText], Tag("list"), Field(min_length=1)],
    Discriminator(_text_or_list),
]
SaidContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[SaidPart], Tag("list"), Field(min_length=1)],
    Discriminator(_text_or_list),
]


class _Item(Fields):
    left_aside: ClassVar = frozenset({"id", "status"})  # of an answer that is sent back
    neutral: ClassVar = {"phase": ()}
    type: Literal["message"] = "message"


class SystemItem(_Item):
    """What holds for the whole conversation."""

    role: Literal["system", "developer"]
    content: SystemContent


class UserItem(_Item):
    """What a person says."""

    role: Literal["user"]
    content: InputContent


class AssistantItem(_Item):
    """What the model said."""

    role: Literal["assistant"]
    content: SaidContent


Item = Annotated[SystemItem | UserItem | AssistantItem, Field(discriminator="role")]
Input = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Item], Tag("list"), Field(min_length=1)],
    Discriminator(_text_or_list),
]


class SchemaFormat(Fields):
    """JSON of a schema; it is always enforced, whatever `strict` says."""

    type: Literal["json_schema"]
    name: str = Field(max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Fields):
    """The form of the answer."""

    neutral: ClassVar = {"verbosity": ("medium",)}
    format: (
        Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None


class ResponseRequest(Fields):
    """The body of a request for a response."""

    left_aside: ClassVar = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "user"})
    neutral: ClassVar = {
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "include": ([],),
        "max_tool_calls": (),
        "parallel_tool_calls": (True, False),
        "previous_response_id": (),
        "prompt": (),
        "prompt_cache_retention": (),
        "reasoning": ({},),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }
    instead: ClassVar = {
        "conversation": _NOT_STORED,
        "previous_response_id": _NOT_STORED,
        "store": "Answers are not stored. Leave it out, or send false.",
        "tool_choice": _USED_BY_TOOLS,
        "tools": _USED_BY_TOOLS,
    }

    model: str = Field(min_length=1)
    input: Input
    instructions: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_output_tokens: Whole | None = Field(default=None, ge=1)
    text: TextOptions | None = None
    stream: bool | None = None
