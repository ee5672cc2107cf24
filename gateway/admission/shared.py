"""The limiter of many gateways: the same quotas held exactly across processes and machines, through Redis.

A call is reserved in one round trip and settled without waiting. While Redis is away this gateway uses its share of
every quota by itself, or refuses where a quota says so. Owns the leases of this process, which it keeps alive there,
and the count of gateways. What is reckoned in Redis is `scripts.py`'s business, whether Redis can be relied on
`redis.py`'s.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import islice
from typing import NamedTuple, Self

from gateway.admission.limits import AMOUNT, LocalLimits, Reservation, refusal, worst
from gateway.admission.quotas import Demand, Kind, Quota, Standing
from gateway.admission.scripts import EXTEND, RESERVE, SEED, SETTLE
from gateway.admission.windows import month_of, window
from gateway.errors import LimitReached, LimitsUnavailable
from gateway.redis import Away, Redis, Reply, Script, Told, command, words
from gateway.settings import OnLoss, RedisSettings

# What is worked out for tuples of quotas is kept for so many of them.
MOST_PLANS = 20_000
# What Redis tells is used is rounded up to thousandths.
TOLD = 0.0011
# Settlements that wait for Redis to come back; of more, the oldest are lost.
MOST_OWED = 20_000
# One command puts so many things into Redis that nobody waits behind it for long.
BATCH = 100
PING = command("PING")


class _Found(NamedTuple):
    """What Redis said of a call: whether all fits, on which day and at what time there, and what is used now."""

    fits: bool
    day: int
    seconds: int
    used: tuple[float, ...]


class _Plan:
    """A tuple of quotas as Redis is asked for it: rates, then budgets, then slots."""

    __slots__ = ("calendar", "found", "found_s", "given", "ordered", "reserve", "settle", "shares", "slots", "strict")

    def __init__(self, quotas: tuple[Quota, ...], prefix: str, lease_ms: int) -> None:
        self.given = quotas
        rates = [quota for quota in quotas if quota.kind is Kind.RATE]
        budgets = [quota for quota in quotas if quota.kind in (Kind.DAY, Kind.MONTH)]
        slots = [quota for quota in quotas if quota.kind is Kind.SLOTS]
        self.ordered = (*rates, *budgets, *slots)
        self.calendar = tuple(budgets)
        self.slots = tuple(f"{prefix}{quota.id}" for quota in slots)
        self.strict = any(quota.on_loss is OnLoss.REFUSE for quota in quotas)
        self.shares = (1, quotas)
        self.found: _Found | None = None
        self.found_s = 0.0
        reckoned: list[object] = [lease_ms, len(rates), len(budgets)]
        for quota in rates:
            reckoned += (AMOUNT[quota.unit] + 1, quota.size, repr(quota.size / quota.period_s / 1e6))
        for quota in budgets:
            reckoned += (AMOUNT[quota.unit] + 1, quota.size, int(quota.kind is Kind.MONTH))
        reckoned += (quota.size for quota in slots)
        fixed = words(len(quotas), *(f"{prefix}{quota.id}" for quota in self.ordered), *reckoned)
        count = 3 + len(quotas) + len(reckoned)
        self.reserve = b"*%d\r\n%b%b" % (count + 4, RESERVE.by_hash, fixed)
        self.settle = b"*%d\r\n%b%b" % (count + 8, SETTLE.by_hash, fixed)

    def read(self, reply: Reply) -> _Found:
        """What a reply to `reserve` says. Raises Away where our script gives no such reply."""
        if (
            not isinstance(reply, list)
            or len(reply) != 3 + len(self.ordered)
            or not all(type(number) is int for number in reply)
        ):
            raise Away("it answered something else")
        used = (
            number / 1000 if quota.kind is Kind.RATE else number
            for quota, number in zip(self.ordered, reply[3:], strict=True)
        )
        return _Found(reply[0] == 1, reply[1], reply[2], tuple(used))

    def standings(self, found: _Found, passed_s: float) -> tuple[Standing, ...]:
        """How the quotas stand, some time after Redis said it."""
        return tuple(
            _standing(quota, used, passed_s, found.seconds)
            for quota, used in zip(self.ordered, found.used, strict=True)
        )

    def refusal(self, found: _Found, demand: Demand) -> LimitReached:
        return worst(
            refusal(quota, used, demand.of(quota.unit), _turns_in_s(quota.kind, found.seconds))
            for quota, used in zip(self.ordered, found.used, strict=True)
        )

    def shared_by(self, gateways: int) -> tuple[Quota, ...]:
        """Each gateway's part of the quotas; the same value while their number is the same."""
        if self.shares[0] != gateways:
            self.shares = (gateways, tuple(quota.share(gateways) for quota in self.given))
        return self.shares[1]


