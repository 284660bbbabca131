"""The paths of the API, and what each of them leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemma3vl_app.api import chat_completions, description, failures, health, responses, sampling
from gemma3vl_app.api.failures import RequestError
from gemma3vl_app.api.metrics import CONTENT_TYPE
from gemma3vl_app.api.serving import Api, PostEndpoint, encode

CHAT, RESPONSES, MODELS = "/v1/chat/completions", "/v1/responses", "/v1/models"
OPENAPI = "/v1/openapi.json"
READY, METRICS = "/readyz", "/metrics"
PATHS = {  # and the methods that each of them takes
    CHAT: ("POST",),
    RESPONSES: ("POST",),
    MODELS: ("GET", "HEAD"),
    OPENAPI: ("GET", "HEAD"),
    READY: ("GET", "HEAD"),
    METRICS: ("GET", "HEAD"),
}


def is_api_path(path: str) -> bool:
    """Return whether a path belongs to the API and not to the page."""
    return path in PATHS or path == "/v1" or path.startswith("/v1/")


class _Anything(PathConvertor):
    """The rest of a path, line breaks too: Starlette's own leaves those to nobody."""

    regex = "(?s:.*)"


def add_routes(app: FastAPI, api: Api) -> None:
    """Add the API's routes to `app`; whatever else begins with /v1 is answered by it, too."""
    register_url_convertor("anything", _Anything())
    asked = _Endpoints(api)
    post = {CHAT: chat_completions.create, RESPONSES: responses.create}
    get = {
        MODELS: asked.models,
        MODELS + "/{name:anything}": asked.model,
        OPENAPI: asked.openapi,
        READY: asked.ready,
        METRICS: asked.metrics,
    }
    nothing = _guarded(api, asked.nothing)
    app.router.routes.extend(
        [
            *(
                Route(path, PostEndpoint(api, each), methods=["POST"])
                for path, each in post.items()
            ),
            *(Route(path, _guarded(api, each), methods=["GET"]) for path, each in get.items()),
            *(
                Route(p, nothing, methods=_METHODS)
                for p in (READY, METRICS, "/v1", "/v1/{p:anything}")
            ),
        ]
    )


_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class _Endpoints:
    """What is asked for with GET; `_guarded` says who may ask, and maps errors."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def models(self, request: Request) -> Response:
        """List the model and its adapters."""
        return _json({"object": "list", "data": self._models()})

    async def model(self, request: Request) -> Response:
        """Tell of one model."""
        name = request.path_params["name"]
        sampling.adapter_of(name, self._api.backend())
        return _json(next(each for each in self._models() if each["id"] == name))

    async def openapi(self, request: Request) -> Response:
        """Describe the API for programs."""
        return _json(description.openapi(CHAT, RESPONSES, MODELS))

    async def ready(self, request: Request) -> Response:
        """Say whether a request sent now would be answered."""
        status, body = health.readiness(self._api)
        return _json(body, status)

    async def metrics(self, request: Request) -> Response:
        """Tell Prometheus."""
        text = await asyncio.to_thread(self._api.metrics.text)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def nothing(self, request: Request) -> Response:
        """Say that there is nothing at this path, or not for this method."""
        if methods := PATHS.get(request.url.path):
            wrong = RequestError(
                f"This path takes {' and '.join(methods)} only.",
                code="method_not_allowed",
                status=405,
            )
            response = failures.response(wrong)
            response.headers["allow"] = ", ".join(methods)
            return response
        there = ", ".join([*PATHS, f"{MODELS}/NAME", "/healthz"])
        raise RequestError(
            f"There is nothing here. There is: {there}.", code="not_found", status=404
        )

    def _models(self) -> list[dict[str, Any]]:
        backend = self._api.backend()
        own = backend.capabilities.model
        return [
            {
                "id": name,
                "object": "model",
                "created": 0,  # not known, and OpenAI's clients need a number
                "owned_by": "gemma3vl_app",
                "parent": None if name == own else own,
                "max_model_len": backend.capabilities.context_tokens,
            }
            for name in sampling.names(backend)
        ]


Endpoint = Callable[[Request], Awaitable[Response]]


def _guarded(api: Api, endpoint: Endpoint) -> Endpoint:
    """Return an endpoint for those alone who may ask, whose errors become OpenAI's."""

    async def guarded(request: Request) -> Response:
        try:
            api.caller(request.scope)
            return await endpoint(request)
        except Exception as error:  # the one border: what is unexpected is logged there
            return failures.response(error)

    return guarded


def _json(value: Any, status: int = 200) -> Response:
    return Response(encode(value), status_code=status, media_type="application/json")
