"""The seam between surfaces and models: everything above talks to a `Backend` and nothing else.

Knows nothing of torch, files or pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypedDict, runtime_checkable

from PIL import Image

from gemma3vl_app.catalog import DEFAULT_ANSWER_TOKENS
from gemma3vl_app.generation import Answer, Preview, Progress, Sample, Sampling, Token
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.planning import LoadPlan
from gemma3vl_app.stream import Stream
from gemma3vl_app.traces import Result, Trace, TracedToken
from gemma3vl_app.transcript import ModelIdentity

Schema = Mapping[str, Any] | type  # a JSON schema, or a pydantic model class


DEFAULT_SAMPLING = Sample()  # Gemma 3's published generation_config.json


class StreamOptions(TypedDict, total=False):
    """The keyword arguments of `Backend.stream`, for callers that pass them on."""

    sampling: Sampling | None
    max_new_tokens: int
    stop: Sequence[str]
    logprobs: int | None
    schema: Schema | None
    adapter: str | None
    session: str


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend's model is and can do.

    `model` is its name for programs, `title` for people (the same where empty), `knows` one or two
    sentences for them; `image_tokens` is the cost of one picture without crops (0: the model takes
    no pictures); `sampling` is the checkpoint's own default, `answer_tokens` a sensible limit of an
    answer for surfaces that do not ask for one. `revision`, `tokenizer_sha256`, `weights` and
    `arithmetic` are those of `ModelIdentity`.
    """

    model: str
    title: str = ""
    knows: str
    context_tokens: int
    image_tokens: int
    answer_tokens: int = DEFAULT_ANSWER_TOKENS
    sampling: Sampling = DEFAULT_SAMPLING
    logprobs: bool = True
    schema: bool = True
    score: bool = True
    revision: str = ""
    tokenizer_sha256: str = ""
    weights: str = ""
    arithmetic: str = ""

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is, for whoever wants its answers again."""
        return ModelIdentity(
            name=self.model,
            revision=self.revision,
            tokenizer_sha256=self.tokenizer_sha256,
            weights=self.weights,
            arithmetic=self.arithmetic,
        )

    @property
    def pictures(self) -> bool:
        """Whether the model takes pictures at all."""
        return self.image_tokens > 0


@runtime_checkable
class Backend(Protocol):
    """A model that answers conversations; safe to use from several threads."""

    @property
    def capabilities(self) -> Capabilities:
        """What the model is and can do."""
        ...

    @property
    def plan(self) -> LoadPlan | None:
        """How and why the model was placed as it is; None where somebody else placed it."""
        ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that `stream(adapter=...)` accepts."""
        ...

    def stream(
        self,
        conversation: Conversation,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 1024,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        schema: Schema | None = None,
        adapter: str | None = None,
        session: str = "",
    ) -> Stream:
        """Start an answer to `conversation` and return it as a stream.

        A conversation that ends with an assistant message has that answer continued: the stream
        brings only what is new. `logprobs` asks for each token's log-probability with that many
        alternatives. `schema` forces the text to be JSON of that schema. `adapter` is one of
        `adapters`, None for the model itself. `session` is a salt: nothing is reused across
        different salts. Raises `ConversationError` for a bad request and
        `BusyError` when the queue is full.
        """
        ...

    def preview(
        self, conversation: Conversation, *, adapter: str | None = None, session: str = ""
    ) -> Preview:
        """Return what `conversation` would cost, computing nothing."""
        ...

    def score(
        self,
        conversation: Conversation,
        text: str,
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> tuple[Token, ...]:
        """Return the tokens of `text` as the next answer, each with its log-probability."""
        ...

    def remember(
        self,
        conversation: Conversation,
        answers: Mapping[int, Sequence[int]],
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> None:
        """Take token ids generated earlier for answers of `conversation`, by message index.

        Later requests that go on from there use them instead of encoding the texts again, which may
        give other tokens. Ids that do not say exactly their message's text are left aside.
        """
        ...

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Load an adapter and make it known under `name`, while answers may be running.

        Raises `LoadError` for a name that is taken or "base", and for a folder that does not fit.
        """
        ...

    def close(self, *, finish_sec: float = 0.0) -> None:
        """Let go of the model; safe to call twice. Answers that run have `finish_sec` to end.

        New requests are refused at once, with an `EngineError` that names the model and says what
        to do; after `finish_sec` the same is told to the streams that are still open.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class SeesPictures(Protocol):
    """A backend that can tell what its model sees, because the model is in this process."""

    def seen(self, picture: Picture) -> tuple[Image.Image, ...]:
        """Return the pixels that reach the model: the whole picture, then each of its crops."""
        ...


@dataclass(frozen=True)
class Activity:
    """What a model is doing: requests it works on, requests that wait for it, and for how long.

    `still_sec` is the time since its last step while there is work, 0 while there is none; `alive`
    is false once it takes no requests any more, and `failed` tells that this is so by a defect and
    not because somebody closed it. `reachable` is false while none of the servers of a model
    elsewhere answers.
    """

    running: int
    waiting: int
    still_sec: float = 0.0
    alive: bool = True
    failed: bool = False
    reachable: bool = True


@runtime_checkable
class ReportsActivity(Protocol):
    """A backend that can tell whether it makes progress."""

    @property
    def activity(self) -> Activity:
        """What it is doing now; never waits."""
        ...


@runtime_checkable
class Explains(Protocol):
    """A backend that can tell how an answer came about, because the model is in this process."""

    @property
    def capabilities(self) -> Capabilities:
        """What the model is and can do."""
        ...

    def answer_tokens(
        self,
        conversation: Conversation,
        answer: Answer | str,
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> tuple[TracedToken, ...]:
        """Return the tokens that `trace` takes an answer to be made of, computing nothing."""
        ...

    def trace(
        self,
        conversation: Conversation,
        answer: Answer | str,
        asked: Trace[Result],
        *,
        adapter: str | None = None,
        session: str = "",
        progress: Callable[[Progress], None] | None = None,
    ) -> Result:
        """Return what `asked` asks about `answer` as the next message of `conversation`.

        An `Answer` counts with the very tokens it was written in, a text with those the backend
        remembers for it, or encoded anew. Answers that run meanwhile go on; an interrupt ends the
        trace. Raises `ConversationError` for what cannot be asked.
        """
        ...
