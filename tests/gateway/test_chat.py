"""A call through the whole gateway, before a scripted engine."""

import pytest

from tests.engines import scripted
from tests.harness import MODEL, gateway
from tests.wire_client import WireClient

pytestmark = pytest.mark.anyio

HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "hello there"}]}


async def test_a_plain_reply_is_the_engines_document_byte_for_byte() -> None:
    """What the engine wrote reaches the caller untouched."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].says("Hello", " you")
        async with WireClient(harness.url) as client:
            reply = await client.post("/v1/chat/completions", json=HELLO, headers=harness.headers)
        assert reply.status == 200
        assert reply.json["choices"][0]["message"]["content"] == "Hello you"
        assert reply.head.header("x-pagegate-replica") == "a"
