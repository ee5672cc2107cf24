"""For orchestrators and scrapers: is the process alive, is it ready for calls, what are its metrics."""

from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Readiness = Callable[[], tuple[bool, dict[str, Any]]]
"""Whether calls can be served, and the details to show."""

JSON = "application/json"


class Probes:
    """/livez, /readyz and /metrics."""

    def __init__(self, readiness: Readiness, metrics: Callable[[], bytes], metrics_type: str) -> None:
        self._readiness = readiness
        self._metrics = metrics
        self._metrics_type = metrics_type

    async def livez(self, request: Request) -> Response:
        """200 as long as the process answers."""
        return Response(b'{"status":"alive"}', media_type=JSON)

    async def readyz(self, request: Request) -> Response:
        """200 when some model can be called and the gateway is not draining, else 503; either way with the details."""
        return self._ready(in_detail=True)

    async def briefly(self, request: Request) -> Response:
        """The same without the details: which models there are is not everybody's business."""
        return self._ready(in_detail=False)

    def _ready(self, *, in_detail: bool) -> Response:
        ready, details = self._readiness()
        body = {"status": "ready" if ready else "not ready", **(details if in_detail else {})}
        return Response(orjson.dumps(body), 200 if ready else 503, media_type=JSON)

    async def metrics(self, request: Request) -> Response:
        """Prometheus text exposition."""
        return Response(self._metrics(), headers={"content-type": self._metrics_type})

    def routes(self, *, with_metrics: bool) -> list[Route]:
        """The routes, for the listener that everybody reaches or for the operators' own."""
        alive = Route("/livez", self.livez)
        if with_metrics:
            return [alive, Route("/readyz", self.readyz), Route("/metrics", self.metrics)]
        return [alive, Route("/readyz", self.briefly)]
