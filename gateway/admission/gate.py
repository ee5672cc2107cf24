"""The gate: reserves everything a call needs before it runs, and settles it when it ended, whatever the way.

Owns the meters of keys and tenants and the count of running calls. All limits of a call are reserved in one
step without a pause, or none. How many tokens a call takes is `cost.py`'s business.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType

from gateway.admission.cost import Cost, Estimator, charge
from gateway.admission.limits import ROUNDING, Bucket, Slots
from gateway.call import Call, Delivery, Usage
from gateway.errors import GateClosed, LimitReached, Unserved
from gateway.identity.principal import Principal
from gateway.settings import AdmissionSettings, Limits

SLOT_RETRY_S = 1.0
UNLIMITED = Limits()


@dataclass(slots=True)
class Meter:
    """The state of one owner's limits, where it has them; `owner` is how a refusal names it."""

    owner: str
    requests: Bucket | None
    tokens: Bucket | None
    slots: Slots | None

    @classmethod
    def of(cls, owner: str, limits: Limits, now_s: float) -> "Meter":
        return cls(
            owner,
            Bucket.full(limits.requests_per_minute, now_s) if limits.requests_per_minute else None,
            Bucket.full(limits.tokens_per_minute, now_s) if limits.tokens_per_minute else None,
            Slots(limits.concurrent_calls) if limits.concurrent_calls else None,
        )

    def fits(self, tokens: int, now_s: float) -> bool:
        """Whether a call of so many tokens exceeds none of the limits now."""
        return (
            (self.slots is None or self.slots.taken < self.slots.size)
            and (self.requests is None or self.requests.wait_s(1, now_s) == 0)
            and (self.tokens is None or self.tokens.wait_s(tokens, now_s) == 0)
        )

    def refusals(self, cost: Cost, now_s: float) -> Iterator[LimitReached]:
        """The limits that a call of this cost would exceed now."""
        if self.slots and self.slots.taken >= self.slots.size:
            yield LimitReached("concurrent_calls", self.slots.size, self.owner, SLOT_RETRY_S)
        if self.requests and (wait_s := self.requests.wait_s(1, now_s)) != 0:
            yield LimitReached("requests_per_minute", self.requests.size, self.owner, wait_s)
        if self.tokens and (wait_s := self.tokens.wait_s(cost.total_tokens, now_s)) != 0:
            yield LimitReached("tokens_per_minute", self.tokens.size, self.owner, wait_s)

    def take(self, tokens: int) -> None:
        if self.requests:
            self.requests.take(1)
        if self.tokens:
            self.tokens.take(tokens)
        if self.slots:
            self.slots.taken += 1

    def settle(self, requests: int, tokens: int, now_s: float) -> None:
        """Gives back what a call took and did not use, and its slot."""
        if self.requests and requests:
            self.requests.refill(now_s)
            self.requests.give_back(requests)
        if self.tokens:
            self.tokens.refill(now_s)
            self.tokens.give_back(tokens)
        if self.slots:
            self.slots.taken -= 1


@dataclass(slots=True)
class Lease:
    """A call's right to run. The relay writes what it delivered into `delivery`; `charged` is set at the end."""

    cost: Cost
    meters: tuple[Meter, ...]
    delivery: Delivery = field(default_factory=Delivery)
    charged: Usage | None = None

    def lines(self) -> bytes:
        """The x-ratelimit-* header lines as of the last call that changed a limit."""
        return _lines(self.meters)


