"""Limits that many gateways share through a real Redis: counted exactly, whatever happens to Redis or to gateways."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from gateway.admission import shared as shared_module
from gateway.admission.limits import LocalLimits, Reservation
from gateway.admission.quotas import Demand, Kind, Quota, Standing, Unit
from gateway.admission.scripts import CALENDAR
from gateway.admission.shared import SharedLimits
from gateway.errors import BudgetSpent, LimitReached, LimitsUnavailable
from gateway.redis import Away, Redis
from gateway.settings import OnLoss, RedisSettings
from tests.limit_racer import Racer
from tests.redis_server import RedisServer, Story
from tests.unit.limits_by_hand import Hand, budget, rate, slots

pytestmark = pytest.mark.anyio

PATIENCE_S = 30.0
# Rates that give nothing back while a test runs.
STILL_S = 1e9
ONE = Demand(1, 1, 1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


@dataclass
class Member:
    """One of the gateways, with what it told of Redis."""

    limits: SharedLimits
    redis: Redis
    story: Story
    taken: int = 0

    async def take(self, quotas: tuple[Quota, ...], demand: Demand = ONE, lease: str = "") -> Reservation:
        self.taken += 1
        return await self.limits.reserve(quotas, demand, lease or f"{self.limits!r} {self.taken}")

    async def storm(self, calls: int, quotas: tuple[Quota, ...], demand: Demand = ONE) -> list[Reservation]:
        """So many calls at once; what those hold that were admitted. Whatever is no refusal is an error."""

        async def call() -> Reservation | None:
            try:
                return await self.take(quotas, demand)
            except LimitReached:
                return None

        held = await asyncio.gather(*(call() for _ in range(calls)))
        return [each for each in held if each is not None]

    async def caught_up(self) -> None:
        """Whatever was told to Redis before this has been executed there."""
        await self.redis.ask(shared_module.PING)


@asynccontextmanager
async def gateway(
    url: str,
    name: str = "a",
    *,
    timeout_s: float = 1.0,
    retry_s: float = 0.02,
    lease_s: float = 3600.0,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> AsyncIterator[Member]:
    settings = RedisSettings(url=SecretStr(url), timeout_s=timeout_s, retry_s=retry_s, lease_s=lease_s)
    story = Story()
    async with Redis(settings, random.Random(name)) as redis:
        limits = SharedLimits(redis, settings, LocalLimits(clock, wall), name, clock, story)
        async with limits:
            yield Member(limits, redis, story)


async def until(fact: Callable[[], bool]) -> None:
    """Asks until it is so."""
    ends_s = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < ends_s, "it never was so"
        await asyncio.sleep(0.005)


def held(server: RedisServer, quota: Quota) -> object:
    """How many leases of a quota there are."""
    return server.do("ZCARD", f"{{pagegate}}:{quota.id}")


def left(standings: tuple[Standing, ...], quotas: tuple[Quota, ...]) -> list[int]:
    """What is left of each of the quotas."""
    found = {standing.quota: standing.left for standing in standings}
    return [found[quota] for quota in quotas]


def still(size: int, unit: Unit = Unit.TOKENS, owner: str = "tenant t") -> Quota:
    """A rate that gives nothing back while a test runs."""
    return rate(size, unit, owner=owner, period_s=STILL_S)


# Counted exactly


@pytest.mark.parametrize(
    ("quotas", "demand", "admitted"),
    [
        pytest.param((still(137, Unit.REQUESTS),), ONE, 137, id="requests"),
        pytest.param((still(1000),), Demand(1, 7), 142, id="tokens"),
        pytest.param((slots(61),), ONE, 61, id="calls"),
        pytest.param((budget(999),), Demand(1, 10), 99, id="tokens a day"),
        pytest.param((budget(10**9, Kind.MONTH, Unit.COST),), Demand(1, 0, 10**7 + 1), 99, id="cost a month"),
        pytest.param((still(500, Unit.REQUESTS), still(700), slots(90), budget(640)), Demand(1, 7), 90, id="of all"),
    ],
)
async def test_processes_that_race_are_admitted_exactly_as_often_as_the_limit_says(
    server: RedisServer, quotas: tuple[Quota, ...], demand: Demand, admitted: int
) -> None:
    """Three processes with 400 calls each, all at the same moment."""
    async with AsyncExitStack() as up:
        racers = [
            await up.enter_async_context(Racer(server.socket_url, f"racer-{n}", 400, quotas, demand)) for n in range(3)
        ]
        counts = await asyncio.gather(*(racer.admitted() for racer in racers))
        assert sum(counts) == admitted


async def test_gateways_share_every_kind_of_quota(server: RedisServer) -> None:
    """What one took, the other one lacks, and what it gives back, the other one has."""
    quotas = (still(10), still(5, Unit.REQUESTS), slots(3), budget(10, unit=Unit.COST))
    async with gateway(server.url, "a") as one, gateway(server.socket_url, "b") as other:
        first = await one.take(quotas, Demand(1, 4, 2))
        second = await other.take(quotas, Demand(2, 4, 2))
        assert left(second.standings, quotas) == [2, 2, 1, 6]
        with pytest.raises(LimitReached, match="10 tokens per day"):
            await one.take(quotas, Demand(1, 3))
        one.limits.settle(first, Demand(0, 3, -6))
        await one.caught_up()
        with pytest.raises(BudgetSpent, match="budget cost per day"):
            await other.take(quotas, Demand(1, 3, 1))
        assert left((await other.take(quotas, Demand(1, 5))).standings, quotas) == [0, 1, 1, 0]
        assert repr(one.limits) == "<SharedLimits 1 gateways, 0 leases>"
        assert repr(other.limits) == "<SharedLimits 2 gateways, 2 leases>"


async def test_a_refused_call_takes_nothing_and_is_told_the_longest_wait(server: RedisServer) -> None:
    """All of its quotas or none, and Redis' own clock says when to come back."""
    quotas = (rate(60), slots(2), rate(10, Unit.REQUESTS), budget(60))
    async with gateway(server.url) as member:
        await member.take(quotas, Demand(1, 50))
        for _ in range(3):
            with pytest.raises(LimitReached) as caught:
                await member.take(quotas[:3], Demand(1, 30))
            assert caught.value.limit == "tokens_per_minute"
            assert caught.value.retry_after_s == pytest.approx(20, abs=1)
        with pytest.raises(BudgetSpent) as spent:
            await member.take(quotas, Demand(1, 30))
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0) + timedelta(days=1)
        expected_s = (midnight - datetime.now(UTC)).total_seconds() % 86400
        assert spent.value.retry_after_s == pytest.approx(expected_s, abs=PATIENCE_S)
        with pytest.raises(LimitReached) as never:
            await member.take(quotas, Demand(1, 61))
        assert never.value.retry_after_s is None
        assert held(server, quotas[1]) == 1
        assert left(member.limits.standings(quotas), quotas)[1:] == [1, 9, 10]


