"""What a server is and can: asked of it once, when it is loaded, by a few small requests."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from gemma3vl_app import catalog
from gemma3vl_app.backends.remote.connection import Connection
from gemma3vl_app.backends.remote.dialects import DIALECTS, Kind
from gemma3vl_app.backends.remote.failures import Unavailable
from gemma3vl_app.errors import Gemma3VLError, LoadError
from gemma3vl_app.plain import plain

DEFAULT_CONTEXT_TOKENS = 8192  # of a server that does not say
_SHOWN_MODELS = 8
_OWNERS: Mapping[str, Kind] = {  # what servers write into "owned_by" of their models
    "gemma3vl": "gemma3vl",
    "gemma3vl_app": "gemma3vl",
    "gemma3vl-app": "gemma3vl",
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llama.cpp",
}
_PROBE = "ok"  # a property's name that no model writes of itself as the first word
_SCHEMA = {
    "type": "object",
    "properties": {_PROBE: {"type": "boolean"}},
    "required": [_PROBE],
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a server told of itself, or showed when it was asked.

    `model` is its name for the model, `adapters` are names of variants of it, `image_tokens` what a
    small picture costs (0: it takes none).
    """

    kind: Kind
    version: str
    model: str
    adapters: tuple[str, ...]
    context_tokens: int
    says_context: bool
    image_tokens: int
    logprobs: bool
    schema: bool

    @property
    def name(self) -> str:
        """The model's name for people: the last part where the server calls it by its path."""
        path = self.model.replace("\\", "/").rstrip("/")
        is_path = path.startswith(("/", ".", "~")) or path != self.model.rstrip("/")
        return path.rpartition("/")[2] if is_path else self.model

    @property
    def server(self) -> str:
        """What the server is, for people."""
        return f"{DIALECTS[self.kind].title} {self.version}".strip()


async def probe(connection: Connection, wanted: str, context_tokens: int | None) -> Facts:
    """Ask a server what it is and can, and return it.

    `wanted` is the name of one of its models ("": the only one), `context_tokens` the context of a
    server that does not say, or less than it has. Raises `LoadError`.
    """
    try:
        listed = await connection.get("/models")
        cards = _cards(listed)
        card = _chosen(cards, wanted, connection.host)
        kind, version, told = await _identity(connection, cards)
        model = str(card["id"])
        text = await _answer(connection, model, "Hi.", logprobs=True)
        if text is None:
            text = await _answer(connection, model, "Hi.") or {}
        image_tokens = await _image_tokens(connection, model, text, told)
        has_schema = await _keeps_schema(connection, model)
        stated = await _context_tokens(connection, kind, card, told)
    except Unavailable as error:
        raise LoadError(str(error.error)) from error
    except LoadError:
        raise
    except Gemma3VLError as error:
        raise LoadError(str(error)) from error
    limits = [tokens for tokens in (stated, context_tokens) if tokens]
    return Facts(
        kind=kind,
        version=version,
        model=model,
        adapters=tuple(str(each["id"]) for each in cards if each.get("parent") == model),
        context_tokens=min(limits, default=DEFAULT_CONTEXT_TOKENS),
        says_context=bool(stated),
        image_tokens=image_tokens,
        logprobs=bool((_choice(text).get("logprobs") or {}).get("content")),
        schema=has_schema,
    )


async def serves(connection: Connection, model: str) -> bool:
    """Return whether a server answers and has that model, without using it."""
    return any(card["id"] == model for card in _cards(await connection.get("/models")))


# --- which model, which server ---


def _cards(listed: Any) -> list[dict[str, Any]]:
    data = listed.get("data") if isinstance(listed, dict) else None
    cards = data if isinstance(data, list) else []
    return [card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)]


def _chosen(cards: Sequence[dict[str, Any]], wanted: str, host: str) -> dict[str, Any]:
    """Return the card of the wanted model, or of the only one that is not an adapter."""
    ids = {card["id"] for card in cards}
    own = [card for card in cards if card.get("parent") not in ids]
    for card in cards:
        if card["id"] == wanted:
            return card
    there = ", ".join(plain(card["id"]) for card in own[:_SHOWN_MODELS])
    there += ", ..." if len(own) > _SHOWN_MODELS else ""
    if wanted:
        raise LoadError(f"The server at {host} has no model {wanted!r}. It has: {there or 'none'}.")
    if len(own) == 1:
        return own[0]
    if not own:
        raise LoadError(f"The server at {host} serves no model. Start it with one.")
    raise LoadError(
        f"The server at {host} has {len(own)} models: {there}. Say which one behind the address: "
        f"http://{host}/v1#NAME."
    )


