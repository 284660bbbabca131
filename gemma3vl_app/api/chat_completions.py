"""`POST /v1/chat/completions`: from its fields to streams of a backend, and back to its objects."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Sequence
from typing import Any

from gemma3vl_app.api import failures, sampling
from gemma3vl_app.api.choices import Choices
from gemma3vl_app.api.conversations import SentPicture, Turn, conversation
from gemma3vl_app.api.failures import RequestError
from gemma3vl_app.api.limits import ApiLimits
from gemma3vl_app.api.requests import (
    ChatCompletionRequest,
    ChatMessage,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
)
from gemma3vl_app.api.serving import Call, Event, Events
from gemma3vl_app.backends.protocol import Backend, Capabilities, StreamOptions
from gemma3vl_app.generation import Answer, Sampling, Token
from gemma3vl_app.messages import Conversation
from gemma3vl_app.stream import Stream

LEAST_LOGPROB = -9999.0  # what OpenAI says where a probability is nil: JSON has no infinity


async def create(call: Call) -> dict[str, Any] | Events:
    """Answer one request: the whole object, or the events of a stream."""
    request = await call.in_thread(lambda: _start(call))
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": fingerprint(call.backend.capabilities),
    }
    if request.stream:
        return _events(call, request, head)
    answers = await call.choices.answers(idle_sec=call.idle_sec)
    for answer in answers:
        call.metrics.count_answer(answer)
    return {
        **head,
        "object": "chat.completion",
        "choices": [_choice(index, answer, request) for index, answer in enumerate(answers)],
        "usage": usage(answers),
    }


# --- from fields to streams ---


def _start(call: Call) -> ChatCompletionRequest:
    """Read the body, decode its pictures and start its streams; takes time."""
    request = ChatCompletionRequest.read(call.body)
    backend, limits = call.backend, call.limits
    adapter = sampling.adapter_of(request.model, backend)
    goes_on = bool(request.continue_final_message)
    if request.add_generation_prompt == goes_on:
        raise RequestError(
            "'add_generation_prompt' must be the opposite of 'continue_final_message'. "
            "Leave it out.",
            param="add_generation_prompt",
        )
    count = request.n or 1
    if count > limits.choices:
        raise RequestError(f"'n' is {count}; the limit is {limits.choices}.", param="n")
    chosen = sampling.sampling(
        backend.capabilities.sampling,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
    )
    options = _options(request, backend.capabilities, limits)
    options["adapter"], options["session"] = adapter, call.caller
    asked = conversation(
        [_turn(number, message) for number, message in enumerate(request.messages)],
        limits,
        remote=call.remote_pictures,
        goes_on=goes_on,
    )
    start_streams(call.choices, backend, asked, chosen, options, count)
    return request


def start_streams(
    choices: Choices,
    backend: Backend,
    asked: Conversation,
    chosen: Sampling,
    options: StreamOptions,
    count: int,
) -> None:
    """Start `count` answers to one conversation."""

    def start(index: int) -> Stream:
        own: StreamOptions = {**options, "sampling": sampling.nth(chosen, index)}
        return backend.stream(asked, **own)

    choices.start(start, count)


def _options(
    request: ChatCompletionRequest, capabilities: Capabilities, limits: ApiLimits
) -> StreamOptions:
    length, older = request.max_completion_tokens, request.max_tokens
    if length is not None and older is not None and length != older:
        raise RequestError(
            "'max_tokens' and 'max_completion_tokens' differ. Send the second alone.",
            param="max_tokens",
        )
    name = "max_tokens" if length is None else "max_completion_tokens"
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("'top_logprobs' needs logprobs: true.", param="top_logprobs")
    if request.logprobs and not capabilities.logprobs:
        raise RequestError("This model gives no log-probabilities.", param="logprobs")
    if request.stream_options is not None and not request.stream:
        raise RequestError("'stream_options' needs stream: true.", param="stream_options")
    stop = request.stop or []
    return StreamOptions(
        max_new_tokens=sampling.answer_tokens(
            older if length is None else length, capabilities, limits, name
        ),
        stop=[stop] if isinstance(stop, str) else stop,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        schema=_schema(request, capabilities),
    )


def _schema(request: ChatCompletionRequest, capabilities: Capabilities) -> dict[str, Any] | None:
    match request.response_format:
        case JsonSchemaFormat(json_schema=named):
            found = sampling.schema(named.schema_, "response_format.json_schema.schema")
        case JsonObjectFormat():
            found = dict(sampling.ANY_OBJECT)
        case _:
            return None
    if not capabilities.schema:
        raise RequestError(
            "This model cannot be held to a form. Leave response_format out.",
            param="response_format",
        )
    return found


def _turn(number: int, message: ChatMessage) -> Turn:
    where = f"messages.{number}"
    if isinstance(message.content, str):
        return Turn(message.role, (message.content,), where)
    parts: list[str | SentPicture] = []
    for place, part in enumerate(message.content):
        if isinstance(part, ImagePart):
            param = f"{where}.content.{place}.image_url.url"
            parts.append(SentPicture(part.image_url.url, part.image_url.detail or "auto", param))
        else:
            parts.append(part.text)
    return Turn(message.role, tuple(parts), where)


# --- from answers to objects ---


def _choice(index: int, answer: Answer, request: ChatCompletionRequest) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "finish_reason": answer.finish_reason,  # "stop" or "length": those ended early are errors
        "logprobs": _logprobs(answer.tokens) if request.logprobs else None,
    }


async def _events(call: Call, request: ChatCompletionRequest, head: dict[str, Any]) -> Events:
    """Yield the chunks of all choices, then the usage where it is asked for, then the end."""
    wants_usage = bool(request.stream_options and request.stream_options.include_usage)
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return Event({**head, "choices": [choice], **({"usage": None} if wants_usage else {})})

    answers: dict[int, Answer] = {}
    try:
        for index in range(request.n or 1):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for each in call.choices.chunks(idle_sec=call.idle_sec):
            if each is None:
                yield None
                continue
            index, came = each
            if isinstance(came, Answer):
                answers[index] = came
                call.metrics.count_answer(came)
                yield chunk(index, {}, finish_reason=came.finish_reason)
            elif came.text or (came.tokens and request.logprobs):
                said = _logprobs(came.tokens) if request.logprobs else None
                yield chunk(index, {"content": came.text}, logprobs=said)
        if wants_usage:
            counted = usage([answers[index] for index in sorted(answers)])
            yield Event({**head, "choices": [], "usage": counted})
    except Exception as error:  # the response has begun: an event is what is left to tell it
        yield Event(failures.describe(error).body)
    yield Event("[DONE]")


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return token counts: the prompt once, what was written for all choices."""
    first = answers[0].usage
    written = sum(answer.usage.completion_tokens for answer in answers)
    accepted = sum(answer.usage.accepted_tokens for answer in answers)
    proposed = sum(answer.usage.proposed_tokens for answer in answers)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": first.prompt_tokens + written,
        "prompt_tokens_details": {
            "cached_tokens": first.cached_tokens,
            "image_tokens": first.image_tokens,
        },
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": proposed - accepted,
        },
    }


def _logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    return {
        "content": [
            {
                **_token(token.text, token.logprob),
                "top_logprobs": [_token(each.text, each.logprob) for each in token.alternatives],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float | None) -> dict[str, Any]:
    data = text.encode("utf-8", "replace")
    likely = LEAST_LOGPROB if logprob is None else max(logprob, LEAST_LOGPROB)
    return {"token": text, "logprob": likely, "bytes": list(data)}


def fingerprint(capabilities: Capabilities) -> str:
    """Return what changes when answers may: another model, revision, precision or arithmetic."""
    identity = repr(capabilities.identity).encode("utf-8", "replace")
    return f"fp_{hashlib.sha256(identity).hexdigest()[:12]}"
