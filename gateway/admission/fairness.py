"""Fair shares of tokens between tenants: of those that wait, whose turn is next. Counts; keeps no calls.

A virtual token counter (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024) that is charged a call at
a time, as in start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996). Each tenant has a level, its tokens by its
weight; the lowest level is next. Two tenants that both wait all the time are given, by weight, amounts that differ by
no more than one call of each. docs/decisions/0009-fair-queue.md has the bounds.
"""

import math
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

from gateway.admission.ordered import Entry, take
from gateway.settings import Priority

# Levels that are kept of tenants that do not wait; beyond this the lowest, which say least, are forgotten.
MAX_RESTING = 1024
# What the calls before the last one count, against it, in what a tenant's calls are expected to take.
MEMORY = 0.9


class Charge(NamedTuple):
    """What a call was charged when it began: `cost` is what was expected of the `tokens` that it may take.

    `contended`: it had waited, so others were there from whom it took a turn.
    """

    tenant: str
    weight: float
    priority: Priority
    tokens: float
    cost: float
    contended: bool


@dataclass(slots=True)
class Usual:
    """How many tokens the last calls might have taken, and took; the older the less they count."""

    might: float = 0.0
    took: float = 0.0

    @property
    def part(self) -> float:
        return self.took / self.might if self.might else 1.0

    def learn(self, might: float, took: float) -> None:
        """A call that took nothing says nothing: it failed, or its caller left."""
        if might <= 0 or took <= 0:
            return
        self.might = self.might * MEMORY + might
        self.took = self.took * MEMORY + took


@dataclass(slots=True, eq=False)
class Share:
    """What a tenant was given, in tokens by weight; `place` is its place among those that wait.

    `ahead` is the part of its level that a call left which did not wait: it is ahead of others by no more of those.
    """

    tenant: str
    weight: float
    level: float
    usual: Usual
    ahead: float = 0.0
    place: "Entry[Share] | None" = None

    @property
    def fresh(self) -> bool:
        """It waits, and has had no turn since it came with no more than others had."""
        return self.place is not None and self.place[0] == -math.inf


class Shares:
    """The levels of all tenants of a model and class; `<Shares 2 waiting, 5 known, turns at 1200>`."""

    def __init__(self) -> None:
        self._shares: dict[str, Share] = {}
        self._waiting: list[Entry[Share]] = []
        self._moves = count()
        self._usual = Usual()
        self._turns_at = 0.0  # The highest level at which a turn was given so far.

    @property
    def taught(self) -> bool:
        """Whether a call has ended that took anything: before, nothing is known of what calls take."""
        return self._usual.might > 0

    def part(self, tenant: str) -> float:
        """What part of the tokens that they might take the tenant's calls do take, going by its last, or anybody's.

        Callers ask for far more than they use. Charged with all of it, a tenant whose calls run would have to be served
        all of that before another had its share, and what comes back later would come too late.
        """
        share = self._shares.get(tenant)
        return (share.usual if share is not None else self._usual).part

    def enter(self, tenant: str, weight: float) -> None:
        """The tenant has calls that wait, from now on.

        What others had while it was away is no credit: it is lifted to where turns are given now. One that had no
        more than that is next, behind others like it (as new flows are in FQ-CoDel, RFC 8290): whatever is given back
        to others until then does not put them before it.
        """
        share = self._of(tenant, weight)
        fresh = share.level <= self._turns_at
        if fresh:
            share.level, share.ahead = self._turns_at, 0.0
        self._place(share, (-math.inf if fresh else share.level, next(self._moves), share))

    def leave(self, tenant: str) -> None:
        """None of the tenant's calls wait any more."""
        self._place(self._shares[tenant], None)

    def foremost(self) -> str:
        """Whose turn is next. Somebody must be waiting."""
        return self._waiting[0][2].tenant

    def charge(self, tenant: str, weight: float, cost: float) -> bool:
        """A call of the tenant begins; whether it had waited."""
        share = self._of(tenant, weight)
        contended = share.place is not None
        if not contended:
            share.level, share.ahead = max(share.level, self._turns_at), cost / weight
        self._turns_at = max(self._turns_at, share.level)
        share.level += cost / weight
        self._move(share)
        return contended

    def settle(self, charge: Charge, took: float) -> None:
        """A call has ended, and took so many tokens.

        What is given back puts nobody further before others than by itself. Of calls that did not wait only the last
        one's is given back: whoever came since was put behind all before that.
        """
        share = self._of(charge.tenant, charge.weight)
        self._learn(share, charge.tokens, took)
        more = (took - charge.cost) / charge.weight
        if more > 0:
            share.level += more
        elif charge.contended:
            share.level = max(share.level + more, min(share.level, self._turns_at + more))
        else:
            back = min(-more, share.ahead)
            share.level, share.ahead = share.level - back, share.ahead - back
        if more > 0 or not share.fresh:
            self._move(share)

    def waiting(self) -> Iterator[Share]:
        """Those that wait, the next first."""
        return (place[2] for place in self._waiting)

    def level(self, tenant: str) -> tuple[float, bool]:
        """The level at which the tenant would be given a turn, and whether it is, or would come, fresh."""
        share = self._shares.get(tenant)
        if share is None:
            return self._turns_at, True
        if share.place is not None:
            return share.level, share.fresh
        return max(share.level, self._turns_at), share.level <= self._turns_at

    def _learn(self, share: Share, might: float, took: float) -> None:
        first = not self.taught
        self._usual.learn(might, took)
        share.usual.learn(might, took)
        if first:  # Of the others there is nothing better to go by.
            for each in self._shares.values():
                each.usual = replace(self._usual)

    def _of(self, tenant: str, weight: float) -> Share:
        share = self._shares.get(tenant)
        if share is None:
            if len(self._shares) - len(self._waiting) >= MAX_RESTING:
                self._forget()
            share = self._shares[tenant] = Share(tenant, weight, self._turns_at, replace(self._usual))
        share.weight = weight
        return share

    def _move(self, share: Share) -> None:
        """Its level has changed: so has its place, if it waits."""
        if share.place is not None:
            self._place(share, (share.level, next(self._moves), share))

    def _place(self, share: Share, place: Entry[Share] | None) -> None:
        if share.place is not None:
            take(self._waiting, share.place)
        share.place = place
        if place is not None:
            insort(self._waiting, place)

    def _forget(self) -> None:
        """Drops half of those that do not wait: all that would be lifted anyway, and the lowest of the others."""
        resting = sorted((share for share in self._shares.values() if share.place is None), key=lambda each: each.level)
        for share in resting[: max(MAX_RESTING // 2, sum(each.level <= self._turns_at for each in resting))]:
            del self._shares[share.tenant]

    def __repr__(self) -> str:
        return f"<Shares {len(self._waiting)} waiting, {len(self._shares)} known, turns at {self._turns_at:g}>"
