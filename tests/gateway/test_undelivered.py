"""A reply that the gateway has is not yet one that the caller has."""

import asyncio
from typing import Any

import orjson
import pytest

from gateway.edge.arrival import Arrival, ReadingLimits
from gateway.edge.callers import EXTENSION
from gateway.errors import GatewayError, SlowReader
from tests.engines import scripted
from tests.harness import CHAT, KEY, gateway, hello

pytestmark = pytest.mark.anyio


class StayingCaller:
    """Sends his call and stays."""

    def __init__(self) -> None:
        self._body: bytes | None = orjson.dumps(hello())

    async def receive(self) -> dict[str, Any]:
        body, self._body = self._body, None
        if body is None:
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": body, "more_body": False}

    def departure(self) -> GatewayError | None:
        return None


async def test_a_plain_reply_that_could_not_be_sent_is_no_success() -> None:
    """The block that sends it says whether it was sent."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        pipeline, caller = harness.serving.gateway.pipeline, StayingCaller()
        scope = {
            "method": "POST",
            "path": CHAT,
            "headers": [(b"authorization", b"Bearer " + KEY.encode()), (b"content-type", b"application/json")],
            "extensions": {EXTENSION: caller},
        }
        arrival = Arrival(scope, caller.receive, "req_1", pipeline.clock(), ReadingLimits(10_000, 5, 1))
        with pytest.raises(SlowReader):
            async with pipeline.open(arrival):
                raise SlowReader(1)
        assert [(line["outcome"], line["error"]) for line in harness.calls] == [("severed", "SlowReader")]
