"""A server that speaks OpenAI's protocol as one of several programs does, or breaks it on cue."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PICTURE_TOKENS = 40
Answer = Callable[[dict[str, Any]], Response]


@dataclass
class Habits:
    """How one kind of server differs."""

    owner: str = "somebody"
    pages: dict[str, Any] = field(default_factory=dict)  # what is below its root
    card: dict[str, Any] = field(default_factory=dict)  # more of each model
    logprobs: bool = False
    schema: bool = False
    pictures: bool = True
    usage: bool = True  # it counts
    refuses: tuple[str, ...] = ()  # fields that are an error


HABITS = {
    "vllm": Habits(
        owner="vllm",
        pages={"/version": {"version": "0.26.0"}},
        card={"max_model_len": 4096, "root": "/models/gemma", "parent": None},
        logprobs=True,
        schema=True,
    ),
    "sglang": Habits(
        owner="sglang",
        pages={"/get_model_info": {"model_path": "/models/gemma", "is_generation": True}},
        card={"max_model_len": 2048},
        logprobs=True,
        schema=True,
    ),
    "llama.cpp": Habits(
        owner="llamacpp",
        pages={
            "/props": {
                "default_generation_settings": {"n_ctx": 1536},
                "modalities": {"vision": True, "audio": False},
            }
        },
        logprobs=True,
        schema=True,
    ),
    "ollama": Habits(
        owner="library",
        pages={
            "/api/version": {"version": "0.33.0"},
            "/api/ps": {"models": [{"name": "tiny", "context_length": 4096}]},
        },
        schema=True,
    ),
    "transformers": Habits(
        owner="local",
        card={"created": 0, "status": {"value": "loaded"}},
        refuses=("top_k", "cache_salt", "min_p", "continue_final_message"),
    ),
    "other": Habits(),
    "text only": Habits(pictures=False),
    "counts nothing": Habits(usage=False),
}


class FakeServer(AbstractContextManager["FakeServer"]):
    """Serves model "tiny" on a free port, in a thread of its own.

    It repeats what was asked, a word at a time; `script` holds what it does instead, once each.
    `bodies` and `headers` are of the requests after `forget`; `left` is set when a client goes away
    in the middle of an answer.
    """

    def __init__(
        self, kind: str = "other", *, models: tuple[str, ...] = ("tiny",), key: str = "", port=0
    ) -> None:
        self.habits = HABITS[kind]
        self.models = models
        self.adapters: tuple[str, ...] = ()
        self.key = key
        self.script: deque[Answer] = deque()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.left = threading.Event()
        self.broken = False  # everything is 503
        self._seen = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.host = f"127.0.0.1:{self.port}"
        pages = [Route(path, self._page) for path in self.habits.pages]
        routes = [
            Route("/v1/models", self._list),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            *pages,
        ]
        config = uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()
        self._listener.close()

    @property
    def connections(self) -> int:
        """How many clients hold a connection."""
        return len(self._server.server_state.connections)

    def forget(self) -> None:
        """Drop what has been asked so far."""
        self.bodies.clear()
        self.headers.clear()

    def wait_for_requests(self, count: int) -> None:
        with self._seen:
            assert self._seen.wait_for(lambda: len(self.bodies) >= count, 30)

    # --- what it does ---

    async def _page(self, request: Request) -> Response:
        return JSONResponse(self.habits.pages[request.url.path])

    async def _list(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        cards = [
            {"id": name, "object": "model", "owned_by": self.habits.owner, **self.habits.card}
            for name in self.models
        ]
        cards += [{"id": name, "parent": self.models[0]} for name in self.adapters]
        return JSONResponse({"object": "list", "data": cards})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        with self._seen:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self._seen.notify_all()
        if refused := self._refused(request):
            return refused
        if found := [name for name in self.habits.refuses if name in body]:
            return JSONResponse({"detail": f"Unexpected fields in the request: {found}"}, 422)
        pictures = [p for p in _parts(body) if p["type"] == "image_url"]
        if pictures and not self.habits.pictures:
            return JSONResponse({"error": {"message": "This model has no eyes."}}, 400)
        if self.script and body.get("stream"):
            return self.script.popleft()(body)
        words = self.words(body)
        if body.get("stream"):
            return self.stream(body, [self.piece(word, body) for word in words])
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        if body.get("logprobs") and self.habits.logprobs:
            choice["logprobs"] = {"content": [_entry(word) for word in words]}
        return JSONResponse({"choices": [choice], **self.usage(body, words)})

    def words(self, body: dict[str, Any]) -> list[str]:
        if "response_format" in body and self.habits.schema:
            schema = body["response_format"]["json_schema"]["schema"]
            return [json.dumps({name: True for name in schema.get("properties", {})})]
        last = [part["text"] for part in _parts(body, -1) if part["type"] == "text"]
        words = " ".join(last).split(" ")
        said = [word + (" " if n + 1 < len(words) else "") for n, word in enumerate(words)]
        return said[: body["max_tokens"]]

    def piece(self, text: str, body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        if body.get("logprobs") and self.habits.logprobs:
            choice["logprobs"] = {"content": [_entry(text)]}
        return {"choices": [choice]}

    def usage(self, body: dict[str, Any], words: list[Any]) -> dict[str, Any]:
        if not self.habits.usage:
            return {}
        parts = _parts(body)
        pictures = sum(part["type"] == "image_url" for part in parts)
        text = sum(len(part["text"].split()) for part in parts if part["type"] == "text")
        prompt = text + PICTURE_TOKENS * pictures
        details = {"prompt_tokens_details": {"cached_tokens": prompt // 2}}
        return {"usage": {"prompt_tokens": prompt, "completion_tokens": len(words), **details}}

    def stream(self, body: dict[str, Any], pieces: list[dict[str, Any]]) -> Response:
        """Answer with events, the way most servers do it."""
        said = len(pieces) >= body["max_tokens"]
        end = {"index": 0, "delta": {}, "finish_reason": "length" if said else "stop"}
        events = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
            *pieces,
            {"choices": [end]},
            {"choices": [], **self.usage(body, pieces)},
        ]
        return self.raw([*(event(each) for each in events), b"data: [DONE]\n\n"])

    def raw(
        self,
        pieces: list[bytes],
        *,
        until: threading.Event | None = None,
        then: tuple[bytes, ...] = (),
        breaks: bool = False,
        content_type: str = "text/event-stream",
    ) -> Response:
        """Send these bytes, cut so; wait for `until`, send `then`, break off if asked."""

        async def send() -> AsyncIterator[bytes]:
            complete = False
            try:
                for piece in pieces:
                    yield piece
                while until is not None and not until.is_set():
                    await anyio.sleep(0.005)
                for piece in then:
                    yield piece
                complete = True
            finally:
                if not complete:
                    self.left.set()
            if breaks:
                raise ConnectionAbortedError

        return StreamingResponse(send(), media_type=content_type)

    def _refused(self, request: Request) -> Response | None:
        if self.broken:
            return JSONResponse({"error": "loading"}, 503)
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no key"}}, 401)
        return None


def event(data: object) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def delta(text: str | None, **more: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text, **more}}]})


def ended(reason: str = "stop") -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})


DONE = b"data: [DONE]\n\n"


def fails(status: int, body: object = None, **headers: str) -> Answer:
    """Answer with an error."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: JSONResponse(body, status, headers=sent)


def _parts(body: dict[str, Any], at: int | None = None) -> list[dict[str, Any]]:
    messages = body["messages"] if at is None else [body["messages"][at]]
    contents = [message["content"] for message in messages]
    return [
        part
        for content in contents
        for part in ([{"type": "text", "text": content}] if isinstance(content, str) else content)
    ]


def _entry(text: str) -> dict[str, Any]:
    others = [{"token": text, "logprob": -0.5}, {"token": "other", "logprob": -1.5}]
    return {
        "token": text,
        "logprob": -0.5,
        "bytes": list(text.encode()),
        "top_logprobs": others,
    }
