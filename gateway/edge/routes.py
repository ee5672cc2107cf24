"""The routes of a listener as ASGI apps: read a call, open the pipeline, render. Exact paths, no redirects."""

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

import orjson
import structlog
from starlette.routing import Route, Router

from gateway.catalog import Catalog
from gateway.edge.arrival import Arrival, ReadingLimits, Receive
from gateway.edge.rendering import Response, Send
from gateway.errors import CallerLeft, GatewayError, NoSuchRoute, SlowReader, UnknownModel, WrongMethod
from gateway.identity.keys import Keys
from gateway.pipeline import Pipeline
from gateway.wire.openai import CHAT_PATH

Clock = Callable[[], float]
Log = structlog.typing.FilteringBoundLogger
Endpoint = Callable[[Arrival, Response], Awaitable[None]]
"""Answers one exchange; what it raises is answered for it."""

READING = ("GET", "HEAD")


class Surface:
    """What all routes share: an arrival and a response for each exchange, and the last resort for errors."""

    def __init__(self, limits: ReadingLimits, clock: Clock, new_id: Callable[[], str], log: Log) -> None:
        self._limits = limits
        self._clock = clock
        self._new_id = new_id
        self._log = log

    async def meet(
        self, scope: Any, receive: Receive, send: Send, endpoint: Endpoint, methods: Collection[str] | None
    ) -> None:
        """One exchange, from its head to its end; `methods` are those that the endpoint knows, None for all."""
        call_id = self._new_id()
        arrival = Arrival(scope, receive, call_id, self._clock(), self._limits)
        response = Response(send, call_id, arrival.unread)
        try:
            if methods is not None and arrival.method not in methods:
                raise WrongMethod(arrival.method, ", ".join(methods))
            await endpoint(arrival, response)
        except (CallerLeft, SlowReader):
            return  # The connection is gone: there is nobody to answer.
        except Exception as error:
            if not isinstance(error, GatewayError):
                self._log.error("call_failed", call=call_id, exc_info=error)
            await response.error(error, arrival.standing())


class At:
    """An endpoint as an ASGI app, for the methods that it knows."""

    def __init__(self, surface: Surface, endpoint: Endpoint, methods: Collection[str] | None = READING) -> None:
        self._surface = surface
        self._endpoint = endpoint
        self._methods = methods

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        await self._surface.meet(scope, receive, send, self._endpoint, self._methods)


class ChatCompletions:
    """POST /v1/chat/completions."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def __call__(self, arrival: Arrival, response: Response) -> None:
        async with self._pipeline.open(arrival) as reply:
            await response.reply(reply, reply.headers)


class Models:
    """GET /v1/models and /v1/models/NAME: the models that the caller may call."""

    def __init__(self, keys: Keys, catalog: Catalog, created_s: int) -> None:
        self._keys = keys
        self._catalog = catalog
        self._created_s = created_s

    async def all(self, arrival: Arrival, response: Response) -> None:
        found = list(self._permitted(arrival).values())
        await response.whole(200, orjson.dumps({"object": "list", "data": found}), {})

    async def one(self, arrival: Arrival, response: Response) -> None:
        models = self._permitted(arrival)
        name = arrival.path.removeprefix("/v1/models/")
        if name not in models:
            raise UnknownModel(name)
        await response.whole(200, orjson.dumps(models[name]), {})

    def _permitted(self, arrival: Arrival) -> dict[str, dict[str, Any]]:
        principal = self._keys.authenticate(arrival.credential)
        return {
            name: {"id": name, "object": "model", "created": self._created_s, "owned_by": "pagegate"}
            for name, canonical in self._catalog.names()
            if principal.may_call(canonical)
        }


async def not_found(arrival: Arrival, response: Response) -> None:
    """Whatever is no route."""
    raise NoSuchRoute(arrival.method, arrival.path)


def public(surface: Surface, pipeline: Pipeline, models: Models, probes: Iterable[tuple[str, Endpoint]]) -> Router:
    """The public listener's routes."""
    return _router(
        surface,
        Route(CHAT_PATH, At(surface, ChatCompletions(pipeline), ("POST",))),
        Route("/v1/models", At(surface, models.all)),
        Route("/v1/models/{name:path}", At(surface, models.one)),
        *(Route(path, At(surface, probe)) for path, probe in probes),
    )


def operations(surface: Surface, probes: Iterable[tuple[str, Endpoint]]) -> Router:
    """The routes of the listener for operators."""
    return _router(surface, *(Route(path, At(surface, probe)) for path, probe in probes))


def _router(surface: Surface, *known: Route) -> Router:
    return Router(known, redirect_slashes=False, default=At(surface, not_found, methods=None))
