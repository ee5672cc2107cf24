"""The queue before busy engines, end to end: who waits, in which order, how long, and what it costs to leave."""

import asyncio
from typing import Any

import pytest

from tests.engines import ScriptedEngine, scripted
from tests.harness import MODEL, Harness, bearer, begun, gateway, hello, key
from tests.wire_client import WireReply

pytestmark = pytest.mark.anyio
OTHER = "pg-other-key"


def busy(engine: ScriptedEngine, calls: int = 1, **queue: Any) -> dict[str, Any]:
    """Sections for a gateway before an engine that runs so many calls at once, and holds one more."""
    replicas = [{"name": "a", "url": engine.url}]
    identity = {
        "tenants": [{"name": "default"}, {"name": "other"}],
        "keys": [key("tester"), key("second", OTHER, tenant="other")],
    }
    return {
        "models": [{"name": MODEL, "replicas": replicas, "calls_per_replica": calls}],
        "queue": queue,
        "identity": identity,
    }


async def until_waiting(harness: Harness, calls: int) -> None:
    async with asyncio.timeout(10):
        while f" {calls} waiting" not in harness.gate:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_calls_beyond_what_the_engine_runs_wait_and_go_on_in_their_turn() -> None:
    """An engine that runs one call and may hold one more is sent no third one."""
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.holds()
        async with gateway({}, **busy(engine)) as harness, asyncio.TaskGroup() as group:
            calls = [group.create_task(harness.post()) for _ in range(5)]
            await until_waiting(harness, 3)
            await engine.saw(2)
            assert (len(engine.calls), harness.metric("pagegate_waiting_calls", model=MODEL)) == (2, 3)
            engine.behaves()
            engine.release()
            replies = await asyncio.gather(*calls)
            assert [reply.status for reply in replies] == [200] * 5
            waited = [line["queue_ms"] for line in harness.calls if "queue_ms" in line]
            assert len(waited) == 3
            assert harness.metric("pagegate_queue_seconds_count", model=MODEL) == 3
            assert sum("queue;dur=" in (reply.header("server-timing") or "") for reply in replies) == 3


async def test_a_caller_who_leaves_the_queue_is_gone_from_it_at_once() -> None:
    """No engine ever hears of his call."""
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.holds()
        async with gateway({}, **busy(engine, max_wait_s=60)) as harness, asyncio.TaskGroup() as group:
            running = [group.create_task(harness.post()) for _ in range(2)]
            await engine.saw(2)
            async with harness.sent():
                await until_waiting(harness, 1)
            await until_waiting(harness, 0)
            engine.release()
            assert [(await call).status for call in running] == [200, 200]
            assert len(engine.calls) == 2


async def test_a_call_that_waits_too_long_is_told_when_to_come_back() -> None:
    """In the form in which SDKs try again."""
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.holds()
        async with gateway({}, **busy(engine, max_wait_s=0.05)) as harness, asyncio.TaskGroup() as group:
            running = [group.create_task(harness.post()) for _ in range(2)]
            await engine.saw(2)
            late = await harness.post()
            assert (late.status, late.json["error"]["code"]) == (503, "server_is_overloaded")
            assert int(late.header("retry-after-ms") or 0) > 0
            engine.release()
            await asyncio.gather(*running)


async def test_a_caller_who_says_how_long_he_waits_is_not_kept_longer() -> None:
    """OpenAI's SDKs send their time limit; the queue holds to it."""
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.holds()
        async with gateway({}, **busy(engine, max_wait_s=60)) as harness, asyncio.TaskGroup() as group:
            running = [group.create_task(harness.post()) for _ in range(2)]
            await engine.saw(2)
            hurried = await harness.post(headers={**bearer(), "x-stainless-read-timeout": "0.05"})
            assert hurried.status == 503
            engine.release()
            await asyncio.gather(*running)


async def test_a_full_queue_refuses_at_once() -> None:
    """The tenant that fills it is told that it is he; so many wait and no more."""
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.holds()
        sections = busy(engine, max_waiting=4, max_waiting_per_tenant=2)
        async with gateway({}, **sections) as harness, asyncio.TaskGroup() as group:
            calls = [group.create_task(harness.post()) for _ in range(4)]
            await until_waiting(harness, 2)
            refused = await harness.post()
            assert refused.status == 429
            assert int(refused.header("retry-after-ms") or 0) > 0
            engine.behaves()
            engine.release()
            assert [reply.status for reply in await asyncio.gather(*calls)] == [200] * 4


async def test_one_tenants_crowd_does_not_delay_anothers_single_call() -> None:
    """It has its turn after those that the engine holds already, and one of the crowd at most."""
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.holds()
        async with gateway({}, **busy(engine)) as harness, asyncio.TaskGroup() as group:
            crowd = [group.create_task(harness.post(hello("crowd"))) for _ in range(40)]
            await until_waiting(harness, 38)
            one = group.create_task(harness.post(hello("alone"), bearer(OTHER)))
            await until_waiting(harness, 39)
            engine.behaves()
            engine.release()
            assert (await one).status == 200
            await asyncio.gather(*crowd)
            order = [call.body["messages"][0]["content"] for call in engine.calls]
            assert order.index("alone") <= 3


async def test_calls_are_refused_at_once_where_no_engine_is_up() -> None:
    """Nobody waits for an engine that is not there."""
    async with scripted("a") as engines:
        engine = engines["a"]
        async with gateway({}, **busy(engine)) as harness:
            engine.health_is(500)
            await harness.until_down("a")
            reply: WireReply = await harness.post()
            assert reply.status == 503
            assert "No engine is ready" in reply.json["error"]["message"]


async def test_those_who_wait_are_told_when_the_last_engine_goes() -> None:
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.holds()
        async with gateway({}, **busy(engine, max_wait_s=60)) as harness, asyncio.TaskGroup() as group:
            calls = [group.create_task(harness.post()) for _ in range(4)]
            await until_waiting(harness, 2)
            await engine.saw(2)
            engine.crashes()
            assert {(await call).status for call in calls} == {503}


async def test_a_capacity_that_nobody_configured_is_learnt() -> None:
    """An engine in which calls wait runs as many as it can: what comes then waits here, where it can be chosen."""
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.holds()
        async with gateway({"a": engine.url}) as harness, asyncio.TaskGroup() as group:
            first = group.create_task(harness.post())
            await engine.saw(1)
            engine.busy(running=1, waiting=3)
            async with asyncio.timeout(10):
                while harness.replica("a").learnt is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            second = group.create_task(harness.post())
            await until_waiting(harness, 1)
            engine.busy(running=0)
            engine.behaves()
            engine.release()
            assert ((await first).status, (await second).status) == (200, 200)


async def test_a_streams_turn_is_over_when_the_stream_is() -> None:
    """Not when it begins."""
    async with scripted("a") as engines:
        engine = engines["a"]
        engine.steps()
        async with gateway({}, **busy(engine, max_wait_s=60)) as harness, asyncio.TaskGroup() as group:
            async with harness.sent(hello(stream=True)) as one, harness.sent(hello(stream=True)) as two:
                await engine.saw(2)
                engine.step(1)
                await begun(one)
                await begun(two)
                third = group.create_task(harness.post())
                await until_waiting(harness, 1)
            engine.behaves()
            assert (await third).status == 200
