"""Whose turn is next: the calls that wait for one model, as plain state without a clock.

Classes go before one another, save a small share that is kept for each; inside a class tenants have fair shares of
tokens (`band.py`, `fairness.py`). Decides also who may wait, who is displaced when too many do, and how long a wait
would be. Waking whoever waits, and when to ask, is left to the gate. docs/decisions/0009-fair-queue.md has the bounds.
"""

import math
import sys
from bisect import insort
from itertools import count
from typing import Generic

from gateway.admission.band import Band, Holder, Ticket
from gateway.admission.fairness import Charge
from gateway.admission.ordered import Entry, take
from gateway.admission.patience import Pace
from gateway.errors import QueueFull, TenantQueueFull, WaitTooLong
from gateway.settings import Priority, QueueSettings

# The classes, the first to go first.
CLASSES = (Priority.HIGH, Priority.NORMAL, Priority.LOW)
# What a class that waits is given of the tokens, and of the places, whatever waits above it. Linux leaves other tasks
# the same part beside those in real time (sched_rt_runtime_us).
KEPT = 0.05
# By how much a wait may turn out longer than it is told: others come that go first, and calls are longer than thought.
SPARE = 1.2
# When to come back, where it is not known or is next to nothing, and at most: SDKs take longer waits for a refusal.
SOON_S = 1.0
SOONEST_S = 0.1
LATEST_S = 60.0
MOST_TOLD = 1024


