"""The gate: takes everything a call needs before it runs, and settles it when it ended, whatever the way.

First all limits of a call are reserved in one step, or none; then the call waits for its turn where the engines of
its model are busy. How much of a quota is used is a limiter's business, whose turn is next a queue's, and what a call
may take, and is charged in the end, `appraisal.py`'s.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from gateway.admission.appraisal import Appraisal, Appraiser
from gateway.admission.limits import Reservation
from gateway.admission.line import Line, Turn
from gateway.admission.quotas import Demand, Kind, Quota, Standing, Unit
from gateway.admission.rulebook import Rulebook
from gateway.call import Call, Delivery, Usage
from gateway.errors import GateClosed, GatewayError, Refused, Unserved
from gateway.identity.principal import Principal
from gateway.settings import AdmissionSettings

# Durations in headers are rounded up; what is beyond a whole millisecond by less than this is an error of adding.
ROUNDING = 1e-6


class Limiter(Protocol):
    """Knows how much of each quota is used."""

    async def reserve(self, quotas: tuple[Quota, ...], demand: Demand, lease: str) -> Reservation:
        """Takes the demand from all quotas, or raises LimitReached and takes nothing."""
        ...

    def settle(self, held: Reservation, back: Demand) -> None:
        """Gives back so much of what was reserved (less than nothing where more was used), and the slot. Once."""
        ...

    def standings(self, quotas: tuple[Quota, ...]) -> tuple[Standing, ...]:
        """How the quotas stand as far as is known here."""
        ...


@dataclass(slots=True)
class Lease:
    """A call's right to run. What it delivers is written into `delivery`; what it is charged is set at the end.

    `cost_micros` is in millionths of the cost unit.
    """

    appraisal: Appraisal
    held: Reservation
    turn: Turn
    delivery: Delivery = field(default_factory=Delivery)
    charged: Usage | None = None
    cost_micros: int = 0

    @property
    def call(self) -> Call:
        """The call as it goes on."""
        return self.appraisal.call

    @property
    def waited_s(self) -> float:
        """How long the call waited for its turn."""
        return self.turn.waited_s

    def lines(self) -> bytes:
        """The x-ratelimit-* header lines as the call left the limits."""
        return lines_of(self.held.standings)


class Gate:
    """Admits calls or refuses them; `<Gate 3 running, 2 waiting, 2 refused, 0 shed>`."""

    def __init__(
        self,
        settings: AdmissionSettings,
        rulebook: Rulebook,
        limiter: Limiter,
        appraiser: Appraiser,
        line: Callable[[str], Line],
    ) -> None:
        self._max_running = settings.max_running
        self._rulebook = rulebook
        self._limiter = limiter
        self._appraiser = appraiser
        self._line = line
        self.running = 0
        self.waiting = 0
        self.refused = 0
        self.shed = 0

    def admit(self, principal: Principal, call: Call) -> "Admission":
        """Holds a lease while the block runs, and settles it after. Entering raises Refused, Unserved."""
        return Admission(self, principal, call)

    async def enter(self, principal: Principal, call: Call) -> Lease:
        """Takes what the call needs from every limit, and waits for its turn; or raises, and has taken nothing."""
        if self.running + self.waiting >= self._max_running:
            self.shed += 1
            raise GateClosed
        self.waiting += 1
        try:
            quotas = self._rulebook.quotas(principal, call.model)
            appraisal = await self._appraiser.appraise(call, quotas, self._limiter.standings)
            held = await self._limiter.reserve(quotas, appraisal.demand, call.id)
            line, tokens = self._line(call.model), appraisal.cost.total_tokens
            if line.clear():
                turn = line.start(principal, call, tokens)
            else:
                try:
                    turn = await line.turn(principal, call, tokens)
                except BaseException:
                    self._limiter.settle(held, appraisal.demand)
                    raise
        except GatewayError as error:
            self.shed += isinstance(error, Unserved)
            self.refused += isinstance(error, Refused)
            raise
        finally:
            self.waiting -= 1
        self.running += 1
        return Lease(appraisal, held, turn)

    def leave(self, lease: Lease, error: BaseException | None) -> None:
        """Gives back the slots, and the difference between what was reserved and what is charged. Once a lease."""
        if lease.charged is not None:
            return
        lease.charged, lease.cost_micros = self._appraiser.charged(lease.appraisal, lease.delivery, error)
        used, demand = lease.charged.total_tokens, lease.appraisal.demand
        self.running -= 1
        back = Demand(int(isinstance(error, Unserved)), demand.tokens - used, demand.cost - lease.cost_micros)
        self._limiter.settle(lease.held, back)
        self._line(lease.call.model).ended(lease.turn, used)

    def lines(self, principal: Principal, model: str = "") -> bytes:
        """The x-ratelimit-* header lines of a principal now: what a call that was refused is answered with."""
        return lines_of(self._limiter.standings(self._rulebook.quotas(principal, model)))

    def __repr__(self) -> str:
        return f"<Gate {self.running} running, {self.waiting} waiting, {self.refused} refused, {self.shed} shed>"


class Admission:
    """One call's time inside the gate."""

    __slots__ = ("_call", "_gate", "_lease", "_principal")

    def __init__(self, gate: Gate, principal: Principal, call: Call) -> None:
        self._gate = gate
        self._principal = principal
        self._call = call

    async def __aenter__(self) -> Lease:
        self._lease = await self._gate.enter(self._principal, self._call)
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.leave(self._lease, error)


def lines_of(standings: tuple[Standing, ...]) -> bytes:
    """The x-ratelimit-* header lines, from the tightest of the caller's own limits; empty where there is none."""
    requests = tokens = None
    for standing in standings:
        quota = standing.quota
        if quota.kind is Kind.RATE and not quota.shared:
            if quota.unit is Unit.REQUESTS:
                if requests is None or standing.left < requests.left:
                    requests = standing
            elif tokens is None or standing.left < tokens.left:
                tokens = standing
    told = "" if requests is None else _told("requests", requests)
    return (told if tokens is None else told + _told("tokens", tokens)).encode()


def _told(kind: str, standing: Standing) -> str:
    return (
        f"x-ratelimit-limit-{kind}: {standing.quota.size}\r\n"
        f"x-ratelimit-remaining-{kind}: {standing.left}\r\n"
        f"x-ratelimit-reset-{kind}: {duration(standing.full_in_s)}\r\n"
    )


def duration(seconds: float) -> str:
    """A duration as OpenAI writes it in x-ratelimit-reset-*: `0s`, `120ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    milliseconds = math.ceil(seconds * 1000 - ROUNDING)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    if milliseconds <= 59_999:
        return f"{milliseconds / 1000:g}s"
    minutes, rest_s = divmod(math.ceil(milliseconds / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest_s}s" if hours else f"{minutes}m{rest_s}s"
