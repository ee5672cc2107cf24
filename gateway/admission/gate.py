"""The gate: reserves everything a call needs before it runs, and settles it when it ended, whatever the way.

Owns the meters of keys and tenants and the count of running calls. All limits of a call are reserved in one
step without a pause, or none. How many tokens a call takes is `cost.py`'s business.
"""

import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

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
        self.running = 0
        self.refused = 0
        self.shed = 0

    @asynccontextmanager
    async def admit(self, principal: Principal, call: Call) -> AsyncIterator[Lease]:
        """Holds a lease while the block runs, and settles it after. Raises LimitReached, GateClosed."""
        lease = self.reserve(principal, call)
        error: BaseException | None = None
        try:
            yield lease
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.settle(lease, call, error)

    def reserve(self, principal: Principal, call: Call) -> Lease:
        """Takes what the call needs from every limit, or raises and takes nothing."""
        if self.running >= self._max_running:
            self.shed += 1
            raise GateClosed(self.running)
        now_s = self._clock()
        meters = tuple(self._meters_of(principal, now_s))
        cost = _fitted(self._estimator.estimate(call), meters)
        refusals = list(_refusals(meters, cost, now_s))
        if refusals:
            self.refused += 1
            raise max(refusals, key=_patience_s)
        for meter in meters:
            if meter.requests:
                meter.requests.take(1)
            if meter.tokens:
                meter.tokens.take(cost.total_tokens)
            if meter.slots:
                meter.slots.taken += 1
        self.running += 1
        return Lease(cost, meters)

    def settle(self, lease: Lease, call: Call, error: BaseException | None) -> None:
        """Gives back the slots, and the difference between what was reserved and what is charged. Once a lease."""
        if lease.charged is not None:
            return
        lease.charged = charge(lease.cost, lease.delivery, error)
        self._estimator.learn(call, lease.charged)
        now_s = self._clock()
        unserved = isinstance(error, Unserved)
        for meter in lease.meters:
            if meter.requests and unserved:
                meter.requests.refill(now_s)
                meter.requests.give_back(1)
            if meter.tokens:
                meter.tokens.refill(now_s)
                meter.tokens.give_back(lease.cost.total_tokens - lease.charged.total_tokens)
            if meter.slots:
                meter.slots.taken -= 1
        self.running -= 1

    def lines(self, principal: Principal) -> bytes:
        """The x-ratelimit-* header lines of a principal now: what a call that was refused is answered with."""
        now_s = self._clock()
        meters = tuple(self._meters_of(principal, now_s))
        for bucket in (bucket for meter in meters for bucket in (meter.requests, meter.tokens) if bucket):
            bucket.refill(now_s)
        return _lines(meters)

    def _meters_of(self, principal: Principal, now_s: float) -> Iterator[Meter]:
        tenant = principal.tenant
        for kind, name, limits in (("key", principal.name, principal.limits), ("tenant", tenant.name, tenant.limits)):
            if limits == UNLIMITED:
                continue
            meter = self._meters.get((kind, name))
            if meter is None:
                meter = self._meters[kind, name] = Meter.of(f"{kind} {name}", limits, now_s)
            yield meter

    def __repr__(self) -> str:
        return f"<Gate {self.running} running, {self.refused} refused, {self.shed} shed>"


def _fitted(cost: Cost, meters: tuple[Meter, ...]) -> Cost:
    """A guessed completion must not make a call impossible that a small limit has room for."""
    sizes = [meter.tokens.size for meter in meters if meter.tokens]
    if not cost.open_ended or not sizes:
        return cost
    return cost._replace(completion_tokens=max(1, min(cost.completion_tokens, min(sizes) - cost.prompt_tokens)))


def _refusals(meters: tuple[Meter, ...], cost: Cost, now_s: float) -> Iterator[LimitReached]:
    for meter in meters:
        if meter.slots and meter.slots.taken >= meter.slots.size:
            yield LimitReached("concurrent_calls", meter.slots.size, meter.owner, SLOT_RETRY_S)
        if meter.requests and (wait_s := meter.requests.wait_s(1, now_s)) != 0:
            yield LimitReached("requests_per_minute", meter.requests.size, meter.owner, wait_s)
        if meter.tokens and (wait_s := meter.tokens.wait_s(cost.total_tokens, now_s)) != 0:
            yield LimitReached("tokens_per_minute", meter.tokens.size, meter.owner, wait_s)


def _patience_s(refusal: LimitReached) -> float:
    """How long a caller has to wait for the limit: of several the longest counts, or he comes back too early."""
    return math.inf if refusal.retry_after_s is None else refusal.retry_after_s


def _lines(meters: tuple[Meter, ...]) -> bytes:
    """The x-ratelimit-* header lines, from the tightest limit of each kind; empty where there is no limit."""
    return _told(b"requests", [meter.requests for meter in meters if meter.requests]) + _told(
        b"tokens", [meter.tokens for meter in meters if meter.tokens]
    )


def _told(kind: bytes, buckets: list[Bucket]) -> bytes:
    if not buckets:
        return b""
    tightest = min(buckets, key=lambda bucket: bucket.level)
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n" % (
        kind,
        tightest.size,
        kind,
        tightest.left,
        kind,
        duration(tightest.full_in_s()).encode(),
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