class Turns(Generic[Holder]):
    """The queue of one model: `<Turns tiny: 3 waiting, 2 tenants>`.

    A ticket that joined comes out once: of `next`, `overdue`, `leave`, or as the one that `join` displaced.
    """

    def __init__(self, model: str, settings: QueueSettings) -> None:
        self._model = model
        self._max_waiting = settings.max_waiting
        self._max_of_tenant = settings.max_waiting_per_tenant
        self._kept_places = int(settings.max_waiting * KEPT)
        self._bands = {priority: Band[Holder]() for priority in CLASSES}
        self._entries: dict[Ticket[Holder], Entry[Ticket[Holder]]] = {}
        self._by_deadline: list[Entry[Ticket[Holder]]] = []
        self._of_tenant: dict[str, int] = {}
        self._overdue: dict[Ticket[Holder], None] = {}
        self._pace = Pace()
        self._told_until_s: dict[str, float] = {}
        self._order = count()

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return len(self._entries)

    def waiting_of(self, priority: Priority) -> int:
        return self._bands[priority].calls

    def join(self, ticket: Ticket[Holder], now_s: float) -> Ticket[Holder] | None:
        """Waits for a turn, from now on. Returns whom it displaced, if anybody, who does not wait any more.

        Raises TenantQueueFull, WaitTooLong, QueueFull, in this order; nothing has changed then.
        """
        self._set_overdue_aside(now_s)
        displaced = self._displaced_by(ticket, now_s)
        if displaced is not None:
            self._take(displaced, now_s)
        if not self._entries:
            self._pace.resume(now_s)
        entry = (ticket.deadline_s, next(self._order), ticket)
        self._entries[ticket] = entry
        insort(self._by_deadline, entry)
        self._bands[ticket.priority].put(entry)
        self._of_tenant[ticket.tenant] = self._of_tenant.get(ticket.tenant, 0) + 1
        return displaced

    def leave(self, ticket: Ticket[Holder], now_s: float) -> bool:
        """Waits no more; False where it did not wait."""
        if ticket in self._entries:
            self._take(ticket, now_s)
            return True
        if ticket in self._overdue:
            del self._overdue[ticket]
            return True
        return False

    def next(self, now_s: float) -> Ticket[Holder] | None:
        """Gives a turn, and charges the tenant for it; None when nobody waits whose deadline can be met."""
        self._set_overdue_aside(now_s)
        band = self._due()
        if band is None:
            return None
        ticket = band.first()
        ticket.charge = band.start(ticket.tenant, ticket.weight, ticket.priority, ticket.tokens)
        self._pace.turn(ticket.charge.cost, now_s)
        self._owe(band, ticket.charge.cost)
        self._take(ticket, now_s)
        return ticket

    def overdue(self, now_s: float) -> list[Ticket[Holder]]:
        """Those whose deadline can not be met any more. They do not wait any more, and are told of once."""
        self._set_overdue_aside(now_s)
        gone = list(self._overdue)
        self._overdue.clear()
        return gone

    def next_deadline(self) -> float:
        """When `overdue` will have something to tell; infinite when never, in the past when it has."""
        if self._overdue:
            return next(iter(self._overdue)).deadline_s
        return self._by_deadline[0][0] if self._by_deadline else math.inf

    def start(self, tenant: str, weight: float, priority: Priority, tokens: float) -> Charge:
        """Charges a tenant for a call that did not have to wait, and may take so many tokens."""
        return self._bands[priority].start(tenant, weight, priority, tokens)

    def ended(self, charge: Charge, took: float) -> None:
        """A call has ended, however it began, and took so many tokens: its tenant's charge is corrected by that."""
        self._bands[charge.priority].settle(charge, took)

    def wait_s(self, ticket: Ticket[Holder], now_s: float) -> float | None:
        """How long the call would wait from now on, if nobody else came; None while too little is known."""
        if self._pace.wait_s(0.0, now_s) is None:
            return None
        band = self._bands[ticket.priority]
        entry = self._entries.get(ticket, (ticket.deadline_s, sys.maxsize, ticket))
        return self._pace.wait_s(self._among_classes(ticket, band.ahead(entry)), now_s)

    def _among_classes(self, ticket: Ticket[Holder], ahead: float) -> float:
        """Tokens due before a call that has so many before it in its own class."""
        rank = CLASSES.index(ticket.priority)
        above = sum(self._bands[priority].tokens for priority in CLASSES[:rank])
        below = sum(bool(self._bands[priority].calls) for priority in CLASSES[rank + 1 :])
        own = self._bands[ticket.priority].cost(ticket)
        tokens = min(ahead + above, (ahead + own) / KEPT) if above else ahead
        return tokens / (1 - KEPT * below)

    def _displaced_by(self, ticket: Ticket[Holder], now_s: float) -> Ticket[Holder] | None:
        """Who has to go if this call is to wait, or None if there is room; raises if it may not."""
        rank = CLASSES.index(ticket.priority)
        below = [self._bands[priority] for priority in reversed(CLASSES[rank + 1 :])]
        # 1. A tenant that has as many places as it may: its own call of a lower class goes.
        if self._of_tenant.get(ticket.tenant, 0) >= self._max_of_tenant:
            own = next((last for band in below if (last := band.last_of(ticket.tenant)) is not None), None)
            if own is None:
                raise TenantQueueFull(ticket.tenant, self._max_of_tenant, self._back_s(ticket, now_s))
            self._check_wait(ticket, now_s)
            return own
        self._check_wait(ticket, now_s)
        if len(self._entries) < self._max_waiting:
            return None
        # 2. A lower class goes, the lowest first, down to the places that are kept for it.
        for band in below:
            if band.calls > self._kept_places:
                return band.last_of_most()
        # 3. In its own class the tenant with most places, by weight, if it has more than the caller's would have then.
        band = self._bands[ticket.priority]
        most = band.last_of_most((band.held(ticket.tenant) + 1) / ticket.weight)
        # 4. A class above, if places are kept that are not all taken.
        if most is None and band.calls < self._kept_places:
            above = max(
                (self._bands[priority] for priority in CLASSES[:rank]), key=lambda each: each.calls, default=None
            )
            most = above.last_of_most() if above is not None else None
        if most is None:
            raise QueueFull(self._model, self._back_s(ticket, now_s))
        return most

    def _check_wait(self, ticket: Ticket[Holder], now_s: float) -> None:
        """Raises WaitTooLong when the deadline cannot be met at the pace of now."""
        left_s = ticket.deadline_s - now_s
        if left_s <= 0:
            raise WaitTooLong(self._model, SOON_S)
        # All that waits is more than what is due before, and quicker to count.
        all_s = self._pace.wait_s(self._among_classes(ticket, self._bands[ticket.priority].tokens), now_s)
        if all_s is None or all_s * SPARE <= left_s:
            return
        over_s = (self.wait_s(ticket, now_s) or 0.0) * SPARE - left_s
        if over_s > 0:
            raise WaitTooLong(self._model, self._told_s(ticket, over_s, now_s))

    def _back_s(self, ticket: Ticket[Holder], now_s: float) -> float:
        """When to come back for a place: when what is due before such a call now has had its turn."""
        wait_s = self.wait_s(ticket, now_s)
        return self._told_s(ticket, SOON_S if wait_s is None else wait_s, now_s)

    def _told_s(self, ticket: Ticket[Holder], wait_s: float, now_s: float) -> float:
        """What a caller who has to come back is told.

        Those of his tenant who were told before him have their turns first, as if they waited: a crowd that is turned
        away does not come back all at once. When nobody waits any more, all that is forgotten.
        """
        whose = ticket.tenant
        spacing_s = self._pace.takes_s(self._bands[ticket.priority].cost(ticket), now_s)
        back_s = max(now_s + max(SOONEST_S, wait_s), self._told_until_s.get(whose, 0.0) + spacing_s)
        if len(self._told_until_s) > MOST_TOLD:
            self._told_until_s = {each: until_s for each, until_s in self._told_until_s.items() if until_s > now_s}
        self._told_until_s[whose] = min(back_s, now_s + LATEST_S)
        return self._told_until_s[whose] - now_s

    def _due(self) -> Band[Holder] | None:
        """The class whose turn it is: the highest, unless a lower one is owed as much as its next call takes."""
        waiting = [band for band in self._bands.values() if band.calls]
        for band in waiting[1:]:
            if band.credit >= band.cost(band.first()):
                return band
        return waiting[0] if waiting else None

    def _owe(self, band: Band[Holder], tokens: float) -> None:
        """A turn of so many tokens goes to a class: those below are owed a part of it, those above paid theirs."""
        waiting = [each for each in self._bands.values() if each.calls]
        at = waiting.index(band)
        if at:
            band.credit -= tokens
        for each in waiting[at + 1 :]:
            each.credit += tokens * KEPT

    def _set_overdue_aside(self, now_s: float) -> None:
        while self._by_deadline and self._by_deadline[0][0] <= now_s:
            ticket = self._by_deadline[0][2]
            self._take(ticket, now_s)
            self._overdue[ticket] = None

    def _take(self, ticket: Ticket[Holder], now_s: float) -> None:
        entry = self._entries.pop(ticket)
        take(self._by_deadline, entry)
        self._bands[ticket.priority].take(entry)
        left = self._of_tenant[ticket.tenant] - 1
        if left:
            self._of_tenant[ticket.tenant] = left
        else:
            del self._of_tenant[ticket.tenant]
        if not self._entries:
            self._pace.pause(now_s)
            self._told_until_s.clear()

    def __repr__(self) -> str:
        return f"<Turns {self._model}: {self.waiting} waiting, {len(self._of_tenant)} tenants>"
