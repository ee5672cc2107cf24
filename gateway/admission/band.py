"""The calls of one priority class that wait for one model, by tenant. Keeps them, and knows who is first and last.

Between tenants the turn is `fairness.py`'s choice; inside a tenant the earliest deadline is first, then who came first.
What happens between classes is `turns.py`'s business.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from gateway.admission.fairness import Charge, Shares
from gateway.admission.ordered import Entry, take
from gateway.settings import Priority

Holder = TypeVar("Holder")


@dataclass(slots=True, eq=False)
class Ticket(Generic[Holder]):
    """One call that waits for its turn; equal to itself alone.

    `weight` is its tenant's. `tokens` is what it may take. After `deadline_s` (monotonic, may be infinite) a turn is of
    no use to it. `holder` is whoever wants to know of its turn. `charge` is what its turn
    cost, and is there once it came.
    """

    tenant: str
    weight: float
    priority: Priority
    tokens: float
    deadline_s: float
    joined_s: float
    holder: Holder
    charge: Charge = field(init=False, repr=False)


@dataclass(slots=True, eq=False)
class Flow(Generic[Holder]):
    """The calls of one tenant, the first to go first, and the tokens that they may take.

    `seat` is its place among tenants by how much they hold.
    """

    weight: float
    seat: Entry[str] | None = None
    tickets: list[Entry[Ticket[Holder]]] = field(default_factory=list)
    tokens: float = 0.0

    def ahead(self, entry: Entry[Ticket[Holder]]) -> float:
        """Tokens that the calls before this one may take."""
        at = bisect_left(self.tickets, entry)
        return self.tokens if at == len(self.tickets) else sum(other[2].tokens for other in self.tickets[:at])


class Band(Generic[Holder]):
    """One class. `tokens` are those that its calls are expected to take, `credit` those that classes above owe it."""

    def __init__(self) -> None:
        self.shares = Shares()
        self.calls = 0
        self.tokens = 0.0
        self.credit = 0.0
        self._flows: dict[str, Flow[Holder]] = {}
        self._seats: list[Entry[str]] = []
        self._moves = count()

    def put(self, entry: Entry[Ticket[Holder]]) -> None:
        ticket = entry[2]
        flow = self._flows.get(ticket.tenant)
        if flow is None:
            flow = self._flows[ticket.tenant] = Flow(ticket.weight)
            self.shares.enter(ticket.tenant, ticket.weight)
        flow.weight = ticket.weight
        insort(flow.tickets, entry)
        self._count(flow, ticket, 1)

    def take(self, entry: Entry[Ticket[Holder]]) -> None:
        ticket = entry[2]
        flow = self._flows[ticket.tenant]
        take(flow.tickets, entry)
        self._count(flow, ticket, -1)
        if not flow.tickets:
            del self._flows[ticket.tenant]
            self.shares.leave(ticket.tenant)
        if not self.calls:
            self.credit = self.tokens = 0.0

    def first(self) -> Ticket[Holder]:
        """Whose turn it is. Somebody must be waiting."""
        return self._flows[self.shares.foremost()].tickets[0][2]

    def cost(self, ticket: Ticket[Holder]) -> float:
        """Tokens that a call is expected to take."""
        return ticket.tokens * self.shares.part(ticket.tenant)

    def start(self, tenant: str, weight: float, priority: Priority, tokens: float) -> Charge:
        """Charges a call that begins, whether it waits here or not."""
        cost = tokens * self.shares.part(tenant)
        return Charge(tenant, weight, priority, tokens, cost, self.shares.charge(tenant, weight, cost))

    def settle(self, charge: Charge, took: float) -> None:
        """Corrects a charge by what the call took, and what is expected of those that wait."""
        first, before = not self.shares.taught, self.shares.part(charge.tenant)
        self.shares.settle(charge, took)
        if first:
            self.tokens = sum(flow.tokens * self.shares.part(tenant) for tenant, flow in self._flows.items())
        elif charge.tenant in self._flows:
            self.tokens += self._flows[charge.tenant].tokens * (self.shares.part(charge.tenant) - before)

    def last_of(self, tenant: str) -> Ticket[Holder] | None:
        """The tenant's call that would go last, if it has any."""
        flow = self._flows.get(tenant)
        return flow.tickets[-1][2] if flow is not None else None

    def last_of_most(self, unless: float = 0.0) -> Ticket[Holder] | None:
        """The last call of the tenant that holds most by weight; None unless it holds more than that."""
        if not self._seats or self._seats[-1][0] <= unless:
            return None
        return self.last_of(self._seats[-1][2])

    def held(self, tenant: str) -> int:
        flow = self._flows.get(tenant)
        return len(flow.tickets) if flow is not None else 0

    def ahead(self, entry: Entry[Ticket[Holder]]) -> float:
        """Tokens of this class that are due before such a call, whether it waits already or not."""
        ticket = entry[2]
        own = self._flows.get(ticket.tenant)
        tokens = own.ahead(entry) * self.shares.part(ticket.tenant) if own is not None else 0.0
        level, fresh = self.shares.level(ticket.tenant)
        next_of_own = fresh and not tokens
        level += tokens / ticket.weight
        for share in self.shares.waiting():
            if share.tenant == ticket.tenant:
                if next_of_own:
                    break  # The others come after it.
                continue
            if not share.fresh and (next_of_own or share.level > level):
                break
            other, part = self._flows[share.tenant], share.usual.part
            # Turns are whole calls: it goes past the level by half of one, or has its first turn by being fresh.
            due = other.tickets[0][2].tokens * part * (1.0 if share.fresh else 0.5)
            if share.level < level:
                due += (level - share.level) * share.weight
            all_of_it = other.tokens * part
            tokens += due if due < all_of_it else all_of_it
        return tokens

    def _count(self, flow: Flow[Holder], ticket: Ticket[Holder], calls: int) -> None:
        if flow.seat is not None:
            take(self._seats, flow.seat)
            flow.seat = None
        if flow.tickets:
            flow.seat = (len(flow.tickets) / flow.weight, next(self._moves), ticket.tenant)
            insort(self._seats, flow.seat)
        self.calls += calls
        flow.tokens += calls * ticket.tokens
        self.tokens += calls * self.cost(ticket)
