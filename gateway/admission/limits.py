"""The limiter of this process: how much of each quota is used, and whether a call fits. All of a call's quotas or none.

A RATE is the generic cell rate algorithm (ITU-T I.371) in its leaky bucket form: what is used drains evenly, so in any
t seconds at most `size + t * size / period_s` is reserved, net of what is given back, and there are no window edges.
What a call was thought to cost is taken before it runs and settled with what it did cost, so a quota may owe for a
while. Budgets count in calendar windows. Which quotas hold a call is `rulebook.py`'s business, how many gateways share
them `shared.py`'s.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable

from gateway.admission.quotas import Demand, Kind, Quota, Standing, Unit
from gateway.admission.windows import kind_of, month_of, window
from gateway.errors import BudgetSpent, LimitReached

# Units by which what is used may be off after many additions.
ROUNDING = 1e-6
SLOT_RETRY_S = 1.0
# Where a unit's amount is in a demand.
AMOUNT = {Unit.REQUESTS: 0, Unit.TOKENS: 1, Unit.COST: 2}
MICROS = 1_000_000
CALENDAR = (Kind.DAY, Kind.MONTH)
# A named tuple made this way costs half as much.
new = tuple.__new__
# How many reservations pass between two looks for what is not needed any more, and how much one look takes in.
SWEEP_EVERY = 128
SWEEP_MOST = 512
# A tuple of quotas that no call used for so long is forgotten.
IDLE_S = 60.0


class Reservation:
    """What a call holds until it is settled. `day` is the day it was made on.

    `standings` are as it left them, one of each quota in any order.
    `shared` tells whether it was made in the state that all gateways share.
    """

    __slots__ = ("day", "demand", "lease", "quotas", "settled", "shared", "standings")

    def __init__(
        self,
        quotas: tuple[Quota, ...],
        demand: Demand,
        standings: tuple[Standing, ...],
        lease: str,
        day: int,
        shared: bool,
    ) -> None:
        self.quotas = quotas
        self.demand = demand
        self.standings = standings
        self.lease = lease
        self.day = day
        self.shared = shared
        self.settled = False

    def __repr__(self) -> str:
        where, settled = "shared" if self.shared else "local", ", settled" if self.settled else ""
        return f"<Reservation {self.lease} {where}: {len(self.quotas)} quotas{settled}>"


def refusal(quota: Quota, used: float, amount: float, turns_in_s: float) -> LimitReached | None:
    """Why a quota of which so much is used has no room for `amount`; None where it has."""
    if used + amount <= quota.size + (ROUNDING if quota.kind is Kind.RATE else 0):
        return None
    size: float = quota.size
    if quota.unit is Unit.COST:
        size = size // MICROS if size % MICROS == 0 else size / MICROS
    if amount > quota.size:
        kind = BudgetSpent if quota.kind in CALENDAR else LimitReached
        return kind(quota.limit, size, quota.owner, None)
    if quota.kind is Kind.RATE:
        return LimitReached(quota.limit, size, quota.owner, (used + amount - quota.size) * quota.period_s / quota.size)
    if quota.kind is Kind.SLOTS:
        return LimitReached(quota.limit, size, quota.owner, SLOT_RETRY_S)
    return BudgetSpent(quota.limit, size, quota.owner, turns_in_s)


def worst(refusals: Iterable[LimitReached | None]) -> LimitReached:
    """The refusal with the longest wait, or its caller would come back too early. There must be one."""
    return max(filter(None, refusals), key=_patience_s)


def _patience_s(refusal: LimitReached) -> float:
    return math.inf if refusal.retry_after_s is None else refusal.retry_after_s


class _Gauge:
    """How much of one quota is used. `at` is the time of that (RATE), or the stamp of its window (DAY, MONTH).

    It is kept while `plans` have it and until it is at rest.
    """

    __slots__ = ("alone", "at", "drain", "id", "kind", "plans", "used")

    def __init__(self, identifier: str, kind: Kind) -> None:
        self.id = identifier
        self.kind = kind
        self.at = 0.0
        self.used = 0.0
        self.drain = 0.0
        self.plans = 0
        self.alone = False

    def turn(self, stamp: int) -> None:
        """Begins a new window with nothing used. A clock that was set back takes along what is used."""
        if stamp > self.at:
            self.used = 0.0
        self.at = stamp


class _Plan:
    """A tuple of quotas with their gauges and what to reckon with; `open` reservations hold it."""

    __slots__ = ("budgets", "gauges", "open", "quotas", "rates", "slots", "used_s")

    def __init__(self, quotas: tuple[Quota, ...], gauges: tuple[_Gauge, ...]) -> None:
        self.quotas = quotas
        self.gauges = gauges
        self.used_s = 0.0
        self.open = 0
        # With the place of the amount in a demand, the most that may be used, and what drains in a second.
        self.rates: list[tuple[Quota, _Gauge, int, float, float]] = []
        self.budgets: list[tuple[Quota, _Gauge, int]] = []
        self.slots: list[tuple[Quota, _Gauge]] = []
        for quota, gauge in zip(quotas, gauges, strict=True):
            if quota.kind is Kind.RATE:
                most, drain = quota.size + ROUNDING, quota.size / quota.period_s
                self.rates.append((quota, gauge, AMOUNT[quota.unit], most, drain))
            elif quota.kind is Kind.SLOTS:
                self.slots.append((quota, gauge))
            else:
                self.budgets.append((quota, gauge, AMOUNT[quota.unit]))


class LocalLimits:
    """Limits that this process knows of alone; `<LocalLimits 12 quotas, 3 open>`.

    `clock` counts seconds and `wall` is the time of day, since 1970 in UTC. Pass the same tuple of quotas for calls
    that are alike: what is worked out for a tuple is kept.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._wall = wall
        self._seen_s = -math.inf
        self._behind_s = 0.0
        self._wall_s = wall()
        self._day = window(Kind.DAY, self._wall_s)
        self._month = window(Kind.MONTH, self._wall_s)
        self._gauges: dict[str, _Gauge] = {}
        self._plans: dict[int, _Plan] = {}
        # Each plan, and each gauge that no plan has, in the order in which they are looked at next.
        self._all_plans = deque[_Plan]()
        self._alone = deque[_Gauge]()
        self._until_sweep = SWEEP_EVERY
        self._open = 0

    async def reserve(self, quotas: tuple[Quota, ...], demand: Demand, lease: str) -> Reservation:
        """Takes the demand from all quotas, or from none; raises LimitReached, BudgetSpent. It never waits."""
        now_s = self._now_s()
        plan = self._plans.get(id(quotas)) or self._planned(quotas)
        for quota, gauge in plan.slots:
            if gauge.used >= quota.size:
                raise self._refusal(quotas, demand, now_s)
        for _, gauge, amount, most, drain in plan.rates:
            used = gauge.used - (now_s - gauge.at) * drain
            gauge.used = used = used if used > 0 else 0.0
            gauge.at = now_s
            if used + demand[amount] > most:
                raise self._refusal(quotas, demand, now_s)
        if plan.budgets:
            self._look_at_calendar()
            for quota, gauge, amount in plan.budgets:
                gauge.turn(self._stamp(quota.kind))
                if gauge.used + demand[amount] > quota.size:
                    raise self._refusal(quotas, demand, now_s)
        standings = []
        for quota, gauge, amount, most, drain in plan.rates:
            used = gauge.used = gauge.used + demand[amount]
            standings.append(new(Standing, (quota, int(most - used), used / drain)))
        for quota, gauge in plan.slots:
            gauge.used += 1
            standings.append(new(Standing, (quota, int(quota.size - gauge.used), 0.0)))
        for quota, gauge, amount in plan.budgets:
            gauge.used += demand[amount]
            standings.append(Standing(quota, int(quota.size - gauge.used), self._turns_in_s(quota.kind)))
        plan.used_s = now_s
        plan.open += 1
        self._open += 1
        self._until_sweep -= 1
        if not self._until_sweep:
            self.sweep()
        return Reservation(quotas, demand, tuple(standings), lease, self._day.stamp, False)

    def settle(self, held: Reservation, back: Demand) -> None:
        """Gives back so much of what was reserved (less than nothing where more was used), and the slots. Once."""
        if held.settled:
            return
        held.settled = True
        self._open -= 1
        now_s = self._now_s()
        plan = self._plans[id(held.quotas)]
        plan.open -= 1
        for _, gauge, amount, _, drain in plan.rates:
            units = back[amount]
            if units:
                if units < 0:
                    # What is given back may drain later as well; what is owed counts from now on.
                    gauge.used = max(0.0, gauge.used - (now_s - gauge.at) * drain)
                    gauge.at = now_s
                used = gauge.used - units
                gauge.used = used if used > 0 else 0.0
        for _, gauge in plan.slots:
            gauge.used -= 1
        if plan.budgets:
            self._look_at_calendar()
            for quota, gauge, amount in plan.budgets:
                stamp = self._stamp(quota.kind)
                gauge.turn(stamp)
                begun = held.day if quota.kind is Kind.DAY else month_of(held.day)
                # A call counts in the window in which it ends, as it does in the records of usage.
                units = back[amount] if begun >= stamp else back[amount] - held.demand[amount]
                gauge.used = max(0.0, gauge.used - units)

    def standings(self, quotas: tuple[Quota, ...]) -> tuple[Standing, ...]:
        """How the quotas stand now."""
        now_s = self._now_s()
        self._look_at_calendar()
        found = []
        for quota in quotas:
            used = self._used(quota, now_s)
            full_in_s = used * quota.period_s / quota.size if quota.kind is Kind.RATE else self._turns_in_s(quota.kind)
            found.append(Standing(quota, max(0, int(quota.size + ROUNDING - used)), full_in_s))
        return tuple(found)

    def seed(self, quota_id: str, stamp: int, used: int) -> None:
        """So much of a budget is used in the window of this stamp at least; what is known is never lowered."""
        gauge = self._gauges.get(quota_id)
        if gauge is None:
            gauge = self._gauges[quota_id] = _Gauge(quota_id, kind_of(stamp))
            self._leave_alone(gauge)
        if stamp > gauge.at:
            gauge.turn(stamp)
        if stamp == gauge.at and used > gauge.used:
            gauge.used = used

    def sweep(self) -> None:
        """Looks at a bounded part of what is kept, and forgets what says nothing any more."""
        self._until_sweep = SWEEP_EVERY
        now_s = self._now_s()
        for _ in range(min(SWEEP_MOST, len(self._all_plans))):
            plan = self._all_plans.popleft()
            if plan.open or now_s - plan.used_s < IDLE_S:
                self._all_plans.append(plan)
                continue
            del self._plans[id(plan.quotas)]
            for gauge in plan.gauges:
                gauge.plans -= 1
                if not (gauge.plans or gauge.alone):
                    self._leave_alone(gauge)
        self._look_at_calendar()
        for _ in range(min(SWEEP_MOST, len(self._alone))):
            gauge = self._alone.popleft()
            gauge.alone = False
            if gauge.plans:
                continue
            if self._at_rest(gauge, now_s):
                del self._gauges[gauge.id]
            else:
                self._leave_alone(gauge)

    def _leave_alone(self, gauge: _Gauge) -> None:
        gauge.alone = True
        self._alone.append(gauge)

    def _at_rest(self, gauge: _Gauge, now_s: float) -> bool:
        """Whether a gauge says the same as one that is new."""
        if gauge.kind is Kind.RATE:
            return gauge.used <= (now_s - gauge.at) * gauge.drain
        return not gauge.used or (gauge.kind is not Kind.SLOTS and gauge.at < self._stamp(gauge.kind))

    def _planned(self, quotas: tuple[Quota, ...]) -> _Plan:
        plan = self._plans[id(quotas)] = _Plan(quotas, tuple(map(self._gauge, quotas)))
        self._all_plans.append(plan)
        return plan

    def _gauge(self, quota: Quota) -> _Gauge:
        gauge = self._gauges.get(quota.id)
        if gauge is None:
            gauge = self._gauges[quota.id] = _Gauge(quota.id, quota.kind)
        gauge.plans += 1
        if quota.kind is Kind.RATE:
            gauge.drain = quota.size / quota.period_s
        return gauge

    def _refusal(self, quotas: tuple[Quota, ...], demand: Demand, now_s: float) -> LimitReached:
        self._look_at_calendar()
        return worst(
            refusal(quota, self._used(quota, now_s), demand.of(quota.unit), self._turns_in_s(quota.kind))
            for quota in quotas
        )

    def _used(self, quota: Quota, now_s: float) -> float:
        gauge = self._gauges.get(quota.id)
        if gauge is None:
            return 0.0
        if quota.kind is Kind.RATE:
            return max(0.0, gauge.used - (now_s - gauge.at) * quota.size / quota.period_s)
        if quota.kind is not Kind.SLOTS and gauge.at < self._stamp(quota.kind):
            return 0.0
        return gauge.used

    def _now_s(self) -> float:
        """The clock, but never less than before: one that is set back gives nothing, and goes on from there."""
        clock_s = self._clock()
        if clock_s < self._seen_s:
            self._behind_s += self._seen_s - clock_s
        self._seen_s = clock_s
        return clock_s + self._behind_s

    def _look_at_calendar(self) -> None:
        wall_s = self._wall_s = self._wall()
        if not self._day.begins_s <= wall_s < self._day.ends_s:
            self._day, self._month = window(Kind.DAY, wall_s), window(Kind.MONTH, wall_s)

    def _stamp(self, kind: Kind) -> int:
        return self._day.stamp if kind is Kind.DAY else self._month.stamp

    def _turns_in_s(self, kind: Kind | None) -> float:
        """Seconds until the calendar turns; of other kinds 0, since nobody knows when calls end."""
        if kind is Kind.DAY:
            return self._day.ends_s - self._wall_s
        return self._month.ends_s - self._wall_s if kind is Kind.MONTH else 0.0

    def __repr__(self) -> str:
        return f"<LocalLimits {len(self._gauges)} quotas, {self._open} open>"
