"""Where calls go: to the least busy of the replicas that are up."""

import asyncio

import pytest

from tests.engines import ScriptedEngine, scripted
from tests.harness import MODEL, gateway, hello

pytestmark = pytest.mark.anyio


async def looked_at(engine: ScriptedEngine) -> None:
    """Waits until what the engine says of itself now was read: a second look from here on begins after that."""
    seen = engine.paths["GET /metrics"]
    await engine.until(lambda: engine.paths["GET /metrics"] >= seen + 2)


async def test_calls_are_spread_evenly_over_replicas_that_are_alike() -> None:
    """Each goes where fewest are in flight."""
    async with (
        scripted("a", "b", "c") as engines,
        gateway({name: engine.url for name, engine in engines.items()}) as harness,
        asyncio.TaskGroup() as group,
    ):
        for engine in engines.values():
            engine.holds()
        for _ in range(9):
            group.create_task(harness.post())
        for name, engine in engines.items():
            await engine.saw(3)
            assert harness.replica(name).in_flight == 3
            assert harness.metric("pagegate_replica_in_flight", replica=name) == 3
        for engine in engines.values():
            engine.release()


async def test_a_replica_that_others_keep_busy_is_avoided() -> None:
    """What an engine reports counts, not only what this gateway sent there."""
    async with (
        scripted("a", "b") as engines,
        gateway({name: engine.url for name, engine in engines.items()}) as harness,
    ):
        engines["a"].busy(running=4, waiting=2)
        await looked_at(engines["a"])
        replies = [await harness.post() for _ in range(5)]
        assert [reply.header("x-pagegate-replica") for reply in replies] == ["b"] * 5
        engines["a"].busy(running=0)
        engines["b"].busy(running=1)
        await looked_at(engines["a"])
        await looked_at(engines["b"])
        assert (await harness.post()).header("x-pagegate-replica") == "a"


async def test_a_replica_with_a_full_cache_is_avoided() -> None:
    """Where no KV cache is free, a call would only push another one out."""
    async with (
        scripted("a", "b") as engines,
        gateway({name: engine.url for name, engine in engines.items()}) as harness,
    ):
        engines["b"].busy(running=0, kv_usage=0.97)
        await looked_at(engines["b"])
        replies = [await harness.post() for _ in range(5)]
        assert [reply.header("x-pagegate-replica") for reply in replies] == ["a"] * 5
        assert harness.metric("pagegate_replica_kv_usage", replica="b") == 0.97


async def test_a_call_goes_to_the_pool_of_its_model() -> None:
    """Pools do not mix."""
    async with scripted("a") as small, scripted("b", model="large") as large:
        models = [
            {"name": MODEL, "replicas": [{"name": "a", "url": small["a"].url}]},
            {"name": "large", "replicas": [{"name": "b", "url": large["b"].url}]},
        ]
        async with gateway({}, models=models) as harness:
            for model, replica in ((MODEL, "a"), ("large", "b"), ("large", "b")):
                reply = await harness.post(hello() | {"model": model})
                assert reply.header("x-pagegate-replica") == replica


async def test_a_model_without_a_replica_is_answered_503() -> None:
    """It exists, so the caller did nothing wrong."""
    async with gateway({}) as harness:
        reply = await harness.post()
    assert (reply.status, reply.json["error"]["code"]) == (503, "server_is_overloaded")
    assert reply.header("retry-after") == "1"
    assert harness.calls[0]["error"] == "NoReplica"
