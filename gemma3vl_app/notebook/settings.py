"""How the chat widget asks: crops and sampling, as a person sets them below the chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from gemma3vl_app.backends.protocol import Capabilities, StreamOptions
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Greedy, Sample, Sampling
from gemma3vl_app.pictures import Crops

Number = TypeVar("Number", int, float)
_ALIGNED = {"description_width": "7em"}


class Settings:
    """Fields under a fold of their own, in `box`; an empty one means the chat's or the model's."""

    def __init__(self, widgets: Any, about: Capabilities) -> None:
        def text(name: str, hint: str) -> Any:
            return widgets.Text(description=name, placeholder=hint, style=_ALIGNED)

        self._crops = widgets.Dropdown(
            description="Crops", options=["auto", "on", "off"], value="auto", style=_ALIGNED
        )
        self._temperature = text("Temperature", "the model's own; 0 is greedy")
        self._top_k = text("Top-k", "the model's own; 0 is off")
        self._top_p = text("Top-p", "the model's own; 1 is off")
        self._seed = text("Seed", "a new one each time")
        self._most = widgets.IntText(
            description="Most tokens", value=about.answer_tokens, style=_ALIGNED
        )
        sampling = [self._temperature, self._top_k, self._top_p, self._seed]
        rows = [self._crops, *sampling, self._most]
        self.box = widgets.Accordion([widgets.VBox(rows)], selected_index=None)
        self.box.set_title(0, "Settings")

    @property
    def crops(self) -> Crops:
        """Whether pictures are also looked at in parts."""
        return cast(Crops, self._crops.value)

    def options(self, own: Sampling) -> StreamOptions:
        """Return what to ask with; `own` holds where nothing is set. Raises `ConversationError`."""
        return {"sampling": self._sampling(own), "max_new_tokens": self._most.value}

    def _sampling(self, own: Sampling) -> Sampling | None:
        temperature = _number("Temperature", self._temperature, float, "a number, such as 0.7")
        top_k = _number("Top-k", self._top_k, int, "a whole number, such as 64")
        top_p = _number("Top-p", self._top_p, float, "a number, such as 0.95")
        seed = _number("Seed", self._seed, int, "a whole number, such as 7")
        if temperature is top_k is top_p is seed is None:
            return None
        if temperature == 0:
            return Greedy()
        like = own if isinstance(own, Sample) else Sample()
        return Sample(
            temperature=like.temperature if temperature is None else temperature,
            top_k=like.top_k if top_k is None else top_k,
            top_p=like.top_p if top_p is None else top_p,
            seed=seed,
        )


def _number(name: str, field: Any, kind: Callable[[str], Number], what: str) -> Number | None:
    """Return the number in a field, None where it is empty."""
    text = field.value.strip()
    try:
        return kind(text) if text else None
    except ValueError:
        raise ConversationError(f"{name} is {text!r}; it must be {what}.") from None
