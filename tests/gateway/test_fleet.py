"""The health of replicas, as probes and calls show it."""

import time

import pytest

from gateway.fleet.capacity import room
from gateway.fleet.fleet import Fleet, Looking
from gateway.fleet.replica import Blame, Load, Replica
from gateway.fleet.scrape import Served
from gateway.http1 import Address
from gateway.settings import FleetSettings, ModelSettings, QueueSettings
from tests.engines import scripted
from tests.harness import gateway
from tests.wire_client import WireReply

pytestmark = pytest.mark.anyio


def served_by(reply: WireReply) -> tuple[int, str | None]:
    return reply.status, reply.header("x-pagegate-replica")


async def test_a_replica_that_is_unhealthy_gets_no_calls_until_it_is_well_again() -> None:
    """Two failed probes take it out, one good one brings it back; both are logged with the reason."""
    async with (
        scripted("a", "b") as engines,
        gateway({name: engine.url for name, engine in engines.items()}) as harness,
    ):
        engines["a"].health_is(503)
        await harness.until_down("a")
        assert [served_by(await harness.post()) for _ in range(4)] == [(200, "b")] * 4
        (down,) = harness.log.named("replica_down")
        assert (down["replica"], down["why"], down["level"]) == ("a", "/health answered 503", "warning")
        assert harness.metric("pagegate_replica_up", replica="a") == 0
        engines["a"].health_is(200)
        await harness.until_up()
        engines["b"].health_is(500)
        await harness.until_down("b")
        assert served_by(await harness.post()) == (200, "a")
        assert repr(harness.serving.gateway.pipeline.fleet) == "<Fleet tiny: a up, b down>"


async def test_one_bad_probe_takes_nobody_out() -> None:
    """Probes get lost; `failures_to_down` in a row count."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, fleet={"failures_to_down": 3}) as harness,
    ):
        engine = engines["a"]
        for _ in range(3):
            engine.fails_with(500, calls=2, on="/health")
            seen = engine.paths["GET /health"]
            await engine.until(lambda seen=seen: engine.paths["GET /health"] >= seen + 5)  # type: ignore[misc]
        assert harness.log.named("replica_down") == []


async def test_failing_calls_make_no_storm_of_probes() -> None:
    """A fault brings the next probe forward, but never to less than a tenth of the usual pause after the last one."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, fleet={"probe_interval_s": 100}) as harness,
    ):
        engines["a"].fails_with(500)
        for _ in range(20):
            assert (await harness.post()).status == 503
        assert engines["a"].paths["GET /health"] == 1


async def test_an_engine_that_refuses_connections_is_down_at_once_and_up_when_it_is_back() -> None:
    """A call finds out before any probe does; nobody waits for a second one."""
    async with (
        scripted("a", "b") as engines,
        gateway({name: engine.url for name, engine in engines.items()}, fleet={"probe_interval_s": 30}) as harness,
    ):
        engines["a"].refuses_connections()
        engines["a"].closes_idle()
        await engines["a"].unconnected()
        replies = [await harness.post() for _ in range(6)]
        assert {served_by(reply) for reply in replies} == {(200, "b")}
        assert harness.metric("pagegate_attempts_total", replica="a", result="unreachable") <= 1
        assert repr(harness.replica("a")).startswith("<Replica a down")


async def test_an_engine_that_serves_another_model_gets_no_calls() -> None:
    """It may have been restarted between two probes: what it serves is asked for each time, and believed at once."""
    async with (
        scripted("a", "b") as engines,
        gateway({name: engine.url for name, engine in engines.items()}, fleet={"failures_to_down": 1000}) as harness,
    ):
        engines["a"].serves("another")
        await harness.until_down("a")
        assert [served_by(await harness.post()) for _ in range(3)] == [(200, "b")] * 3
        assert harness.log.named("replica_down")[0]["why"] == "serves another"
        assert len(engines["a"].calls) == 0
        engines["a"].serves("tiny")
        await harness.until_up()


async def test_a_gateway_starts_before_its_engines() -> None:
    """It is alive, not ready, and answers 503 until the first engine is there."""
    async with scripted("a") as engines:
        engines["a"].refuses_connections()
        async with gateway({"a": engines["a"].url}, wait=False) as harness:
            await harness.until_down("a")
            assert (await harness.get("/livez")).status == 200
            assert (await harness.get("/readyz")).status == 503
            assert (await harness.post()).status == 503
            await engines["a"].accepts_connections()
            await harness.until_up()
            assert (await harness.get("/readyz")).status == 200
            assert (await harness.post()).status == 200


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/v1/models", b"[]", "something else than a list of models"),
        ("/v1/models", b"<html>", "something else than a list of models"),
        ("/v1/models", b'{"data":[]}', "serves nothing"),
        ("/v1/models", b'{"data":[{"id":5},{"id":null},{"id":["tiny"]}]}', "serves nothing"),
        ("/v1/models", b'{"data":[{"id":5},{"id":"other"}]}', "serves other"),
        ("/v1/models", b"x" * (9 * 2**20), "answered without end"),
        ("/health", None, "gave no answer"),
    ],
)
async def test_what_cannot_be_understood_is_not_up(path: str, body: bytes | None, why: str) -> None:
    """An engine that says nothing sensible is none."""
    async with scripted("a") as engines:
        if body is None:
            engines["a"].holds(on=path)
        else:
            engines["a"].fails_with(200, body, on=path)
        patience = {"probe_timeout_s": 0.05 if body is None else 10}
        async with gateway({"a": engines["a"].url}, wait=False, fleet=patience) as harness:
            await harness.until_down("a")
            assert why in harness.replica("a").why_down


