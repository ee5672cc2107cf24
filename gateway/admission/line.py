"""The line before one model's engines: who waits is woken when an engine has room, in the order of `turns.py`.

Owns the waiting itself: futures, and one timer for the next deadline. Which replica it will be is decided after the
turn has come. How much room there is, is asked of whoever knows the engines.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from gateway.admission.band import Ticket
from gateway.admission.fairness import Charge
from gateway.admission.turns import SOON_S, Turns
from gateway.call import Call
from gateway.errors import QueueFull, WaitTooLong
from gateway.identity.principal import Principal
from gateway.settings import Priority, QueueSettings


class Turn(NamedTuple):
    """A call's turn: how long it waited for it, and what its tenant was charged."""

    waited_s: float
    charge: Charge


Room = Callable[[int], bool]
"""Whether the engines take one more call, when so many that had their turn are still on their way."""


class Line:
    """`<Line tiny: 3 waiting, 2 tenants>`."""

    def __init__(self, model: str, settings: QueueSettings, room: Room, clock: Callable[[], float]) -> None:
        self._model = model
        self._turns = Turns[asyncio.Future[None]](model, settings)
        self._max_wait_s = settings.max_wait_s
        self._room = room
        self._clock = clock
        self._on_the_way = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timed_at_s = 0.0

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return self._turns.waiting

    def clear(self) -> bool:
        """Whether a call may go on at once: nobody waits, and an engine has room."""
        return not self._turns.waiting and self._room(self._on_the_way)

    def start(self, principal: Principal, call: Call, tokens: int) -> Turn:
        """A call goes on at once: it counts for its tenant like those that wait."""
        tenant = principal.tenant
        return Turn(0.0, self._turns.start(tenant.name, tenant.weight, priority_of(principal, call), tokens))

    async def turn(self, principal: Principal, call: Call, tokens: int) -> Turn:
        """Waits for the call's turn.

        Raises QueueFull, TenantQueueFull and WaitTooLong, at once where that is known at once. Whoever is cancelled
        leaves the line, and has cost nobody anything.
        """
        tenant, now_s = principal.tenant, self._clock()
        come = asyncio.get_running_loop().create_future()
        deadline_s = min(call.deadline_s, now_s + self._max_wait_s)
        ticket = Ticket(tenant.name, tenant.weight, priority_of(principal, call), tokens, deadline_s, now_s, come)
        displaced = self._turns.join(ticket, now_s)
        if displaced is not None:
            _tell(displaced, QueueFull(self._model, SOON_S))
        self._set_timer()
        try:
            await come
        except asyncio.CancelledError:
            if not self._turns.leave(ticket, self._clock()) and not come.cancelled() and come.exception() is None:
                # The turn came at the moment at which the caller left: it is another's.
                self._on_the_way -= 1
                self._turns.ended(ticket.charge, 0)
            self.stir()
            raise
        self._on_the_way -= 1
        return Turn(self._clock() - now_s, ticket.charge)

    def ended(self, turn: Turn, tokens: int) -> None:
        """A call has ended, and took so many tokens."""
        self._turns.ended(turn.charge, tokens)
        if self._turns.waiting:
            self.stir()

    def stir(self) -> None:
        """Something has changed: gives turns while there is room, and turns away who cannot have one in time."""
        now_s = self._clock()
        while self._turns.waiting and self._room(self._on_the_way):
            ticket = self._turns.next(now_s)
            if ticket is None:
                break
            if ticket.holder.done():  # Its caller has just left.
                self._turns.ended(ticket.charge, 0)
                continue
            self._on_the_way += 1
            ticket.holder.set_result(None)
        for late in self._turns.overdue(now_s):
            _tell(late, WaitTooLong(self._model, SOON_S))
        self._set_timer()

    def close(self) -> None:
        """Nobody is told of anything any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        at_s = self._turns.next_deadline()
        if self._timer is not None and (not self._turns.waiting or at_s < self._timed_at_s):
            self.close()
        if self._timer is None and self._turns.waiting:
            self._timed_at_s = at_s
            delay_s = max(0.0, at_s - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._due)

    def _due(self) -> None:
        self._timer = None
        self.stir()

    def __repr__(self) -> str:
        return f"<Line {repr(self._turns).removeprefix('<Turns ')}"


def _tell(ticket: Ticket[asyncio.Future[None]], error: Exception) -> None:
    if not ticket.holder.done():
        ticket.holder.set_exception(error)


def priority_of(principal: Principal, call: Call) -> Priority:
    """The class of a call: its caller's, or the lowest if he says that it may wait."""
    return Priority.LOW if call.yielding else principal.priority
