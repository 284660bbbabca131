"""`ScriptedBackend`: the whole backend protocol with no model behind it.

It echoes, or says what it is told to, as fast as it is told to, or fails on cue, and makes up why;
it keeps every request. For tests of surfaces, ours and yours. Knows nothing of torch.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gemma3vl_app.backends.protocol import Activity, Capabilities, Schema
from gemma3vl_app.errors import ConversationError, EngineError, LoadError
from gemma3vl_app.generation import (
    Alternative,
    Answer,
    Chunk,
    FinishReason,
    Greedy,
    Preview,
    Progress,
    Sampling,
    Status,
    Timing,
    Token,
    Usage,
)
from gemma3vl_app.messages import Conversation, Message
from gemma3vl_app.planning import LoadPlan
from gemma3vl_app.stream import Stream
from gemma3vl_app.testing import scripted_traces
from gemma3vl_app.traces import Result, Trace, TracedToken
from gemma3vl_app.wording import describe

DEFAULT_CAPABILITIES = Capabilities(
    model="scripted",
    knows="It repeats what you write. It is a stand-in for a model.",
    context_tokens=8192,
    image_tokens=64,
    sampling=Greedy(),
)
LOGPROB = -0.5  # every scripted token claims this natural-log probability


@dataclass(frozen=True)
class Request:
    """One call of `stream`, as it arrived."""

    conversation: Conversation
    sampling: Sampling | None
    max_new_tokens: int
    stop: tuple[str, ...]
    logprobs: int | None
    schema: Schema | None
    adapter: str | None
    session: str


@dataclass(frozen=True)
class TraceRequest:
    """One call of `trace`, as it arrived."""

    conversation: Conversation
    answer: Answer | str
    asked: Trace[Any]
    adapter: str | None
    session: str


class ScriptedBackend:
    """Answer from a script.

    ```python
    ScriptedBackend()                                        # echoes the last user message
    ScriptedBackend(["A red ", "circle."])                   # says this, one token per item
    ScriptedBackend(seconds_per_chunk=0.2)                   # slowly
    ScriptedBackend(["A "], error=EngineError("It broke."))  # says this, then fails
    ```

    `requests` holds every `Request` received, in order, and `traces` every `TraceRequest`.
    Thread-safe; each stream has its own daemon thread.
    """

    def __init__(
        self,
        chunks: Sequence[str] | None = None,
        *,
        seconds_per_chunk: float = 0.0,
        error: Exception | None = None,
        capabilities: Capabilities = DEFAULT_CAPABILITIES,
    ) -> None:
        self.requests: list[Request] = []
        self.traces: list[TraceRequest] = []
        self._chunks = chunks
        self._seconds_per_chunk = seconds_per_chunk
        self._error = error
        self._capabilities = capabilities
        self._adapters: list[str] = []
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._running: set[Stream] = set()
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """What the scripted model claims to be."""
        return self._capabilities

    @property
    def plan(self) -> LoadPlan | None:
        """Nothing was placed."""
        return None

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names given to `add_adapter`."""
        return tuple(self._adapters)

    @property
    def running(self) -> int:
        """How many answers are being given right now."""
        return len(self._running)

    @property
    def activity(self) -> Activity:
        """What it is doing: nobody ever waits."""
        return Activity(running=len(self._running), waiting=0, alive=not self._closed)

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
        """Record the request and start the script; a bad request raises as with a real backend."""
        self._check(conversation, max_new_tokens, adapter)
        request = Request(
            conversation, sampling, max_new_tokens, tuple(stop), logprobs, schema, adapter, session
        )
        stopped = threading.Event()
        stream = Stream(on_cancel=stopped.set)
        with self._lock:
            if self._closed:
                raise EngineError(self._closed_message())
            usage = self._usage(request)
            self.requests.append(request)
            self._running.add(stream)
        threading.Thread(
            target=self._run, args=(request, usage, stream, stopped), name="scripted", daemon=True
        ).start()
        return stream

    def preview(
        self, conversation: Conversation, *, adapter: str | None = None, session: str = ""
    ) -> Preview:
        """Count words and pictures."""
        self._check_adapter(adapter)
        request = Request(conversation, None, 1, (), None, None, adapter, session)
        with self._lock:
            usage = self._usage(request)
        return Preview(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            image_tokens=usage.image_tokens,
            crops=tuple(() for _ in conversation.pictures),
            context_tokens=self._capabilities.context_tokens,
        )

    def score(
        self,
        conversation: Conversation,
        text: str,
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> tuple[Token, ...]:
        """Return one token per word of `text`, all equally likely."""
        self._check_adapter(adapter)
        return tuple(_token(i, word, logprobs=0) for i, word in enumerate(_words(text)))

    def answer_tokens(
        self,
        conversation: Conversation,
        answer: Answer | str,
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> tuple[TracedToken, ...]:
        """Return one token per word of the answer, with the ids that an `Answer` brings."""
        self._check_adapter(adapter)
        text, said = (answer, ()) if isinstance(answer, str) else (answer.text, answer.tokens)
        ids = dict(enumerate(token.id for token in said))
        return tuple(TracedToken(ids.get(n, n), word) for n, word in enumerate(_words(text)))

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
        """Take the script's time for each step, then say what `scripted_traces` makes up."""
        self._check(conversation, 1, adapter)
        with self._lock:
            if self._closed:
                raise EngineError(self._closed_message())
            self.traces.append(TraceRequest(conversation, answer, asked, adapter, session))
        steps = scripted_traces.steps_of(asked)
        for done in range(1, steps + 1):
            time.sleep(self._seconds_per_chunk)
            if progress is not None:
                said = describe(Status("tracing", done, steps))
                progress(Progress("tracing", done, steps, "steps", said))
        if self._error is not None:
            raise self._error
        tokens = self.answer_tokens(conversation, answer, adapter=adapter, session=session)
        places = scripted_traces.places_of(conversation, self._capabilities.image_tokens)
        result: Result = scripted_traces.traced(conversation, tokens, places, asked, LOGPROB)
        return result

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Remember the name; nothing is read from `path`."""
        with self._lock:
            if self._closed:
                raise EngineError(self._closed_message())
            if name in self._adapters:
                raise LoadError(f"There is an adapter {name!r} already. Choose another name.")
            self._adapters.append(name)

    def remember(
        self,
        conversation: Conversation,
        answers: Mapping[int, Sequence[int]],
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> None:
        """Take nothing: it has no tokenizer, so ids mean nothing to it."""

    def close(self, *, finish_sec: float = 0.0) -> None:
        """Refuse new answers, wait for those that run, fail the rest; see `Backend.close`."""
        with self._ended:
            self._closed = True
            self._ended.wait_for(lambda: not self._running, finish_sec)
            running = tuple(self._running)
        for stream in running:
            stream.fail(EngineError(self._closed_message()))
            stream.cancel()

    def _closed_message(self) -> str:
        name = self._capabilities.model
        return f"The model {name!r} has been closed. Load it again, or choose another one."

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, conversation: Conversation, max_new_tokens: int, adapter: str | None) -> None:
        if not conversation.messages:
            raise ConversationError("The conversation has no message. Add a question or a picture.")
        if max_new_tokens < 1:
            raise ConversationError(f"max_new_tokens is {max_new_tokens}; it must be 1 or more.")
        if conversation.pictures and not self._capabilities.pictures:
            raise ConversationError(
                f"{self._capabilities.model} takes no pictures; send text only."
            )
        self._check_adapter(adapter)

    def _check_adapter(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._adapters:
            raise ConversationError(f"There is no adapter {adapter!r}; add it with add_adapter().")

    def _usage(self, request: Request) -> Usage:
        """Cost of the prompt: a word is a token; an earlier request of the session is cached."""
        messages = request.conversation.messages
        seen = (
            len(earlier.conversation.messages)
            for earlier in self.requests
            if earlier.session == request.session
            and earlier.conversation.system == request.conversation.system
            and earlier.conversation.messages == messages[: len(earlier.conversation.messages)]
        )
        cached = min(max(seen, default=0), len(messages) - 1)  # something is always left to compute
        system = len(_words(request.conversation.system or ""))
        image_tokens = self._capabilities.image_tokens
        return Usage(
            prompt_tokens=system + sum(self._cost(message) for message in messages),
            cached_tokens=(system + sum(self._cost(m) for m in messages[:cached])) if cached else 0,
            image_tokens=image_tokens * len(request.conversation.pictures),
        )

    def _cost(self, message: Message) -> int:
        pictures = len(message.pictures) * self._capabilities.image_tokens
        return len(_words(message.text)) + pictures

    def _run(
        self, request: Request, usage: Usage, stream: Stream, stopped: threading.Event
    ) -> None:
        answer = self._play(request, usage, stream, stopped)
        with self._ended:
            self._running.discard(stream)
            self._ended.notify_all()
        if self._error is not None and answer.finish_reason != "cancelled":
            stream.fail(self._error)
        else:
            stream.finish(answer)

    def _play(
        self, request: Request, usage: Usage, stream: Stream, stopped: threading.Event
    ) -> Answer:
        started = time.perf_counter()

        # 1) what comes before the first token
        stream.put(Chunk(status=Status("queued", 0)))
        pictures = len(request.conversation.messages[-1].pictures)
        for done in range(1, pictures + 1):
            stream.put(Chunk(status=Status("vision", done, pictures)))
            stopped.wait(self._seconds_per_chunk)
        stream.put(Chunk(status=Status("prefill", usage.prompt_tokens, usage.prompt_tokens)))
        first_token_at = time.perf_counter()

        # 2) the script, one token per piece
        said: list[Token] = []
        reason: FinishReason = "stop"
        for piece in self._pieces(request):
            if stopped.wait(self._seconds_per_chunk):
                reason = "cancelled"
                break
            if len(said) == request.max_new_tokens:
                reason = "length"
                break
            token = _token(len(said), piece, request.logprobs)
            said.append(token)
            if len(said) == 1:
                first_token_at = time.perf_counter()
            stream.put(Chunk(text=piece, tokens=(token,)))

        return _answer(said, reason, usage, started, first_token_at)

    def _pieces(self, request: Request) -> list[str]:
        """The script's pieces up to the first stop text."""
        last = request.conversation.messages[-1]
        pieces = list(self._chunks) if self._chunks is not None else _words(last.text)
        text = "".join(pieces)
        found = [at for at in (text.find(stop) for stop in request.stop if stop) if at >= 0]
        left = min(found, default=len(text))
        kept = []
        for piece in pieces:
            kept.append(piece[:left])
            left -= len(kept[-1])
        return [piece for piece in kept if piece]


def _words(text: str) -> list[str]:
    """Split into words, each with the white space after it: joined, they are the text again."""
    return re.findall(r"^\s+|\S+\s*", text)


def _token(index: int, text: str, logprobs: int | None) -> Token:
    if logprobs is None:
        return Token(index, text)
    others = tuple(Alternative(index + k, f"other{k}", LOGPROB - k) for k in range(1, logprobs + 1))
    return Token(index, text, LOGPROB, others)


def _answer(
    said: list[Token], reason: FinishReason, usage: Usage, started: float, first_token_at: float
) -> Answer:
    ttft_sec = first_token_at - started
    decode_sec = time.perf_counter() - first_token_at
    return Answer(
        text="".join(token.text for token in said),
        finish_reason=reason,
        usage=Usage(usage.prompt_tokens, usage.cached_tokens, usage.image_tokens, len(said)),
        timing=Timing(
            prefill_sec=ttft_sec,
            decode_sec=decode_sec,
            ttft_sec=ttft_sec,
            tokens_per_sec=len(said) / decode_sec if decode_sec > 0 else 0.0,
        ),
        tokens=tuple(said),
    )