async def test_a_rate_comes_back_by_the_clock_of_redis(server: RedisServer) -> None:
    """And a caller who waits as long as he was told is admitted."""
    quota = (rate(1000, period_s=1.0),)
    async with gateway(server.url) as member:
        await member.take(quota, Demand(1, 1000))
        with pytest.raises(LimitReached) as caught:
            await member.take(quota, Demand(1, 100))
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s <= 0.1
        await asyncio.sleep(caught.value.retry_after_s + 0.001)
        await member.take(quota, Demand(1, 100))


async def test_a_call_without_quotas_asks_nobody(server: RedisServer) -> None:
    """There is nothing to ask."""
    async with gateway(server.url, timeout_s=0.02) as member:
        server.stop()
        reservation = await member.take(())
        member.limits.settle(reservation, ONE)
        assert reservation.standings == member.limits.standings(()) == ()
        assert repr(member.redis).endswith(", 0 waiting>")


async def test_a_settlement_that_changes_nothing_is_not_sent(server: RedisServer) -> None:
    """A call that used what it was thought to use."""
    async with gateway(server.url) as member:
        reservation = await member.take((still(10),))
        member.limits.settle(reservation, Demand(0, 0))
        assert repr(member.redis).endswith(", 0 waiting>")


@pytest.mark.parametrize("hours", [1, -1, 24 * 40])
async def test_the_clock_of_a_gateway_matters_to_nobody(server: RedisServer, hours: int) -> None:
    """An hour ahead, an hour behind, or in another month: windows and leases are Redis' alone."""
    quotas = (rate(60), slots(4), budget(40), budget(41, Kind.MONTH, Unit.COST))
    off_s = hours * 3600.0
    async with (
        gateway(server.url, "right") as right,
        gateway(server.url, "wrong", clock=lambda: time.monotonic() + off_s, wall=lambda: time.time() + off_s) as wrong,
    ):
        one = await right.take(quotas, Demand(1, 10, 10))
        other = await wrong.take(quotas, Demand(1, 10, 10))
        assert one.day == other.day
        assert left(other.standings, quotas) == [40, 2, 20, 21]
        wrong.limits.settle(other, Demand(1, 5, 5))
        await wrong.caught_up()
        assert left((await right.take(quotas, Demand(1, 0))).standings, quotas) == [45, 2, 25, 26]