async def _identity(
    connection: Connection, cards: Sequence[dict[str, Any]]
) -> tuple[Kind, str, dict[str, Any]]:
    """Return the kind of server, its version, and what it told beside."""
    owner = str(cards[0].get("owned_by", "")).lower()
    paths = ("/version", "/props", "/api/version", "/get_model_info")
    version, props, ollama, sglang = await asyncio.gather(
        *(_below_root(connection, path) for path in paths)
    )
    if kind := _OWNERS.get(owner):
        return kind, _version(version), props if kind == "llama.cpp" else {}
    if "default_generation_settings" in props:
        return "llama.cpp", "", props
    if "model_path" in sglang:
        return "sglang", _version(version), {}
    if "version" in ollama:
        return "ollama", _version(ollama), {}
    if isinstance(cards[0].get("status"), dict) and cards[0].get("created") is not None:
        return "transformers", "", {}
    return "other", _version(version), {}


async def _below_root(connection: Connection, path: str) -> dict[str, Any]:
    """Return the JSON object at a path that only some servers have; {} where it is none."""
    try:
        found = await connection.get(path, below_root=True)
    except (Unavailable, Gemma3VLError):
        return {}
    return found if isinstance(found, dict) else {}


def _version(told: Mapping[str, Any]) -> str:
    version = told.get("version")
    return plain(version)[:20] if isinstance(version, str) else ""


async def _context_tokens(
    connection: Connection, kind: Kind, card: Mapping[str, Any], told: Mapping[str, Any]
) -> int:
    """Return the length of the context that a server states, or 0."""
    if kind == "ollama":  # what it has loaded the model with, which the questions above made it do
        running = await _below_root(connection, "/api/ps")
        for model in running.get("models") or ():
            if isinstance(model, dict) and card["id"] in (model.get("name"), model.get("model")):
                return _count(model.get("context_length"))
        return 0
    settings = told.get("default_generation_settings")
    return (
        _count(card.get("max_model_len"))
        or _count(settings.get("n_ctx") if isinstance(settings, dict) else None)
        or _count(card.get("context_length"))
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


# --- what it can ---


async def _answer(
    connection: Connection, model: str, content: Any, *, logprobs: bool = False, **options: Any
) -> dict[str, Any] | None:
    """Return a tiny answer, None where the request is refused."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0.0,
        "max_tokens": 1,
        **({"logprobs": True, "top_logprobs": 1} if logprobs else {}),
        **options,
    }
    try:
        return await connection.ask("/chat/completions", body)
    except Gemma3VLError:
        if logprobs or options or not isinstance(content, str):
            return None
        raise  # not even the plainest question: the error says why


async def _image_tokens(
    connection: Connection, model: str, text: Mapping[str, Any], told: Mapping[str, Any]
) -> int:
    """Return what a picture costs: the prompt with one against that without.

    A server that refuses it takes none; one that leaves it out of the prompt, neither.
    """
    modalities = told.get("modalities")
    if isinstance(modalities, dict) and modalities.get("vision") is False:
        return 0
    picture = {"type": "image_url", "image_url": {"url": _small_picture()}}
    answer = await _answer(connection, model, [picture, {"type": "text", "text": "Hi."}])
    if answer is None:
        return 0
    with_picture, without = _prompt_tokens(answer), _prompt_tokens(text)
    if with_picture and without:
        return max(0, with_picture - without)
    return int(catalog.published_config("4b")["mm_tokens_per_image"])  # it does not count


async def _keeps_schema(connection: Connection, model: str) -> bool:
    """Return whether an answer is held to a schema: several servers take the option and do not."""
    held = {"name": "probe", "schema": _SCHEMA, "strict": True}
    format = {"type": "json_schema", "json_schema": held}
    answer = await _answer(connection, model, "Hi.", response_format=format, max_tokens=16)
    message = _choice(answer or {}).get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, str) and "".join(content.split()).startswith(f'{{"{_PROBE}"')


def _choice(answer: Mapping[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _prompt_tokens(answer: Mapping[str, Any]) -> int:
    usage = answer.get("usage")
    return _count(usage.get("prompt_tokens")) if isinstance(usage, dict) else 0


def _small_picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
