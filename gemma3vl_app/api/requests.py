"""The fields of `POST /v1/chat/completions`; docs/api.md has them as a table."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from gemma3vl_app.api.fields import Fields, Whole

MAX_STOPS, MAX_STOP_CHARS, MAX_ALTERNATIVES = 16, 128, 20
MAX_SEED = 2**63 - 1
Detail = Literal["low", "high", "auto"]
_USED_BY_TOOLS = "This server calls no tools. Leave it out."


# --- messages ---


class TextPart(Fields):
    """A run of text."""

    type: Literal["text"]
    text: str


class ImageUrl(Fields):
    """A picture as a data URL; `detail` low takes it whole, high adds crops, auto decides."""

    url: str
    detail: Detail | None = None


class ImagePart(Fields):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


UserPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _text_or_list(value: Any) -> str:
    return "list" if isinstance(value, list) else "text"


UserContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[UserPart], Tag("list"), Field(min_length=1)],
    Discriminator(_text_or_list),
]
TextContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[TextPart], Tag("list"), Field(min_length=1)],
    Discriminator(_text_or_list),
]


class SystemMessage(Fields):
    """What holds for the whole conversation; "developer" is its newer name."""

    left_aside: ClassVar = frozenset({"name"})
    role: Literal["system", "developer"]
    content: TextContent


class UserMessage(Fields):
    """What a person says."""

    left_aside: ClassVar = frozenset({"name"})
    role: Literal["user"]
    content: UserContent


class AssistantMessage(Fields):
    """What the model said; clients send an answer back with all the fields it came with."""

    left_aside: ClassVar = frozenset({"name"})
    neutral: ClassVar = {
        **{"refusal": (), "audio": (), "function_call": (), "reasoning": ("",)},
        **{"tool_calls": ([],), "annotations": ([],), "reasoning_content": ("",)},
    }
    role: Literal["assistant"]
    content: TextContent


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


# --- the form of the answer ---


class JsonSchema(Fields):
    """A JSON schema by name; it is always enforced, whatever `strict` says."""

    name: str = Field(max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(Fields):
    """Plain text."""

    type: Literal["text"]


class JsonObjectFormat(Fields):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Fields):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StreamOptions(Fields):
    """What a stream brings beside the answer."""

    neutral: ClassVar = {"include_obfuscation": (True, False)}
    include_usage: bool | None = None


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[
    Annotated[Stop, Tag("text")] | Annotated[list[Stop], Tag("list"), Field(max_length=MAX_STOPS)],
    Discriminator(_text_or_list),
]


class ChatCompletionRequest(Fields):
    """The body of a chat completion."""

    left_aside: ClassVar = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "user"})
    neutral: ClassVar = {
        # OpenAI's
        "audio": (),
        "frequency_penalty": (0,),
        "function_call": ("none",),
        "functions": ([],),
        "logit_bias": ({},),
        "modalities": (["text"], []),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "presence_penalty": (0,),
        "prompt_cache_retention": (),
        "reasoning_effort": ("none",),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
        # what clients of vLLM and llama.cpp send
        "add_special_tokens": (False,),
        "best_of": (1,),
        "cache_salt": (),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "documents": ([],),
        "echo": (False,),
        "guided_choice": (),
        "guided_grammar": (),
        "guided_json": (),
        "guided_regex": (),
        "ignore_eos": (False,),
        "include_stop_str_in_output": (False,),
        "length_penalty": (1,),
        "min_p": (0,),
        "min_tokens": (0,),
        "mm_processor_kwargs": ({},),
        "priority": (0,),
        "prompt_logprobs": (),
        "repetition_penalty": (1,),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "stop_token_ids": ([],),
        "structured_outputs": (),
        "use_beam_search": (False,),
    }
    instead: ClassVar = {
        "cache_salt": "Caches are separated by key, on the server's side. Leave it out.",
        "function_call": _USED_BY_TOOLS,
        "functions": _USED_BY_TOOLS,
        "guided_json": "Send the schema as response_format.",
        "store": "Answers are not stored. Leave it out, or send false.",
        "structured_outputs": "Send the schema as response_format.",
        "tool_choice": _USED_BY_TOOLS,
        "tools": _USED_BY_TOOLS,
    }

    model: str = Field(min_length=1)
    messages: list[ChatMessage] = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: Whole | None = Field(default=None, ge=-1, le=2**31)
    seed: Whole | None = Field(default=None, ge=0, le=MAX_SEED)
    stop: Stops | None = None
    max_tokens: Whole | None = Field(default=None, ge=1)
    max_completion_tokens: Whole | None = Field(default=None, ge=1)
    n: Whole | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=MAX_ALTERNATIVES)
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None  # the opposite of the line above, as vLLM has it
