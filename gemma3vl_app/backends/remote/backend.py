"""`RemoteBackend`: the backend protocol over one or several servers of the same model."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from gemma3vl_app import catalog
from gemma3vl_app.addresses import Servers, parse_servers
from gemma3vl_app.backends.protocol import Activity, Capabilities, Schema
from gemma3vl_app.backends.remote.connection import Connection
from gemma3vl_app.backends.remote.dialects import DIALECTS
from gemma3vl_app.backends.remote.failures import KEY_VARIABLE, Unavailable
from gemma3vl_app.backends.remote.limits import RemoteLimits
from gemma3vl_app.backends.remote.loop import LoopThread
from gemma3vl_app.backends.remote.pictures import DataUrls
from gemma3vl_app.backends.remote.pool import Pool, Server
from gemma3vl_app.backends.remote.probing import Facts, probe, serves
from gemma3vl_app.backends.remote.requests import (
    Request,
    check_conversation,
    preview_of,
    request_for,
)
from gemma3vl_app.backends.remote.scoring import score
from gemma3vl_app.backends.remote.writing import Writing
from gemma3vl_app.errors import BusyError, ConversationError, EngineError, LoadError
from gemma3vl_app.generation import (
    Answer,
    Chunk,
    Preview,
    Progress,
    Sample,
    Sampling,
    Status,
    Token,
)
from gemma3vl_app.messages import Conversation
from gemma3vl_app.planning import LoadPlan
from gemma3vl_app.stream import Stream

Outcome = asyncio.Task[Answer | Exception]


def load_remote(
    source: str,
    *,
    api_key: str | None = None,
    context_tokens: int | None = None,
    limits: RemoteLimits | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> RemoteBackend:
    """Return a backend over the servers at `source`, after asking what they are and can.

    `source` is an address such as "http://host:8000/v1", or several with commas; "#NAME" behind one
    chooses among its models. The key is `api_key`, else that of GEMMA3VL_REMOTE_KEY.
    `context_tokens` is the context of a server that does not state its own. Raises `LoadError`.
    """
    servers = parse_servers(source)
    if context_tokens is not None and context_tokens < 1:
        raise LoadError(f"context_tokens is {context_tokens}; it must be 1 or more.")
    key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise LoadError(f"The key of the server ({KEY_VARIABLE}) holds what no key may hold.")
    if progress is not None:
        progress(Progress("asking", 0, 0, "", f"Asking {servers.hosts} what it can"))
    return RemoteBackend(servers, key, limits or RemoteLimits(), context_tokens)


class RemoteBackend:
    """Answers conversations with servers elsewhere; see `Backend` for what each method promises."""

    def __init__(
        self, servers: Servers, key: str, limits: RemoteLimits, context_tokens: int | None
    ) -> None:
        """Ask the servers what they are; `load_remote` reads the rest out of what people give."""
        self._limits = limits
        self._urls = DataUrls()
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._running: set[Stream] = set()
        self._closed = False
        self._loop = LoopThread("remote")
        try:
            self._pool, self._facts = self._loop.result(self._connect(servers, key, context_tokens))
        except BaseException:
            self._loop.close()
            raise
        self._capabilities = _capabilities(self._facts, len(self._pool.servers))

    @property
    def capabilities(self) -> Capabilities:
        """What the model is and can do, as far as its server says or shows."""
        return self._capabilities

    @property
    def plan(self) -> LoadPlan | None:
        """Nothing is placed here: the server has placed its own model."""
        return None

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the variants of the model that the server has loaded."""
        return self._facts.adapters

    @property
    def facts(self) -> Facts:
        """What the (first) server told of itself."""
        return self._facts

    @property
    def activity(self) -> Activity:
        """How many answers are being written, and whether any server is up."""
        return Activity(
            running=len(self._running),
            waiting=0,  # servers do not tell
            alive=not self._closed,
            reachable=self._pool.is_up,
        )

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
        """Ask for an answer and return it as a stream; see `Backend.stream`."""
        request = request_for(
            conversation,
            self._facts,
            self._urls.of,
            sampling=sampling or self._capabilities.sampling,
            max_new_tokens=max_new_tokens,
            stop=stop,
            logprobs=logprobs,
            schema=schema,
            model=self._model(adapter),
            session=session,
        )
        started: list[Callable[[], None]] = []  # what ends it; there before anybody has the stream
        stream = Stream(on_cancel=lambda: started[0]())
        with self._lock:
            self._check_open()
            if len(self._running) >= self._limits.at_once:
                raise BusyError(
                    f"{self._limits.at_once} answers are being written by {self._facts.name} "
                    "already. Try again later."
                )
            self._running.add(stream)
            stream.put(Chunk(status=Status("queued")))
            writing = Writing(request, stream)
            task = self._loop.start(
                self._outcome(request, writing), partial(self._end, writing, stream)
            )
            started.append(task.cancel)
        return stream

    def preview(
        self, conversation: Conversation, *, adapter: str | None = None, session: str = ""
    ) -> Preview:
        """Return roughly what `conversation` would cost; the server is not asked."""
        self._model(adapter)
        check_conversation(conversation, self._facts)
        return preview_of(conversation, self._facts)

    def score(
        self,
        conversation: Conversation,
        text: str,
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> tuple[Token, ...]:
        """Return the tokens of `text` with their log-probabilities, where the server tells them."""
        with self._lock:
            self._check_open()
        if not self._capabilities.score:
            raise ConversationError(
                f"{self._facts.server} does not tell the log-probabilities of a given text. "
                "Use vLLM, or a model that is loaded here."
            )
        check_conversation(conversation, self._facts)
        model = self._model(adapter)
        connection = self._pool.servers[0].connection
        work = score(connection, model, conversation, text, self._urls.of)
        try:
            return self._loop.result(work)
        except Unavailable as error:
            raise error.error from error

    def remember(
        self,
        conversation: Conversation,
        answers: Mapping[int, Sequence[int]],
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> None:
        """Take nothing: the server gets texts, and encodes them itself."""

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Refuse: adapters are loaded by the server."""
        raise LoadError(
            f"Adapters of {self._facts.name} are loaded by its server, not from here. "
            "Start vLLM with --enable-lora --lora-modules NAME=FOLDER; its adapters are then there."
        )

    def close(self, *, finish_sec: float = 0.0) -> None:
        """Refuse new answers, wait for those that run, end the rest; see `Backend.close`."""
        with self._ended:
            self._closed = True
            self._ended.wait_for(lambda: not self._running, finish_sec)
            running = tuple(self._running)
        for stream in running:
            stream.fail(EngineError(self._closed_message()))
            stream.cancel()
        self._loop.close()

    def __enter__(self) -> RemoteBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- on the loop ---

    async def _connect(
        self, servers: Servers, key: str, context_tokens: int | None
    ) -> tuple[Pool, Facts]:
        """Ask every server what it is; all must have the same model."""
        connections = [Connection(each, key, self._limits) for each in servers.addresses]
        self._closing = asyncio.create_task(self._close_at_end(connections))
        # One after the other would be slower, and nothing else needs them yet.
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_caught(probe(each, servers.model, context_tokens)))
                for each in connections
            ]
        found = [task.result() for task in tasks]
        facts = _common(found)
        pool = Pool([Server(each) for each in connections])
        for server, told in zip(pool.servers, found, strict=True):
            if isinstance(told, LoadError):
                pool.mark_down(server)

        async def looks_well(server: Server) -> bool:
            return await serves(server.connection, facts.model)

        self._looking = asyncio.create_task(pool.look_after(looks_well, self._limits.health_sec))
        return pool, facts

    async def _close_at_end(self, connections: Sequence[Connection]) -> None:
        try:
            await asyncio.get_running_loop().create_future()  # until the loop ends
        finally:
            for connection in connections:
                await connection.close()

    async def _outcome(self, request: Request, writing: Writing) -> Answer | Exception:
        """Ask, again where nothing has come back; returns the answer or what went wrong."""
        try:
            async with asyncio.timeout(self._limits.total_sec):
                return await self._answer(request, writing)
        except TimeoutError:
            return EngineError(
                f"The answer was not complete after {self._limits.total_sec:.0f} s. "
                "Ask for fewer tokens."
            )
        except Exception as error:
            return error

    async def _answer(self, request: Request, writing: Writing) -> Answer:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._limits.retry_sec
        tried: list[Server] = []
        while True:
            with self._pool.asking(request.home, tried) as server:
                try:
                    return await self._once(server, request, writing)
                except Unavailable as error:
                    if error.is_down:
                        self._pool.mark_down(server)
                    tried.append(server)
                    failed = error
            pause_sec = self._pause_sec(len(tried), failed)
            if len(tried) >= self._limits.tries or loop.time() + pause_sec > until:
                raise failed.error
            await asyncio.sleep(pause_sec)

    async def _once(self, server: Server, request: Request, writing: Writing) -> Answer:
        writing.host = server.host
        complete = False
        async with server.connection.answer(request.body) as events:
            self._pool.mark_up(server)
            async for event in events:
                if not event:
                    complete = True
                elif not writing.take(event):
                    break
        return writing.answer(complete=complete)

    def _pause_sec(self, tries: int, failed: Unavailable) -> float:
        """Return how long to wait: not at all where another server has not been tried yet."""
        if tries < len(self._pool.servers):
            return 0.0
        pause_sec = self._limits.pause_sec * 2.0 ** (tries - len(self._pool.servers))
        # Spread, so that many who were refused together do not come back together.
        return max(failed.after_sec or 0.0, pause_sec) * random.uniform(1.0, 1.25)

    def _end(self, writing: Writing, stream: Stream, task: Outcome) -> None:
        """Whatever has happened, the stream has an end; what was said before a stop is kept."""
        with self._ended:
            self._running.discard(stream)
            self._ended.notify_all()
        if task.cancelled():
            stream.finish(writing.answer(complete=False, cancelled=True))
        elif isinstance(outcome := task.result(), Answer):
            stream.finish(outcome)
        else:
            stream.fail(outcome)

    # --- inside ---

    def _model(self, adapter: str | None) -> str:
        if adapter is None:
            return self._facts.model
        if adapter in self._facts.adapters:
            return adapter
        known = ", ".join(self._facts.adapters)
        raise ConversationError(
            f"There is no adapter {adapter!r}; "
            f"{f'choose one of: {known}.' if known else 'the server has none loaded.'}"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(self._closed_message())

    def _closed_message(self) -> str:
        name = self._facts.name
        return f"The model {name!r} has been closed. Load it again, or choose another one."


async def _caught(asking: Coroutine[Any, Any, Facts]) -> Facts | LoadError:
    try:
        return await asking
    except LoadError as error:
        return error


def _common(found: Sequence[Facts | LoadError]) -> Facts:
    """Return what holds for all servers that work; raises `LoadError` unless one does, and agree.

    A server that is down now is left out, and taken in when it comes up with the same model.
    """
    facts = [each for each in found if isinstance(each, Facts)]
    if not facts:
        raise next(each for each in found if isinstance(each, LoadError))
    models = list(dict.fromkeys(each.model for each in facts))
    if len(models) > 1:
        raise LoadError(
            f"The servers have different models: {', '.join(models)}. All must serve the same one."
        )
    kinds = {each.kind for each in facts}
    return replace(
        facts[0],
        kind=facts[0].kind if len(kinds) == 1 else "other",
        adapters=tuple(n for n in facts[0].adapters if all(n in each.adapters for each in facts)),
        context_tokens=min(each.context_tokens for each in facts),
        image_tokens=0 if any(not f.image_tokens for f in facts) else facts[0].image_tokens,
        logprobs=all(each.logprobs for each in facts),
        schema=all(each.schema for each in facts),
    )


def _capabilities(facts: Facts, servers: int) -> Capabilities:
    dialect = DIALECTS[facts.kind]
    sampling = Sample() if dialect.top_k else Sample(top_k=0)
    return Capabilities(
        model=facts.name,
        title=f"{facts.name} ({dialect.title})" if facts.kind != "other" else facts.name,
        knows=_knows(facts, servers),
        context_tokens=facts.context_tokens,
        image_tokens=facts.image_tokens,
        answer_tokens=min(catalog.DEFAULT_ANSWER_TOKENS, facts.context_tokens),
        sampling=sampling,
        logprobs=facts.logprobs,
        schema=facts.schema,
        score=dialect.scores and bool(dialect.continues) and facts.logprobs,
    )


def _knows(facts: Facts, servers: int) -> str:
    """Say what was found out, for people; where the servers are is the operator's business."""
    where = facts.server if servers == 1 else f"{servers} servers ({facts.server})"
    can = [
        f"takes pictures (about {facts.image_tokens} tokens each)"
        if facts.image_tokens
        else "takes no pictures",
        "keeps to JSON schemas" if facts.schema else "cannot be held to JSON schemas",
        "tells log-probabilities" if facts.logprobs else "tells no log-probabilities",
    ]
    if not DIALECTS[facts.kind].continues:
        can.append("cannot go on with an unfinished answer")
    context = (
        ""
        if facts.says_context
        else (f" Its context is not known; {facts.context_tokens:,} tokens are assumed.")
    )
    return f"Answers come from {where}. It {', '.join(can[:-1])}, and {can[-1]}.{context}"
