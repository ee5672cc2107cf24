"""A gateway that is killed with many open streams: what it held of shared limits comes back, to the last slot."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.engines import scripted
from tests.faults.test_process import served, settings
from tests.harness import CHAT, bearer, gateway, hello, key
from tests.redis_server import RedisServer
from tests.wire_client import WireClient

pytestmark = pytest.mark.anyio
STREAMS = 100
LEASE_S = 1.0


async def test_what_a_killed_gateway_held_is_there_for_the_others(tmp_path: Path) -> None:
    """While it lives nobody else has a slot; once its leases have run out, all of them are there, and not one more."""
    own: dict[str, Any] = {"keys": [key("tester", limits={"concurrent_calls": STREAMS})]}
    with RedisServer(tmp_path) as redis:
        shared: dict[str, Any] = {"url": redis.url, "lease_s": LEASE_S, "timeout_s": 0.5}
        async with scripted("a") as engines:
            engine = engines["a"]
            engine.steps()
            content = settings({"a": engine.url})
            content = {**content, "redis": shared, "identity": content["identity"] | own}
            async with gateway({"a": engine.url}, redis=shared, identity=own) as other, AsyncExitStack() as streams:
                async with served(tmp_path, content) as (process, url):
                    for _ in range(STREAMS):
                        client = await streams.enter_async_context(WireClient(url))
                        await client.send("POST", CHAT, json=hello(stream=True), headers=bearer())
                    await engine.saw(STREAMS)
                    engine.step(1)
                    assert (await other.post()).status == 429
                    process.process.kill()
                    await process.left()
                engine.behaves()
                async with asyncio.timeout(20 * LEASE_S):
                    while (await other.post()).status != 200:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                engine.steps()
                for _ in range(STREAMS):
                    client = await streams.enter_async_context(WireClient(other.url))
                    await client.send("POST", CHAT, json=hello(stream=True), headers=bearer())
                await engine.saw(2 * STREAMS + 1)
                engine.step(1)
                assert (await other.post()).status == 429
                engine.behaves()
                engine.release()
