"""Two gateways before one Redis, end to end: one limit for both, with Redis and without."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import scripted
from tests.harness import Harness, begun, gateway, hello, key
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


def sharing(redis: RedisServer, *rules: dict[str, Any], **limits: Any) -> dict[str, Any]:
    """Sections for a gateway that shares the limits of its one key through Redis."""
    return {
        "redis": {"url": redis.url, "timeout_s": 0.5, "retry_s": 0.02},
        "identity": {"keys": [key("tester", limits=limits)]},
        "limits": list(rules),
    }


async def until(harness: Harness, redis_up: int) -> None:
    async with asyncio.timeout(10):
        while harness.metric("pagegate_redis_up") != redis_up:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_two_gateways_admit_together_what_one_limit_allows(redis: RedisServer) -> None:
    """Exactly, however their calls race; and both tell what is left of it."""
    sections = sharing(redis, {"name": "all", "tokens_per_day": 10_000}, requests_per_minute=10)
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, **sections) as one,
        gateway({"a": engines["a"].url}, **sections) as other,
    ):
        replies = await asyncio.gather(*(each.post() for _ in range(15) for each in (one, other)))
        statuses = [reply.status for reply in replies]
        assert (statuses.count(200), statuses.count(429)) == (10, 20)
        assert len(engines["a"].calls) == 10
        assert {reply.header("x-ratelimit-limit-requests") for reply in replies} == {"10"}
        assert {int(reply.header("retry-after") or 0) for reply in replies if reply.status == 429} <= {5, 6}


async def test_a_slot_that_one_gateway_holds_is_taken_for_the_other(redis: RedisServer) -> None:
    """Until the stream on it has ended."""
    sections = sharing(redis, concurrent_calls=1)
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, **sections) as one,
        gateway({"a": engines["a"].url}, **sections) as other,
    ):
        engines["a"].steps(calls=1)
        async with one.sent(hello(stream=True)) as client:
            await engines["a"].saw(1)
            engines["a"].step(1)
            await begun(client)
            assert (await other.post()).status == 429
        async with asyncio.timeout(10):
            while (await other.post()).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def test_a_redis_that_is_gone_stops_no_call(redis: RedisServer) -> None:
    """Each gateway goes on with its share of the limit, says so, and shares again when Redis is back."""
    sections = sharing(redis, requests_per_minute=1000)
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, **sections) as harness:
        assert (await harness.post()).header("x-ratelimit-remaining-requests") == "999"
        redis.kill()
        assert [(await harness.post()).status for _ in range(3)] == [200] * 3
        await until(harness, redis_up=0)
        assert len(harness.log.named("redis_away")) == 1
        redis.start()
        await until(harness, redis_up=1)
        assert (await harness.post()).header("x-ratelimit-remaining-requests") == "999"
        assert len(harness.log.named("redis_back")) == 1


async def test_a_limit_may_say_that_nothing_passes_without_redis(redis: RedisServer) -> None:
    """For what must never be exceeded: the caller is told to come back, and is not at fault."""
    rule = {"name": "hard", "per": ["tenant"], "tokens_per_day": 100_000, "on_loss": "refuse"}
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, **sharing(redis, rule)) as harness:
        assert (await harness.post()).status == 200
        redis.kill()
        await until(harness, redis_up=0)
        refused = await harness.post()
        assert (refused.status, refused.json["error"]["code"]) == (503, "server_is_overloaded")
        assert int(refused.header("retry-after-ms") or 0) > 0
        redis.start()
        await until(harness, redis_up=1)
        assert (await harness.post()).status == 200


async def test_a_gateway_starts_without_its_redis(redis: RedisServer) -> None:
    """And finds it when it comes."""
    redis.kill()
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, **sharing(redis, requests_per_minute=9)) as harness,
    ):
        assert (await harness.post()).status == 200
        assert harness.metric("pagegate_redis_up") == 0
        redis.start()
        await until(harness, redis_up=1)
        assert (await harness.post()).status == 200
