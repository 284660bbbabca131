"""What a browser sends: it may be anything, and is read field by field."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, cast

import gradio as gr

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.webui.view import Settings

_N = TypeVar("_N", int, float)


def settings_of(fields: tuple[Any, ...], crops: str) -> Settings:
    """Return the settings in the order of the page's fields; empty ones leave it to the model.

    Raises `ConversationError` for what is no number.
    """
    system, temperature, top_k, top_p, seed, answer_tokens, confidence, schema, adapter = fields
    return Settings(
        system=str(system or "").strip(),
        temperature=_as_number("temperature", temperature, float),
        top_k=_as_number("top k", top_k, int),
        top_p=_as_number("top p", top_p, float),
        seed=_as_number("seed", seed, int),
        max_new_tokens=_as_number("longest answer", answer_tokens, int),
        crops=cast(Literal["off", "on", "auto"], crops if crops in ("off", "on") else "auto"),
        confidence=confidence is True,
        schema=str(schema or "").strip(),
        adapter=str(adapter or "").strip() or None,
    )


def _as_number(name: str, text: object, kind: type[_N]) -> _N | None:
    written = str(text or "").strip()
    if not written:
        return None
    try:
        return kind(written.replace(",", "."))
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise ConversationError(
            f"The {name} in the settings has to be {whole}, not {written!r}; leave it empty for "
            "the model's own."
        ) from None


def text_of(event: gr.EventData, name: str) -> str:
    """Return a text of an event; "" for anything else."""
    value = getattr(event, name, "")
    return value if isinstance(value, str) else ""


def named_texts(event: gr.EventData, name: str) -> dict[str, str]:
    """Return texts of an event by their names; anything else is left out."""
    value = getattr(event, name, None)
    found = value.items() if isinstance(value, dict) else ()
    return {str(key): text for key, text in found if isinstance(text, str)}


def number_of(event: gr.EventData, name: str) -> int:
    """Return a whole number of an event; -1 for anything else."""
    value = getattr(event, name, -1)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
