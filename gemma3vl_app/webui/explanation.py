"""Why a word of an answer is there: found out on a thread of its own while a page looks on.

The engine works on it between the steps of others' answers. Knows nothing of gradio or HTML.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from PIL import Image

from gemma3vl_app import explain
from gemma3vl_app.errors import Gemma3VLError, public_text
from gemma3vl_app.explain import Heat
from gemma3vl_app.generation import Progress, Token
from gemma3vl_app.webui.live_chat import OUR_FAULT, SECONDS_AT_MOST
from gemma3vl_app.webui.written_answer import WrittenAnswer, model_name

Method = Literal["attention", "saliency", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)
ALTERNATIVES = 5  # likeliest tokens in a word's place, the one that was written among them
CROP_SIDE = 224  # pixels of the longer side of a crop's drawing
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """A picture with heat on it, its crops likewise, and its `share` of the heat of all."""

    image: Image.Image
    crops: tuple[Image.Image, ...]
    share: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known so far; `is_over` once nothing more comes.

    Attributes:
        tokens: those of the word, with how likely each was and what else was.
        drawings: one for each picture before the answer, by `method`; `exactly` is what that shows,
        and what it does not, in the words of those who know. strongest: the most that a part of a
        picture speaks for the word, in the method's own unit.
        done: of `total` steps, where they are counted.
        wrote: the model that wrote the answer where the loaded one, `reads`, is another.
        error: why nothing was found.
    """

    method: Method
    tokens: tuple[Token, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    exactly: str = ""
    strongest: float = 0.0
    done: int = 0
    total: int = 0
    wrote: str = ""
    reads: str = ""
    is_over: bool = False
    was_stopped: bool = False
    error: str = ""


class _Stopped(Exception):
    """Nobody wants to know any more."""


@dataclass(eq=False)
class Explanation:
    """One word of one answer, explained by one method; begins at once, or when `after` has ended.

    `find` looks the answer up; it may raise what `written_answer` raises. `number` is what the page
    calls it.
    """

    find: Callable[[], WrittenAnswer]
    method: Method
    number: int = 0
    after: Explanation | None = None
    _found: Found = field(init=False)

    def __post_init__(self) -> None:
        self._found = Found(method=self.method)
        self._changed = threading.Condition()
        self._version = 0
        self._stopped = threading.Event()
        if self.after is not None:
            self.after.stop()
        self._thread = threading.Thread(target=self._run, name="explanation", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it at the engine's next step; safe from any thread, any number of times."""
        self._stopped.set()

    def watch(self) -> Iterator[Found]:
        """Yield what is found until all is; whoever stops looking on ends it.

        At least once a second, so that whoever looks on can turn to something else.
        """
        seen = -1
        try:
            while True:
                seen, found = self._next(seen)
                yield found
                if found.is_over:
                    return
        finally:
            self.stop()

    def _next(self, seen: int) -> tuple[int, Found]:
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, timeout=SECONDS_AT_MOST)
            return self._version, self._found

    # --- inside, on a thread of its own ---

    def _run(self) -> None:
        if self.after is not None:
            self.after._thread.join()
            self.after = None  # or each would keep all before it
        try:
            self._go_on()
            self._explain(self.find())
        except _Stopped:
            self._tell(is_over=True, was_stopped=True)
        except Gemma3VLError as error:
            self._tell(is_over=True, error=public_text(error))
        except Exception:
            _log.exception("explaining failed")
            self._tell(is_over=True, error=OUR_FAULT)
        else:
            self._tell(is_over=True)

    def _explain(self, asked: WrittenAnswer) -> None:
        about = asked.backend.capabilities
        self._tell(
            wrote=asked.wrote,
            reads=model_name(about.title or about.model, about.weights, asked.adapter),
        )
        certainty = explain.tokens(
            asked.backend,
            asked.conversation,
            asked.answer,
            alternatives=ALTERNATIVES,
            adapter=asked.adapter,
            session=asked.session,
            progress=self._go_on,
        )
        self._tell(tokens=tuple(certainty.tokens[number] for number in asked.tokens))
        self._go_on()
        if asked.conversation.pictures:
            heat = getattr(explain, self.method)(
                asked.backend,
                asked.conversation,
                asked.answer,
                asked.tokens,
                adapter=asked.adapter,
                session=asked.session,
                progress=self._count,
            )
            strongest = max(float(each.cells.max()) for each in heat.maps)
            self._tell(drawings=drawings_of(heat), exactly=heat.says, strongest=strongest)

    def _go_on(self, progress: Progress | None = None) -> None:
        if self._stopped.is_set():
            raise _Stopped  # leaving the trace ends it

    def _count(self, progress: Progress) -> None:
        self._go_on()
        if progress.stage == "tracing":
            self._tell(done=progress.done, total=progress.total)

    def _tell(self, **news: Any) -> None:  # fields of `Found`
        with self._changed:
            self._found = replace(self._found, **news)
            self._version += 1
            self._changed.notify_all()


def drawings_of(heat: Heat) -> tuple[Drawing, ...]:
    """Return each picture with its heat; crops where there are any, each with its own alone."""
    return tuple(
        Drawing(
            heat.drawn(number),
            tuple(heat.drawn_crops(number, side=CROP_SIDE)[1:]),
            heat.share(number),
        )
        for number in range(len(heat.pictures))
    )
