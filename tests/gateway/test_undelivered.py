"""A reply that the gateway has is not yet one that the caller has."""

import orjson
import pytest

from gateway.edge.arrival import Arrival, ReadingLimits, Room
from gateway.edge.exchange import Exchange
from gateway.edge.head import read_head
from gateway.errors import SlowReader
from tests.engines import scripted
from tests.harness import CHAT, KEY, gateway, hello

pytestmark = pytest.mark.anyio


class QuietConnection:
    """Takes what is written to it, and wants nothing."""

    address = "127.0.0.1"

    def write(self, data: bytes) -> None:
        return

    def hold_back(self) -> None:
        return

    def let_on(self) -> None:
        return

    def answered(self, exchange: Exchange) -> None:
        return

    def last(self) -> bool:
        return False


async def test_a_plain_reply_that_could_not_be_sent_is_no_success() -> None:
    """The block that sends it says whether it was sent."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        pipeline, body = harness.serving.gateway.pipeline, orjson.dumps(hello())
        pairs = [(b"host", b"g"), (b"authorization", b"Bearer " + KEY.encode()), (b"content-type", b"application/json")]
        exchange = Exchange(
            QuietConnection(),
            read_head(b"POST", CHAT.encode(), pairs, "1.1", keep_alive=True),
            "req_1",
            pipeline.clock(),
        )
        exchange.feed(body)
        exchange.complete()
        with pytest.raises(SlowReader):
            async with pipeline.open(Arrival(exchange, ReadingLimits(10_000, 5, 1, Room(0)))):
                raise SlowReader(1)
        assert [(line["outcome"], line["error"]) for line in harness.calls] == [("severed", "SlowReader")]
