"""The paths of the API, and what each of them leads to."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemma3vl_app.api import chat_completions, failures, health, responses, sampling
from gemma3vl_app.api.failures import RequestError
from gemma3vl_app.api.metrics import CONTENT_TYPE
from gemma3vl_app.api.serving import Api, PostEndpoint, encode

CHAT, RESPONSES, MODELS = "/v1/chat/completions", "/v1/responses", "/v1/models"
READY, METRICS = "/readyz", "/metrics"
PATHS = {  # and the methods that each of them takes
    CHAT: ("POST",),
    RESPONSES: ("POST",),
    MODELS: ("GET", "HEAD"),
    READY: ("GET", "HEAD"),
    METRICS: ("GET", "HEAD"),
}


def is_api_path(path: str) -> bool:
    """Return whether a path belongs to the API and not to the page."""
    return path in PATHS or path == "/v1" or path.startswith("/v1/")


def add_routes(app: FastAPI, api: Api) -> None:
    """Add the API's routes to `app`; whatever else begins with /v1 is answered by it, too."""
    endpoints = _Endpoints(api)
    post = {
        CHAT: PostEndpoint(api, chat_completions.create),
        RESPONSES: PostEndpoint(api, responses.create),
    }
    app.router.routes.extend(
        [
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()),
            Route(MODELS, endpoints.models, methods=["GET"]),
            Route(MODELS + "/{name:path}", endpoints.model, methods=["GET"]),
            Route(READY, endpoints.ready, methods=["GET"]),
            Route(METRICS, endpoints.metrics, methods=["GET"]),
            *(Route(path, endpoints.nothing, methods=_METHODS) for path in (READY, METRICS, "/v1")),
            Route("/v1/{rest:path}", endpoints.nothing, methods=_METHODS),
        ]
    )


_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class _Endpoints:
    """What is asked for with GET, each within its own error border."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def models(self, request: Request) -> Response:
        """List the model and its adapters."""
        try:
            self._api.caller(request.scope)
            return _json({"object": "list", "data": self._models()})
        except Exception as error:  # the one border: everything becomes an OpenAI error
            return failures.response(error)

    async def model(self, request: Request) -> Response:
        """Tell of one model."""
        try:
            self._api.caller(request.scope)
            name = request.path_params["name"]
            sampling.adapter_of(name, self._api.backend())
            return _json(next(each for each in self._models() if each["id"] == name))
        except Exception as error:
            return failures.response(error)

    async def ready(self, request: Request) -> Response:
        """Say whether a request sent now would be answered."""
        try:
            self._api.caller(request.scope)
            status, body = health.readiness(self._api)
            return _json(body, status)
        except Exception as error:
            return failures.response(error)

    async def metrics(self, request: Request) -> Response:
        """Tell Prometheus."""
        try:
            self._api.caller(request.scope)
            text = await asyncio.to_thread(self._api.metrics.text)
            return Response(text, headers={"content-type": CONTENT_TYPE})
        except Exception as error:
            return failures.response(error)

    async def nothing(self, request: Request) -> Response:
        """Say that there is nothing at this path, or not for this method."""
        try:
            self._api.caller(request.scope)
        except RequestError as error:
            return failures.response(error)
        path = request.url.path
        if methods := PATHS.get(path):
            wrong = RequestError(
                f"This path takes {' and '.join(methods)} only.",
                code="method_not_allowed",
                status=405,
            )
            response = failures.response(wrong)
            response.headers["allow"] = ", ".join(methods)
            return response
        there = ", ".join([*PATHS, f"{MODELS}/NAME", "/healthz"])
        return failures.response(
            RequestError(f"There is nothing here. There is: {there}.", code="not_found", status=404)
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


def _json(value: Any, status: int = 200) -> Response:
    return Response(encode(value), status_code=status, media_type="application/json")
