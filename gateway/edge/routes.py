"""The routes of the public listener as ASGI apps: read a call, open the pipeline, render. Exact paths, no redirects."""

import random
from collections.abc import Callable
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


class Surface:
    """What all routes share: an arrival and a response for each exchange, and the last resort for errors."""

    def __init__(self, limits: ReadingLimits, clock: Clock, rng: random.Random, log: Log) -> None:
        self._limits = limits
        self._clock = clock
        self._rng = rng
        self.log = log

    def meet(self, scope: Any, receive: Receive, send: Send) -> tuple[Arrival, Response]:
        call_id = f"req_{self._rng.getrandbits(128):032x}"
        return Arrival(scope, receive, call_id, self._clock(), self._limits), Response(send, call_id)

    async def tell(self, response: Response, error: Exception) -> None:
        """Answers an error; of one that is not ours the log has the traceback, and the caller learns nothing."""
        if not isinstance(error, GatewayError):
            self.log.error("call_failed", exc_info=error)
        await response.error(error)


class ChatCompletions:
    """POST /v1/chat/completions."""

    def __init__(self, surface: Surface, pipeline: Pipeline) -> None:
        self._surface = surface
        self._pipeline = pipeline

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        arrival, response = self._surface.meet(scope, receive, send)
        try:
            if arrival.method != "POST":
                raise WrongMethod(arrival.method, "POST")
            async with self._pipeline.open(arrival) as opened:
                await response.reply(opened.reply, opened.guard, opened.reply.headers)
        except CallerLeft:
            return
        except SlowReader:
            raise  # The server closes the connection; there is no telling a caller who does not read.
        except Exception as error:
            await self._surface.tell(response, error)


class Models:
    """GET /v1/models and /v1/models/NAME: the models that the caller may call."""

    def __init__(self, surface: Surface, keys: Keys, catalog: Catalog, created_s: int) -> None:
        self._surface = surface
        self._keys = keys
        self._catalog = catalog
        self._created_s = created_s

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        arrival, response = self._surface.meet(scope, receive, send)
        try:
            if arrival.method != "GET":
                raise WrongMethod(arrival.method, "GET")
            found = self._found(arrival, scope.get("path_params", {}).get("name"))
            await response.whole(200, orjson.dumps(found), {})
        except Exception as error:
            await self._surface.tell(response, error)

    def _found(self, arrival: Arrival, name: str | None) -> dict[str, Any]:
        principal = self._keys.authenticate(arrival.credential)
        models = {
            known: {"id": known, "object": "model", "created": self._created_s, "owned_by": "pagegate"}
            for known, canonical in self._catalog.names()
            if principal.may_call(canonical)
        }
        if name is None:
            return {"object": "list", "data": list(models.values())}
        if name not in models:
            raise UnknownModel(name)
        return models[name]


class NotFound:
    """Whatever is no route."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        arrival, response = self._surface.meet(scope, receive, send)
        await response.error(NoSuchRoute(arrival.method, arrival.path))


def public(surface: Surface, pipeline: Pipeline, models: Models, probes: list[Route]) -> Router:
    """The public listener's routes."""
    return Router(
        [
            Route(CHAT_PATH, ChatCompletions(surface, pipeline)),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", models),
            *probes,
        ],
        redirect_slashes=False,
        default=NotFound(surface),
    )
