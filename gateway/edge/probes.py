"""For orchestrators and scrapers: is the process alive, is it ready for calls, what are its metrics."""

from collections.abc import Callable
from typing import Any

import orjson

from gateway.edge.arrival import Arrival
from gateway.edge.rendering import Response

Readiness = Callable[[], tuple[bool, dict[str, Any]]]
"""Whether calls can be served, and the details to show."""


class Probes:
    """/livez, /readyz and /metrics."""

    def __init__(self, readiness: Readiness, metrics: Callable[[], bytes], metrics_type: str) -> None:
        self._readiness = readiness
        self._metrics = metrics
        self._metrics_type = metrics_type

    async def livez(self, arrival: Arrival, response: Response) -> None:
        """200 as long as the process answers."""
        await response.whole(200, b'{"status":"alive"}', {})

    async def readyz(self, arrival: Arrival, response: Response) -> None:
        """200 when some model can be called and the gateway is not draining, else 503; either way with the details."""
        ready, details = self._readiness()
        body = orjson.dumps({"status": "ready" if ready else "not ready", **details})
        await response.whole(200 if ready else 503, body, {})

    async def metrics(self, arrival: Arrival, response: Response) -> None:
        """Prometheus text exposition."""
        await response.whole(200, self._metrics(), {"content-type": self._metrics_type})