class SharedLimits:
    """Use as `async with`, inside the block of its `redis`. `<SharedLimits 2 gateways, 3 leases>`.

    `local` holds this gateway's shares while Redis is away. `note` is told when that begins, with the reason, and with
    None when it is over. `instance` names this gateway among the others. Pass the same tuple of quotas for calls that
    are alike: what is worked out for a tuple is kept.
    """

    def __init__(
        self,
        redis: Redis,
        settings: RedisSettings,
        local: LocalLimits,
        instance: str,
        clock: Callable[[], float],
        note: Told = lambda reason: None,
    ) -> None:
        self._redis = redis
        self._local = local
        self._instance = instance
        self._clock = clock
        self._note = note
        self._lease_s = settings.lease_s
        self._lease_ms = round(settings.lease_s * 1000)
        # One hash tag for all: quotas of any owners meet in a call, and a cluster runs a script on one node's keys.
        self._prefix = f"{{{settings.prefix}}}:"
        self._plans: dict[int, _Plan] = {}
        self._leases: dict[str, tuple[str, ...]] = {}
        self._owed = deque[bytes](maxlen=MOST_OWED)
        self._seeds: dict[str, tuple[int, int]] = {}
        self._wake = asyncio.Event()
        self.gateways = 1
        self.lost = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as up:
            up.callback(self._redis.watch(self._changed))
            if self._redis.away is not None:
                self._note(self._redis.away)
            up.push_async_callback(self._sign_off)
            await self._redis.load(RESERVE, SETTLE, EXTEND, SEED)
            await self._catch_up()
            group = await asyncio.TaskGroup().__aenter__()
            # Without the block's own error, which a group would wrap.
            up.push_async_callback(group.__aexit__, None, None, None)
            up.callback(group.create_task(self._keep_alive()).cancel)
            self._down = up.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._down.aclose()

    @property
    def away(self) -> bool:
        """Whether limits are not shared at present."""
        return self._redis.away is not None

    async def reserve(self, quotas: tuple[Quota, ...], demand: Demand, lease: str) -> Reservation:
        """Takes the demand from all quotas, or from none. Raises LimitReached, BudgetSpent, LimitsUnavailable.

        `lease` is unlike any other call's, in all gateways. Waits for Redis no longer than its `timeout_s`.
        """
        if not quotas:
            return Reservation(quotas, demand, (), lease, 0, True)
        plan = self._planned(quotas)
        requests, tokens, cost = demand
        try:
            reply = await self._redis.ask(
                plan.reserve + words(requests, tokens, cost, lease),
                RESERVE,
                partial(self._came_late, plan, demand, lease),
            )
            found = plan.read(reply)
        except Away:
            return await self._reserve_locally(plan, demand, lease)
        plan.found, plan.found_s = found, self._clock()
        if not found.fits:
            raise plan.refusal(found, demand)
        if plan.slots:
            self._leases[lease] = plan.slots
        return Reservation(quotas, demand, plan.standings(found, 0.0), lease, found.day, True)

    def settle(self, held: Reservation, back: Demand) -> None:
        """Gives back so much of what was reserved (less than nothing where more was used), and the slots. Once.

        It never waits. Where Redis is away it is made up for when it is back; of what was sent and not answered when
        the connection was lost, leases expire, rates drain, and budgets keep the estimate.
        """
        if not held.shared:
            self._local.settle(held, back)
        elif held.quotas and not held.settled:
            held.settled = True
            self._leases.pop(held.lease, None)
            plan = self._planned(held.quotas)
            if any(back) or plan.slots or plan.calendar:
                self._give_back(plan, held.demand, held.lease, held.day, back)

    def standings(self, quotas: tuple[Quota, ...]) -> tuple[Standing, ...]:
        """How the quotas stand as far as is known here: what Redis said last, and what has drained since."""
        plan = self._planned(quotas)
        if self.away:
            return self._local.standings(plan.shared_by(self.gateways))
        if plan.found is None:
            return tuple(Standing(quota, quota.size, 0.0) for quota in quotas)
        return plan.standings(plan.found, self._clock() - plan.found_s)

    def seed(self, quota_id: str, stamp: int, used: int) -> None:
        """So much of a budget is used in the window of this stamp at least; what is known is never lowered."""
        self._local.seed(quota_id, stamp, used // self.gateways)
        self._seeds[quota_id] = max((stamp, used), self._seeds.get(quota_id, (0, 0)))
        self._wake.set()

    # While Redis is away.

    async def _reserve_locally(self, plan: _Plan, demand: Demand, lease: str) -> Reservation:
        if plan.strict:
            raise LimitsUnavailable
        found, plan.found = plan.found, None
        if found is not None:
            for quota, used in zip(plan.ordered, found.used, strict=True):
                if quota.kind in (Kind.DAY, Kind.MONTH):
                    stamp = found.day if quota.kind is Kind.DAY else month_of(found.day)
                    self._local.seed(quota.id, stamp, int(used) // self.gateways)
        try:
            return await self._local.reserve(plan.shared_by(self.gateways), demand, lease)
        except LimitReached as refused:
            if refused.retry_after_s is None and all(demand.of(quota.unit) <= quota.size for quota in plan.given):
                # It is larger than our share alone.
                raise LimitsUnavailable from None
            raise

    def _changed(self, reason: str | None) -> None:
        self._note(reason)
        if reason is None:
            self._wake.set()

    # What goes to Redis beside the calls.

    def _came_late(self, plan: _Plan, demand: Demand, lease: str, reply: Reply) -> None:
        """A call was reserved that is not held to it: it was told otherwise, or left."""
        with suppress(Away):
            found = plan.read(reply)
            if found.fits:
                self._give_back(plan, demand, lease, found.day, demand)

    def _give_back(self, plan: _Plan, demand: Demand, lease: str, day: int, back: Demand) -> None:
        message = plan.settle + words(*back, day, *demand, lease)
        try:
            self._redis.tell(message, SETTLE)
        except Away:
            self.lost += len(self._owed) == MOST_OWED
            self._owed.append(message)

    async def _keep_alive(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease_s / 3):
                    await self._wake.wait()
            self._wake.clear()
            await self._catch_up()

    async def _catch_up(self) -> None:
        """Tells Redis what it must know of us, piece by piece, so that no call waits behind it for long."""
        with suppress(Away):
            await self._extend()
            while self._owed:
                for _ in range(min(BATCH, len(self._owed))):
                    self._redis.tell(self._owed[0], SETTLE)
                    self._owed.popleft()
                await self._redis.ask(PING)
            while self._seeds:
                await self._sow()

    async def _extend(self) -> None:
        """Signs this gateway on for another while, and its leases, and learns how many gateways there are."""
        leases = deque(self._leases)
        while True:
            places, extended = {f"{self._prefix}gateways": 1}, list[object]()
            while leases and len(extended) < 2 * BATCH:
                lease = leases.popleft()
                # It may be settled by now.
                for key in self._leases.get(lease, ()):
                    extended += (places.setdefault(key, len(places) + 1), lease)
            told = (len(places), *places, self._lease_ms, self._instance, *extended)
            reply = await self._redis.ask(_run(EXTEND, *told), EXTEND)
            if type(reply) is int and reply > 0:
                self.gateways = reply
            if not leases:
                return

    async def _sow(self) -> None:
        seeds = dict(islice(self._seeds.items(), BATCH))
        keys = (f"{self._prefix}{quota_id}" for quota_id in seeds)
        told = (number for seed in seeds.values() for number in seed)
        await self._redis.ask(_run(SEED, len(seeds), *keys, *told), SEED)
        for quota_id, seed in seeds.items():
            if self._seeds[quota_id] == seed:
                del self._seeds[quota_id]

    async def _sign_off(self) -> None:
        with suppress(Away):
            await self._redis.ask(command("ZREM", f"{self._prefix}gateways", self._instance))

    def _planned(self, quotas: tuple[Quota, ...]) -> _Plan:
        plan = self._plans.get(id(quotas))
        if plan is None:
            if len(self._plans) >= MOST_PLANS:
                del self._plans[next(iter(self._plans))]
            plan = self._plans[id(quotas)] = _Plan(quotas, self._prefix, self._lease_ms)
        return plan

    def __repr__(self) -> str:
        away = f"away ({self._redis.away}), " if self.away else ""
        owed = f", {len(self._owed)} owed" if self._owed else ""
        return f"<SharedLimits {away}{self.gateways} gateways, {len(self._leases)} leases{owed}>"


def _run(script: Script, *rest: object) -> bytes:
    return b"*%d\r\n%b%b" % (len(rest) + 2, script.by_hash, words(*rest))


def _standing(quota: Quota, used: float, passed_s: float, seconds: int) -> Standing:
    """How a quota stands of which so much was used when it was `seconds` there, some time ago."""
    full_in_s = _turns_in_s(quota.kind, seconds)
    if quota.kind is Kind.RATE:
        full_in_s = max(0.0, used * quota.period_s / quota.size - passed_s)
        used = full_in_s * quota.size / quota.period_s
    return Standing(quota, max(0, int(quota.size + TOLD - used)), full_in_s)


def _turns_in_s(kind: Kind, seconds: int) -> float:
    return window(kind, seconds).ends_s - seconds if kind in (Kind.DAY, Kind.MONTH) else 0.0