@pytest.mark.parametrize("body", [b"", b"garbage {{{", b"vllm:num_requests_running NaN\nvllm:kv_cache_usage_perc x\n"])
async def test_an_engine_without_metrics_is_one_of_which_less_is_known(body: bytes) -> None:
    """It is up, and its load is taken for none."""
    async with scripted("a") as engines:
        engines["a"].fails_with(200, body, on="/metrics", content_type="text/plain")
        async with gateway({"a": engines["a"].url}) as harness:
            assert (harness.replica("a").load.running, harness.replica("a").load.kv_usage) == (0, 0)
            assert (await harness.post()).status == 200


async def test_numbers_that_are_none_say_nothing_of_a_load() -> None:
    """Neither do they end the watching, of this engine or of others."""
    lines = (
        b"vllm:num_requests_running 1e999",
        b"vllm:num_requests_waiting -3",
        b"vllm:kv_cache_usage_perc .e.",
        b'vllm:num_requests_running{engine="1"} 4',
    )
    async with scripted("a") as engines:
        engines["a"].fails_with(200, b"\n".join(lines) + b"\n", on="/metrics")
        async with gateway({"a": engines["a"].url}) as harness:
            assert harness.replica("a").load == Load(running=4)


class Surprising:
    """Looks at engines, and meets something at one of them."""

    def __init__(self, look: Looking, where: Address) -> None:
        self._look = look
        self._where = where

    async def health(self, address: Address) -> None:
        if address == self._where:
            raise ZeroDivisionError
        await self._look.health(address)

    async def served(self, address: Address) -> Served:
        return await self._look.served(address)

    async def load(self, address: Address) -> Load:
        return await self._look.load(address)


async def test_what_nobody_thought_of_in_a_probe_ends_no_gateway() -> None:
    """The replica is out, says why, and is looked at again; the others are as they were."""
    async with (
        scripted("a", "b") as engines,
        gateway({name: engine.url for name, engine in engines.items()}) as harness,
    ):
        fleet = harness.serving.gateway.pipeline.fleet
        look = fleet._look
        fleet._look = Surprising(look, harness.replica("a").address)
        await harness.until_down("a")
        assert harness.replica("a").why_down == "its probes cannot be read (ZeroDivisionError)"
        assert served_by(await harness.post()) == (200, "b")
        fleet._look = look
        await harness.until_up()


class Told:
    """An engine that is well, and says of its load what it is told to say; `looks` counts how often it was asked."""

    def __init__(self) -> None:
        self.load_is = Load()
        self.looks = 0

    async def health(self, address: Address) -> None:
        self.looks += 1

    async def served(self, address: Address) -> Served:
        return Served(frozenset({"tiny"}), None)

    async def load(self, address: Address) -> Load:
        return self.load_is


def pool_of_one(look: Looking, probe_interval_s: float = 0.02, **model: object) -> tuple[Fleet, Replica]:
    settings = ModelSettings.model_validate(
        {"name": "tiny", "replicas": [{"name": "a", "url": "http://127.0.0.1:1"}], **model}
    )
    timing = FleetSettings(probe_interval_s=probe_interval_s)
    fleet = Fleet([settings], timing, look, lambda replica: None, lambda replica: None, time.monotonic)
    return fleet, fleet.snapshot().of("tiny")[0]


async def test_probes_teach_what_an_engine_can_run_and_what_others_have_there() -> None:
    """Whoever waits for room looks again after each probe."""
    engine = Told()
    fleet, replica = pool_of_one(engine)
    settings = QueueSettings()
    async with fleet:
        await fleet.until(lambda _: room(replica, settings) > 0)
        assert (replica.learnt, replica.of_others) == (None, 0)
        begun = [fleet.begun(replica) for _ in range(6)]
        engine.load_is = Load(running=8, waiting=2)
        await fleet.until(lambda _: replica.learnt == 8)
        assert (replica.of_others, room(replica, settings)) == (4, 0)
        for each in begun[:2]:
            fleet.ended(replica, each)
        assert room(replica, settings) == 1
        engine.load_is = Load(running=8)
        await fleet.until(lambda _: replica.learnt == 10)


async def test_what_the_settings_say_an_engine_runs_is_what_it_runs() -> None:
    """Whatever is seen of it."""
    engine = Told()
    engine.load_is = Load(running=3, waiting=9)
    fleet, replica = pool_of_one(engine, calls_per_replica=16)
    async with fleet:
        await fleet.until(lambda _: replica.of_others == 12)
        fleet.begun(replica)
        assert room(replica, QueueSettings()) == 18 - 12 - 1


async def test_an_engine_that_refuses_a_call_is_given_none_until_it_was_asked_again() -> None:
    """It is asked soon, and not only at the next regular probe."""
    engine = Told()
    fleet, replica = pool_of_one(engine, probe_interval_s=1.0)
    async with fleet:
        await fleet.until(lambda _: room(replica, QueueSettings()) > 0)
        fleet.failed(replica, Blame.BUSY, "it is full")
        assert room(replica, QueueSettings()) == 0
        looks = engine.looks
        fleet.failed(replica, Blame.SLOW, "it took its time")
        assert room(replica, QueueSettings()) == 0
        await fleet.until(lambda _: not replica.refused)
        assert engine.looks == looks + 1
        assert room(replica, QueueSettings()) > 0
