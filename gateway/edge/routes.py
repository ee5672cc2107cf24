"""The routes of a listener. Calls are answered on their exchange; whatever is no call is a Starlette app beside them.

Exact paths, no redirects, and one last resort for errors.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from gateway.catalog import Catalog
from gateway.edge import rendering
from gateway.edge.arrival import Arrival, ReadingLimits
from gateway.edge.asgi import Hosted, address_of, head_of
from gateway.edge.exchange import Exchange
from gateway.errors import (
    CallerLeft,
    GatewayError,
    SlowReader,
    TooManyConnections,
    UnknownModel,
    WrongMethod,
    forget,
)
from gateway.identity.identities import Identities
from gateway.pipeline import Pipeline
from gateway.wire import openapi
from gateway.wire.openai import CHAT_PATH

Log = structlog.typing.FilteringBoundLogger
CallEndpoint = Callable[[Arrival, Exchange], Awaitable[None]]
"""Answers a call; what it raises is answered for it."""
Endpoint = Callable[[Request], Awaitable[Response]]

JSON = "application/json"


class Surface:
    """Everything that a listener answers: `calls` by their path, all else by `others`; `paths` of both."""

    def __init__(
        self, calls: Mapping[str, CallEndpoint], others: Iterable[Route], limits: ReadingLimits, log: Log
    ) -> None:
        found = list(others)
        self.paths: tuple[str, ...] = (*calls, *(route.path_format for route in found))
        self._calls = calls
        self._others = Hosted(
            Router(found, redirect_slashes=False),
            limits.max_body_bytes,
            limits.body_timeout_s,
            limits.trusted_proxies,
        )
        self.reading = limits
        self._log = log

    async def __call__(self, exchange: Exchange) -> None:
        """One exchange, from its head to its end."""
        arrival = Arrival(exchange, self.reading)
        try:
            endpoint = self._calls.get(arrival.path)
            if endpoint is None:
                await self._others(exchange)
            elif arrival.method != "POST":
                raise WrongMethod(arrival.method, "POST")
            else:
                await endpoint(arrival, exchange)
        except (CallerLeft, SlowReader) as error:
            forget(error)  # The connection is gone: there is nobody to answer.
        except Exception as error:
            if not isinstance(error, GatewayError):
                self._log.error("call_failed", call=exchange.id, exc_info=error)
            rendering.tell(exchange, error, arrival.standing())
            forget(error)

    async def surplus(self, exchange: Exchange) -> None:
        """Answers on a connection beyond those that there may be."""
        exchange.end_connection()
        rendering.tell(exchange, TooManyConnections(), b"")


class Calls:
    """A call's endpoint: opens the pipeline, and renders."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def chat_completions(self, arrival: Arrival, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        async with self._pipeline.open(arrival) as reply:
            await rendering.send(exchange, reply)

    def by_path(self) -> Mapping[str, CallEndpoint]:
        return {CHAT_PATH: self.chat_completions}


def described(document: Mapping[str, Any]) -> Route:
    """GET /openapi.json: the document, written once."""
    body = orjson.dumps(document)

    async def describe(request: Request) -> Response:
        return Response(body, media_type=JSON)

    return Route(openapi.PATH, describe)


class Models:
    """GET /v1/models and /v1/models/NAME: the models that the caller may call."""

    def __init__(self, identities: Identities, catalog: Catalog, created_s: int) -> None:
        self._identities = identities
        self._catalog = catalog
        self._created_s = created_s

    async def all(self, request: Request) -> Response:
        found = list((await self._permitted(request)).values())
        return Response(orjson.dumps({"object": "list", "data": found}), media_type=JSON)

    async def one(self, request: Request) -> Response:
        models = await self._permitted(request)
        name = request.path_params["name"]
        if name not in models:
            raise UnknownModel(name)
        return Response(orjson.dumps(models[name]), media_type=JSON)

    async def _permitted(self, request: Request) -> dict[str, dict[str, Any]]:
        principal = await self._identities.authenticate(head_of(request).bearer, address_of(request))
        return {
            name: {"id": name, "object": "model", "created": self._created_s, "owned_by": "pagegate"}
            for name, canonical in self._catalog.names()
            if principal.may_call(canonical)
        }

    def routes(self) -> list[Route]:
        return [Route("/v1/models", self.all), Route("/v1/models/{name:path}", self.one)]