class Gate:
    """Admits calls or refuses them; `<Gate 3 running, 2 refused, 0 shed>`."""

    def __init__(self, settings: AdmissionSettings, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._max_running = settings.max_running
        self._estimator = Estimator(settings.completion_tokens)
        self._meters: dict[tuple[str, str], Meter] = {}
        self._metered: dict[tuple[str, str], tuple[Meter, ...]] = {}
        self.running = 0
        self.refused = 0
        self.shed = 0

    def admit(self, principal: Principal, call: Call) -> "Admission":
        """Holds a lease while the block runs, and settles it after. Entering raises LimitReached, GateClosed."""
        return Admission(self, principal, call)

    def reserve(self, principal: Principal, call: Call) -> Lease:
        """Takes what the call needs from every limit, or raises and takes nothing."""
        if self.running >= self._max_running:
            self.shed += 1
            raise GateClosed(self.running)
        now_s = self._clock()
        meters = self._meters_of(principal, now_s)
        cost = _fitted(self._estimator.estimate(call), meters)
        tokens = cost.total_tokens
        for meter in meters:
            if not meter.fits(tokens, now_s):
                self.refused += 1
                raise max((each for other in meters for each in other.refusals(cost, now_s)), key=_patience_s)
        for meter in meters:
            meter.take(tokens)
        self.running += 1
        return Lease(cost, meters)

    def settle(self, lease: Lease, call: Call, error: BaseException | None) -> None:
        """Gives back the slots, and the difference between what was reserved and what is charged. Once a lease."""
        if lease.charged is not None:
            return
        lease.charged = charge(call, lease.cost, lease.delivery, error)
        self._estimator.learn(call, lease.charged)
        now_s = self._clock()
        requests = int(isinstance(error, Unserved))
        tokens = lease.cost.total_tokens - lease.charged.total_tokens
        for meter in lease.meters:
            meter.settle(requests, tokens, now_s)
        self.running -= 1

    def lines(self, principal: Principal) -> bytes:
        """The x-ratelimit-* header lines of a principal now: what a call that was refused is answered with."""
        now_s = self._clock()
        meters = self._meters_of(principal, now_s)
        for bucket in (bucket for meter in meters for bucket in (meter.requests, meter.tokens) if bucket):
            bucket.refill(now_s)
        return _lines(meters)

    def _meters_of(self, principal: Principal, now_s: float) -> tuple[Meter, ...]:
        tenant = principal.tenant
        found = self._metered.get((principal.name, tenant.name))
        if found is None:
            owners = (("key", principal.name, principal.limits), ("tenant", tenant.name, tenant.limits))
            found = self._metered[principal.name, tenant.name] = tuple(
                self._meters.setdefault((kind, name), Meter.of(f"{kind} {name}", limits, now_s))
                for kind, name, limits in owners
                if limits != UNLIMITED
            )
        return found

    def __repr__(self) -> str:
        return f"<Gate {self.running} running, {self.refused} refused, {self.shed} shed>"


class Admission:
    """One call's time inside the gate."""

    __slots__ = ("_call", "_gate", "_lease", "_principal")

    def __init__(self, gate: Gate, principal: Principal, call: Call) -> None:
        self._gate = gate
        self._principal = principal
        self._call = call

    async def __aenter__(self) -> Lease:
        self._lease = self._gate.reserve(self._principal, self._call)
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.settle(self._lease, self._call, error)


def _fitted(cost: Cost, meters: tuple[Meter, ...]) -> Cost:
    """A guessed completion must not make a call impossible that a small limit has room for."""
    if not cost.open_ended:
        return cost
    sizes = [meter.tokens.size for meter in meters if meter.tokens]
    if not sizes:
        return cost
    return cost._replace(completion_tokens=max(1, min(cost.completion_tokens, min(sizes) - cost.prompt_tokens)))


def _patience_s(refusal: LimitReached) -> float:
    """How long a caller has to wait for the limit: of several the longest counts, or he comes back too early."""
    return math.inf if refusal.retry_after_s is None else refusal.retry_after_s


def _lines(meters: tuple[Meter, ...]) -> bytes:
    """The x-ratelimit-* header lines, from the tightest limit of each kind; empty where there is no limit."""
    requests = tokens = None
    for meter in meters:
        if meter.requests is not None and (requests is None or meter.requests.level < requests.level):
            requests = meter.requests
        if meter.tokens is not None and (tokens is None or meter.tokens.level < tokens.level):
            tokens = meter.tokens
    return (_told("requests", requests) + _told("tokens", tokens)).encode()


def _told(kind: str, bucket: Bucket | None) -> str:
    if bucket is None:
        return ""
    return (
        f"x-ratelimit-limit-{kind}: {bucket.size}\r\n"
        f"x-ratelimit-remaining-{kind}: {bucket.left}\r\n"
        f"x-ratelimit-reset-{kind}: {duration(bucket.full_in_s())}\r\n"
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
