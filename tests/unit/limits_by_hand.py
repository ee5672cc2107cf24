"""A limiter in this process with clocks that a test sets, and quotas to try it with."""

from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from gateway.admission.limits import LocalLimits, Reservation
from gateway.admission.quotas import Demand, Kind, Quota, Unit
from gateway.errors import LimitReached

T = TypeVar("T")
NOON = datetime(2026, 1, 30, 12, tzinfo=UTC).timestamp()
DAY_S = 86_400.0


def rate(size: int, unit: Unit = Unit.TOKENS, *, owner: str = "key a", period_s: float = 60.0) -> Quota:
    per = "minute" if period_s == 60 else "day"
    return Quota(f"{owner}/{unit}_per_{per}", owner, f"{unit}_per_{per}", Kind.RATE, unit, size, period_s)


def slots(size: int, *, owner: str = "key a") -> Quota:
    return Quota(f"{owner}/concurrent_calls", owner, "concurrent_calls", Kind.SLOTS, Unit.CALLS, size)


def budget(size: int, kind: Kind = Kind.DAY, unit: Unit = Unit.TOKENS, *, owner: str = "tenant t") -> Quota:
    return Quota(f"{owner}/budget/{unit}/{kind}", owner, f"budget_{unit}_per_{kind}", kind, unit, size)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that does not wait for anything."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it waits")


@dataclass
class Hand:
    """A limiter whose clocks show what they are set to; `quotas` are those of every call."""

    quotas: tuple[Quota, ...] = ()
    now_s: float = 1000.0
    wall_s: float = NOON
    taken: int = 0
    limits: LocalLimits = field(init=False)

    def __post_init__(self) -> None:
        self.limits = LocalLimits(lambda: self.now_s, lambda: self.wall_s)

    def take(
        self, tokens: int = 1, *, requests: int = 1, cost: int = 0, quotas: tuple[Quota, ...] | None = None
    ) -> Reservation:
        self.taken += 1
        demand = Demand(requests, tokens, cost)
        return at_once(self.limits.reserve(self.quotas if quotas is None else quotas, demand, f"lease-{self.taken}"))

    def refused(self, tokens: int = 1, *, requests: int = 1, cost: int = 0) -> LimitReached:
        """Why a call is refused; it must be."""
        try:
            self.take(tokens, requests=requests, cost=cost)
        except LimitReached as refusal:
            return refusal
        raise AssertionError("it was admitted")

    def admits(self, tokens: int = 1, *, requests: int = 1, cost: int = 0) -> bool:
        try:
            self.take(tokens, requests=requests, cost=cost)
        except LimitReached:
            return False
        return True

    def back(self, held: Reservation, tokens: int = 0, *, requests: int = 0, cost: int = 0) -> None:
        self.limits.settle(held, Demand(requests, tokens, cost))

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.wall_s += seconds

    def left(self) -> tuple[int, ...]:
        return tuple(standing.left for standing in self.limits.standings(self.quotas))
