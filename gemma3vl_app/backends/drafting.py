"""Guessing ahead as a backend is asked for it: from the text itself, or by a draft model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transformers import Gemma3ForCausalLM

from gemma3vl_app.engine.speculation.draft import Draft
from gemma3vl_app.engine.speculation.lookup import Lookup
from gemma3vl_app.engine.speculation.speculation import Speculation
from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress
from gemma3vl_app.loading.loader import LoadedModel, load_model
from gemma3vl_app.planning import LoadPlan
from gemma3vl_app.prompting.tokenizer import TextTokenizer


def check_speculation(mode: str, draft: str | Path | None) -> None:
    """Raise `LoadError` for wishes about guessing ahead that make no sense."""
    if mode not in ("auto", "off"):
        raise LoadError(f"speculation is {mode!r}; it must be 'auto' or 'off'.")
    if mode == "off" and draft is not None:
        raise LoadError(
            f"A draft model ({str(draft)!r}) guesses ahead, which speculation='off' forbids. "
            "Leave one of them out."
        )


def load_draft(
    source: str | Path,
    loaded: LoadedModel,
    *,
    weights: str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> LoadedModel:
    """Load a text model that guesses for `loaded`; raises `LoadError` where it cannot.

    Its context may be shorter: conversations that are longer go on without its guesses.
    """
    devices = set(loaded.plan.device_map.values()) - {"disk"}
    draft = load_model(
        source,
        weights=weights,
        device_map=devices.pop() if len(devices) == 1 else "auto",
        progress=progress,
    )
    if not isinstance(draft.model, Gemma3ForCausalLM):
        raise LoadError(
            f"{draft.name!r} sees pictures and is too large to guess for {loaded.name!r}. "
            "Choose a text model as the draft, such as '270m-it'."
        )
    tokenizers = (TextTokenizer.from_file(each.tokenizer_file) for each in (draft, loaded))
    if not next(tokenizers).same_ids(next(tokenizers)):
        raise LoadError(
            f"{draft.name!r} cannot guess for {loaded.name!r}: the ids of their tokens differ. "
            "Choose a draft of the same family, such as '270m-it'."
        )
    return draft


def with_draft(plan: LoadPlan, draft: LoadedModel) -> LoadPlan:
    """Return a plan that says what the draft model takes beside it."""
    sizes = [
        f"{each.total / (1 << 30):.1f} GiB on {device}"
        for device, each in draft.plan.bytes_by_device.items()
    ]
    reason = f"{draft.name} guesses ahead as a draft model: it takes {' + '.join(sizes)} more."
    return replace(plan, reasons=(*plan.reasons, reason))


def guessing(mode: str, never: frozenset[int], draft: LoadedModel | None) -> Speculation | None:
    """Return what guesses tokens ahead, if anything shall; tokens of `never` are not guessed."""
    if mode == "off":
        return None
    if draft is None:
        return Speculation(Lookup(never))
    assert isinstance(draft.model, Gemma3ForCausalLM)  # checked when it was loaded
    return Speculation(Draft(draft.model, never))