@pytest.mark.parametrize(("begun", "left"), [(0, 100 - 30), (1, 100 - 80 + 50)])
async def test_a_call_counts_in_the_window_in_which_it_ends(server: RedisServer, begun: int, left: int) -> None:
    """As in the records of usage: of one that began yesterday, all that it used; of today's, what it gives back."""
    quota = (budget(100),)
    async with gateway(server.url) as member:
        reservation = await member.take(quota, Demand(1, 80))
        if begun == 0:
            server.do("DEL", f"{{pagegate}}:{quota[0].id}")
            reservation.day -= 1
        member.limits.settle(reservation, Demand(0, 50))
        await member.caught_up()
        assert (await member.take(quota, Demand(1, 0))).standings[0].left == left


async def test_what_a_database_knows_is_never_lowered(server: RedisServer) -> None:
    """Of the window that Redis is in, and of no other."""
    day, month = quotas = (budget(100), budget(1000, Kind.MONTH))
    async with gateway(server.url) as member:
        today = (await member.take(quotas, Demand(1, 20))).day

        async def remaining() -> list[int]:
            await until(lambda: not member.limits._seeds)
            return left((await member.take(quotas, Demand(1, 0))).standings, quotas)

        member.limits.seed(day.id, today, 10)
        member.limits.seed(month.id, today // 100, 300)
        assert await remaining() == [80, 700]
        member.limits.seed(day.id, today - 1, 99)
        member.limits.seed(month.id, today // 100 + 1, 999)
        assert await remaining() == [80, 700]
        member.limits.seed(day.id, today, 35)
        assert await remaining() == [65, 700]
        # More comes while the last is on its way.
        for used in range(36, 61):
            member.limits.seed(day.id, today, used)
            await asyncio.sleep(0)
        assert await remaining() == [40, 700]
        server.do("FLUSHALL")
        for n in range(250):
            member.limits.seed(f"tenant {n}/budget/tokens/day", today, n + 1)
        member.limits.seed(day.id, today, 36)
        assert await remaining() == [64, 1000]
        assert server.do("DBSIZE") == 250 + 1 + 1 + 0 or server.do("DBSIZE") == 250 + 1 + 2


# Leases


async def test_leases_live_as_long_as_their_gateway_says_so(server: RedisServer) -> None:
    """A heartbeat puts off their end, in batches; one that is settled meanwhile stays away."""
    quotas = (slots(1000), slots(1000, owner="tenant t"))
    async with gateway(server.url, lease_s=1) as member:
        reservations = await member.storm(500, quotas)

        def ends() -> list[bytes]:
            found = server.do("ZRANGE", f"{{pagegate}}:{quotas[0].id}", 0, -1, "WITHSCORES")
            assert isinstance(found, list)
            return found[1::2]

        last = max(map(float, ends()))
        await until(lambda: min(map(float, ends())) > last)
        assert held(server, quotas[1]) == 500
        for reservation in reservations[:300]:
            member.limits.settle(reservation, Demand(0, 0))
        await member.limits._catch_up()
        assert held(server, quotas[0]) == held(server, quotas[1]) == 200


async def test_what_a_killed_gateway_held_comes_back(server: RedisServer) -> None:
    """After kill -9 with 49 leases: not before they have expired, and then all of them; others' are kept."""
    quotas = (slots(50),)
    async with gateway(server.url, lease_s=1) as member:
        await member.take(quotas)
        async with Racer(server.socket_url, "racer", 60, quotas, ONE, lease_s=1) as racer:
            assert await racer.admitted() == 49
            await member.limits._catch_up()
            assert member.limits.gateways == 2
            await racer.kill()
            with pytest.raises(LimitReached):
                await member.take(quotas)
        begun_s = time.monotonic()
        while not (admitted := await member.storm(1, quotas)):
            assert time.monotonic() - begun_s < PATIENCE_S
            await asyncio.sleep(0.02)
        admitted += await member.storm(60, quotas)
        assert len(admitted) == 49
        await member.limits._catch_up()
        assert member.limits.gateways == 1


async def test_gateways_know_how_many_they_are(server: RedisServer) -> None:
    """They sign on when they come, and off when they go."""
    async with gateway(server.url, "a") as one:
        async with gateway(server.url, "b") as two, gateway(server.url, "c") as three:
            assert three.limits.gateways == 3
            await one.limits._catch_up()
            assert (one.limits.gateways, two.limits.gateways) == (3, 2)
        await one.limits._catch_up()
        assert one.limits.gateways == 1


async def test_a_caller_who_leaves_while_he_is_reserved_for_holds_nothing(server: RedisServer) -> None:
    """Cancelled before, while and after Redis decides: what it took comes back."""
    quotas = (slots(10_000), still(10_000), budget(10_000))
    rng = random.Random(1)
    async with gateway(server.url) as member:
        for _ in range(30):
            tasks = [asyncio.create_task(member.take(quotas)) for _ in range(50)]
            for _ in range(rng.randrange(5)):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Reservation):
                    member.limits.settle(result, ONE)
            await member.caught_up()
        await member.caught_up()
        assert held(server, quotas[0]) == 0
        assert left((await member.take(quotas)).standings, quotas) == [9999] * 3


# Redis forgets, stops, dies, is full, is another


async def test_scripts_that_are_flushed_under_load_change_no_count(server: RedisServer) -> None:
    """The command that met it is repeated once, with the text."""
    quotas = (still(300, Unit.REQUESTS), slots(310))
    async with gateway(server.url) as member:

        async def flush() -> None:
            for _ in range(20):
                server.do("SCRIPT", "FLUSH")
                await asyncio.sleep(0)

        async def calls() -> int:
            return sum([len(await member.storm(20, quotas)) for _ in range(20)])

        admitted, _ = await asyncio.gather(calls(), flush())
        assert admitted == 300
        assert member.story.told == []


async def test_after_everything_was_flushed_leases_are_there_again_and_nothing_is_negative(
    server: RedisServer,
) -> None:
    """A heartbeat puts back what runs; what was taken before the flush gives nothing to those who come after it."""
    quotas = (slots(10), still(100), budget(100))
    async with gateway(server.url, lease_s=1) as member:
        first = await member.storm(6, quotas, Demand(1, 10))
        server.do("FLUSHALL")
        await until(lambda: held(server, quotas[0]) == 6)
        assert len(await member.storm(20, quotas, Demand(1, 10))) == 4
        for reservation in first:
            member.limits.settle(reservation, Demand(0, 10))
        await member.caught_up()
        # Forty were taken after the flush, sixty before it are given back: all is there, and not more than all.
        assert held(server, quotas[0]) == 4
        assert left(member.limits.standings(quotas), quotas) == [0, 60, 60]
        assert left((await member.take(quotas, Demand(0, 0))).standings, quotas) == [5, 100, 100]
        assert member.story.told == []


@pytest.mark.parametrize("how", ["SIGSTOP", "CLIENT PAUSE"])
async def test_a_redis_that_stands_still_delays_a_call_once_and_counts_right_afterwards(
    server: RedisServer, how: str
) -> None:
    """The calls that meet it wait for the time limit; then shares are used, until it answers; nothing is left over."""
    quotas = (slots(40), still(400))
    async with gateway(server.url, "a", timeout_s=0.05) as member, gateway(server.url, "b") as other:
        await member.limits._catch_up()
        before = await member.take(quotas)
        if how == "SIGSTOP":
            server.stop()
        else:
            server.do("CLIENT", "PAUSE", 700)
        begun_s = time.monotonic()
        local = await member.storm(100, quotas)
        assert time.monotonic() - begun_s < 5
        assert len(local) == 20, "half of the slots: there are two gateways"
        assert not any(each.shared for each in local)
        assert member.story.told == ["no answer within 50 ms"]
        assert repr(member.limits) == "<SharedLimits away (no answer within 50 ms), 2 gateways, 1 leases>"
        begun_s = time.monotonic()
        assert await member.storm(1000, quotas) == []
        assert time.monotonic() - begun_s < 2, "nobody waits any more"
        member.limits.settle(before, ONE)
        assert repr(member.limits).endswith(", 1 owed>")
        for each in local[:5]:
            member.limits.settle(each, ONE)
        server.resume()
        await member.story.until(away=False)
        assert member.story.told == ["no answer within 50 ms", None]
        # What Redis decided too late has been given back, and what was owed to it paid.
        await until(lambda: held(server, quotas[0]) == 0)
        await member.caught_up()
        assert left((await other.take(quotas, Demand(0, 0))).standings, quotas) == [39, 400]
        for each in local[5:]:
            member.limits.settle(each, ONE)
        assert (await member.take(quotas)).shared


async def test_a_redis_that_is_killed_under_load_and_started_again(server: RedisServer) -> None:
    """No call fails for it, and none waits; what was reserved before is settled after, into nothing."""
    quotas = (slots(1000), still(10_000, Unit.REQUESTS), budget(10_000))
    async with gateway(server.url, lease_s=1) as member:
        before = await member.storm(100, quotas)
        running = [asyncio.create_task(member.storm(50, quotas)) for _ in range(4)]
        await asyncio.sleep(0)
        server.kill()
        during = [each for wave in await asyncio.gather(*running) for each in wave]
        assert len(during) == 200
        await member.story.until(away=True)
        assert not (await member.take(quotas)).shared
        server.start()
        await member.story.until(away=False)
        await until(lambda: held(server, quotas[0]) == len([each for each in (*before, *during) if each.shared]))
        for each in (*before, *during):
            member.limits.settle(each, ONE)
        await member.caught_up()
        assert held(server, quotas[0]) == 0
        assert left((await member.take(quotas, Demand(0, 0))).standings, quotas) == [999, 10_000, 10_000]
        assert member.story.told == ["the connection was lost", None]


async def test_a_redis_whose_memory_is_full_is_away_until_it_has_room(tmp_path: Path) -> None:
    """Nothing is taken by half, and what ends meanwhile is given back."""
    quotas = (slots(10), still(100), budget(100))
    with RedisServer(tmp_path, maxmemory="1mb", maxmemory_policy="noeviction") as server:
        server.do("CONFIG", "SET", "maxmemory", "2mb")
        async with gateway(server.url) as member:
            first, second = await member.storm(2, quotas, Demand(1, 10))
            ballast = 0
            while server.do("SET", f"ballast-{ballast}", "x" * 10_000) == b"OK":
                ballast += 1
            server.do("CONFIG", "SET", "maxmemory", "1mb")
            assert not (await member.take(quotas, Demand(1, 10))).shared
            assert member.story.told == ["its memory is full"]
            member.limits.settle(first, Demand(0, 10))
            server.do("DEL", *(f"ballast-{n}" for n in range(ballast)))
            server.do("CONFIG", "SET", "maxmemory", "3mb")
            await member.story.until(away=False)
            await until(lambda: held(server, quotas[0]) == 1)
            member.limits.settle(second, Demand(0, 0))
            await member.caught_up()
            assert left((await member.take(quotas, Demand(0, 0))).standings, quotas) == [9, 90, 90]


async def test_a_replica_that_is_promoted_goes_on_where_its_master_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old master becomes a replica and says so; the name leads to the new one, which knows what was used."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with RedisServer(tmp_path / "a") as old, RedisServer(tmp_path / "b") as new:
        leads_to = old

        async def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
            return [(2, 1, 6, "", ("127.0.0.1", leads_to.port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        new.do("REPLICAOF", "127.0.0.1", old.port)
        await until(lambda: b"master_link_status:up" in new.told("INFO", "replication"))
        quotas = (still(100, Unit.REQUESTS), slots(80))
        async with gateway("redis://redis.example") as member:
            assert len(await member.storm(60, quotas)) == 60
            await until(lambda: held(new, quotas[1]) == 60)
            new.do("REPLICAOF", "NO", "ONE")
            leads_to = new
            old.do("REPLICAOF", "127.0.0.1", new.port)
            during = await member.take(quotas)
            assert not during.shared
            assert member.story.told == ["it is a replica"]
            await member.story.until(away=False)
            assert len(await member.storm(60, quotas)) == 20
            assert held(new, quotas[1]) == 80


async def test_a_wrong_password_leaves_each_gateway_its_share(tmp_path: Path) -> None:
    """It is told once, and told nowhere what it was."""
    with RedisServer(tmp_path, requirepass="right-secret") as server:
        async with gateway(f"redis://:wrong-secret@127.0.0.1:{server.port}") as member:
            assert member.story.told == ["wrong user or password"]
            assert len(await member.storm(20, (slots(7),))) == 7
            assert repr(member.limits) == "<SharedLimits away (wrong user or password), 1 gateways, 0 leases>"
            assert "secret" not in repr(member)
            server.do("CONFIG", "SET", "requirepass", "wrong-secret")
            await member.story.until(away=False)


async def test_a_key_that_is_not_ours_is_no_reason_to_fail(server: RedisServer) -> None:
    """Something else of that name: the calls are decided here, and it is told."""
    quotas = (slots(3),)
    server.do("SET", f"{{pagegate}}:{quotas[0].id}", "not a set of leases")
    async with gateway(server.url, retry_s=5) as member:
        assert len(await member.storm(10, quotas)) == 3
        assert member.story.told == ["it answered with an error"]


@pytest.mark.parametrize(
    "reply", [b"+OK\r\n", b"*3\r\n:1\r\n:1\r\n:1\r\n", b"*4\r\n:1\r\n:1\r\n:1\r\n$1\r\n1\r\n", b"$-1\r\n"]
)
async def test_a_reply_that_our_script_does_not_give_decides_nothing(server: RedisServer, reply: bytes) -> None:
    """The call is decided here."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(reply)
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening, gateway(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}") as member:
        assert not (await member.take((slots(3),))).shared
        assert repr(member.limits) == "<SharedLimits 1 gateways, 0 leases>"


# While it is away


async def test_a_quota_that_must_not_be_shared_out_refuses(server: RedisServer) -> None:
    """`on_loss: refuse`: rather no call than one too many; nothing is taken from the others."""
    lenient = slots(3)
    strict = still(100)._replace(on_loss=OnLoss.REFUSE)
    async with gateway(server.url, timeout_s=0.05) as member:
        assert (await member.take((lenient, strict))).shared
        server.stop()
        for _ in range(5):
            with pytest.raises(LimitsUnavailable) as caught:
                await member.take((lenient, strict))
            assert caught.value.retry_after_s == 1.0
        assert len(await member.storm(10, (lenient,))) == 3


async def test_a_call_larger_than_a_share_is_told_to_come_back(server: RedisServer) -> None:
    """It fits the limit, though not our part of it; one that never fits is told so."""
    quotas = (still(100),)
    async with gateway(server.url, "a", timeout_s=0.05) as member, gateway(server.url, "b"):
        await member.limits._catch_up()
        server.stop()
        with pytest.raises(LimitsUnavailable):
            await member.take(quotas, Demand(1, 60))
        with pytest.raises(LimitReached) as never:
            await member.take(quotas, Demand(1, 101))
        assert never.value.retry_after_s is None
        assert (await member.take(quotas, Demand(1, 50))).standings[0].left == 0
        assert member.limits.standings(quotas)[0].left == 0


async def test_budgets_go_on_from_what_was_known(server: RedisServer) -> None:
    """From the last reply or from the database: a lost Redis is no second budget."""
    known, told = (budget(100),), (budget(100, owner="tenant u"),)
    async with gateway(server.url, "a", timeout_s=0.05) as member, gateway(server.url, "b"):
        await member.limits._catch_up()
        today = (await member.take(known, Demand(1, 60))).day
        member.limits.seed(told[0].id, today, 60)
        server.stop()
        for quotas in (known, told):
            assert len(await member.storm(100, quotas)) == 20, "half of what was left"


async def test_settlements_that_wait_are_bounded(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are too many the oldest are lost, and counted."""
    monkeypatch.setattr(shared_module, "MOST_OWED", 10)
    quotas = (slots(100),)
    async with gateway(server.url, timeout_s=0.05) as member:
        reservations = await member.storm(30, quotas)
        server.stop()
        with pytest.raises(Away):
            await member.caught_up()
        for reservation in reservations:
            member.limits.settle(reservation, ONE)
        assert repr(member.limits).endswith(", 0 leases, 10 owed>")
        assert member.limits.lost == 20
        server.resume()
        await member.story.until(away=False)
        await until(lambda: held(server, quotas[0]) == 20)


# What is kept


async def test_whatever_is_in_redis_expires(server: RedisServer) -> None:
    """And bears one hash tag, so that a cluster keeps all that a call needs on one node."""
    quotas = (rate(60), rate(60, Unit.REQUESTS), slots(5), budget(60), budget(60, Kind.MONTH))
    async with gateway(server.url) as member:
        reservation = await member.take(quotas)

        def check(count: int) -> None:
            keys = server.keys()
            assert len(keys) == count
            for key in keys:
                assert key.startswith(b"{pagegate}:")
                ttl_ms = server.do("PTTL", key)
                assert isinstance(ttl_ms, int)
                assert 0 < ttl_ms <= 32 * 86_400_000

        check(5 + 2)
        member.limits.seed("tenant x/budget/tokens/day", reservation.day, 5)
        await until(lambda: not member.limits._seeds)
        check(5 + 2 + 1)
        server.do("FLUSHALL")
        await member.limits._catch_up()
        check(2)
        member.limits.settle(reservation, Demand(0, -5, -5))
        await member.caught_up()
        check(1 + 3)


async def test_a_cluster_keeps_all_that_a_call_needs_on_one_node(tmp_path: Path) -> None:
    """Its scripts may only touch keys of one slot, whoever their owners are."""
    quotas = (rate(60), still(60, owner="model m"), slots(5), budget(60), budget(60, Kind.MONTH))
    with RedisServer(tmp_path, cluster_enabled="yes") as server:
        server.do("CLUSTER", "ADDSLOTS", *range(16384))
        await until(lambda: b"cluster_state:ok" in server.told("CLUSTER", "INFO"))
        async with gateway(server.url) as member:
            assert len(await member.storm(20, quotas)) == 5
            assert member.story.told == []


async def test_owners_that_are_idle_leave_nothing(server: RedisServer) -> None:
    """Ten thousand of them, settled or not: Redis and this process are soon as empty as before."""
    async with gateway(server.url, lease_s=1) as member:
        for first in range(0, 10_000, 500):
            owners = [f"key {n}" for n in range(first, first + 500)]
            reservations = await asyncio.gather(
                *(member.take((rate(10, owner=owner, period_s=1), slots(3, owner=owner))) for owner in owners)
            )
            for reservation in reservations:
                member.limits.settle(reservation, Demand(0, -1))
        await until(lambda: server.do("DBSIZE") in (1, 2))
        assert repr(member.limits) == "<SharedLimits 1 gateways, 0 leases>"


async def test_what_is_worked_out_for_quotas_is_bounded(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was forgotten is worked out again, also to settle with."""
    monkeypatch.setattr(shared_module, "MOST_PLANS", 3)
    async with gateway(server.url) as member:
        reservations = [await member.take((slots(3, owner=f"key {n}"),)) for n in range(20)]
        assert len(member.limits._plans) == 3
        for reservation in reservations:
            member.limits.settle(reservation, ONE)
            member.limits.settle(reservation, ONE)
        await member.caught_up()
        assert server.keys() == [b"{pagegate}:gateways", b"{pagegate}:probe"]


async def test_standings_are_what_was_said_last_and_drained_since(server: RedisServer) -> None:
    """For the headers of a refusal nobody is asked anew."""
    now_s = 1000.0
    quotas = (rate(60), slots(3), budget(100))
    async with gateway(server.url, clock=lambda: now_s) as member:
        assert left(member.limits.standings(quotas), quotas) == [60, 3, 100]
        await member.take(quotas, Demand(1, 30))
        assert left(member.limits.standings(quotas), quotas) == [30, 2, 70]
        now_s += 10
        assert member.limits.standings(quotas)[0].left == 40


# The same arithmetic


@hypothesis_settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(0, 4_102_444_800), min_size=50, max_size=50))
def test_redis_reckons_the_same_calendar(tmp_path_factory: pytest.TempPathFactory, moments: list[int]) -> None:
    """Days and months of any second from 1970 to 2100."""
    script = CALENDAR + "local out = {} for i, s in ipairs(ARGV) do out[i] = {stamps(tonumber(s))} end return out"
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        edges = [moment - moment % 86400 for moment in moments] + [moment - moment % 86400 - 1 for moment in moments]
        seconds = [max(0, each) for each in (*moments, *edges)]
        found = server.do("EVAL", script, 0, *seconds)
    expected = [datetime.fromtimestamp(each, UTC) for each in seconds]
    assert found == [[int(f"{at:%Y%m%d}"), int(f"{at:%Y%m}")] for at in expected]


walks = st.lists(
    st.tuples(
        st.sampled_from([(0,), (1,), (0, 1, 2, 3), (2,), (3, 4), (0, 4), (0, 1, 2, 3, 4)]),
        st.integers(0, 3),
        st.integers(0, 40),
        st.integers(0, 40),
        st.one_of(st.none(), st.tuples(st.integers(0, 1), st.integers(-30, 40), st.integers(-30, 40))),
    ),
    max_size=30,
)


@hypothesis_settings(deadline=None, max_examples=150)
@given(walks)
def test_both_limiters_decide_alike(tmp_path_factory: pytest.TempPathFactory, walk: list[Any]) -> None:
    """Whatever is reserved and settled, in this process or in Redis: the same verdicts, words and standings."""
    every = (
        still(100),
        still(9, Unit.REQUESTS),
        slots(4),
        budget(150),
        budget(120, Kind.MONTH, Unit.COST),
    )
    subsets: dict[tuple[int, ...], tuple[Quota, ...]] = {}

    async def main(url: str) -> None:
        hand = Hand()
        async with gateway(url) as member:
            hand.wall_s = time.time()
            open_calls = list[tuple[Reservation, Reservation]]()
            for indices, requests, tokens, cost, settled in walk:
                quotas = subsets.setdefault(indices, tuple(every[index] for index in indices))
                demand = Demand(requests, tokens, cost)
                here = await outcome(partial(hand.limits.reserve, quotas, demand, "lease"))
                there = await outcome(partial(member.take, quotas, demand))
                assert story(here) == story(there)
                if isinstance(here, Reservation) and isinstance(there, Reservation):
                    open_calls.append((here, there))
                if settled is not None and open_calls:
                    local, remote = open_calls.pop(0)
                    hand.limits.settle(local, Demand(*settled))
                    member.limits.settle(remote, Demand(*settled))

    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        asyncio.run(main(server.socket_url))


async def outcome(reserve: Callable[[], Any]) -> Reservation | LimitReached:
    try:
        reservation: Reservation = await reserve()
    except LimitReached as refused:
        return refused
    return reservation


def story(result: Reservation | LimitReached) -> object:
    """What two limiters must agree on; their clocks differ by a little."""
    if isinstance(result, LimitReached):
        return type(result), str(result)
    return {standing.quota: standing.left for standing in result.standings}
