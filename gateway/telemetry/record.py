"""What is known of one call in the end: the values behind its log line, its metrics and its root span."""

import enum
from dataclasses import dataclass
from typing import Protocol

from gateway.call import Call, Delivery, Usage
from gateway.errors import BadCall, CallerLeft, GatewayError, Refused, Severed, Unserved
from gateway.identity.principal import Principal


class Outcome(enum.StrEnum):
    """How a call ended."""

    OK = "ok"
    CANCELLED = "cancelled"
    BAD_CALL = "bad_call"
    REFUSED = "refused"
    UNSERVED = "unserved"
    SEVERED = "severed"
    FAILED = "failed"


FAULTS: tuple[tuple[type[GatewayError], Outcome], ...] = (
    (CallerLeft, Outcome.CANCELLED),
    (BadCall, Outcome.BAD_CALL),
    (Refused, Outcome.REFUSED),
    (Unserved, Outcome.UNSERVED),
    (Severed, Outcome.SEVERED),
)


class Lease(Protocol):
    """What a call was admitted under: what it has delivered, how long it waited for its turn, and what it was charged
    once it ended."""

    delivery: Delivery
    charged: Usage | None
    cost_micros: int

    @property
    def waited_s(self) -> float: ...


@dataclass(slots=True)
class CallRecord:
    """One call. The pipeline fills in what it learns. Times are monotonic; `upstream_s` is the engine's share."""

    id: str
    received_at_s: float
    principal: Principal | None = None
    call: Call | None = None
    lease: Lease | None = None
    replica: str | None = None
    attempts: int = 0
    upstream_s: float = 0.0
    error: BaseException | None = None

    @property
    def outcome(self) -> Outcome:
        """A caller who has the whole reply has been served, however his connection ended after that."""
        if self.error is None or (self.lease is not None and self.lease.delivery.complete):
            return Outcome.OK
        for fault, outcome in FAULTS:
            if isinstance(self.error, fault):
                return outcome
        return Outcome.FAILED

    @property
    def error_type(self) -> str | None:
        """The class of the error: a bounded set of words, for `error.type`."""
        return None if self.outcome is Outcome.OK else type(self.error).__name__

    @property
    def model(self) -> str:
        """The model's canonical name; `none` while it is unknown, so that callers cannot invent label values."""
        return self.call.model if self.call is not None else "none"

    @property
    def usage(self) -> Usage | None:
        """What was charged, once the lease is settled."""
        return self.lease.charged if self.lease is not None else None

    @property
    def waited_s(self) -> float:
        """How long the call waited for its turn."""
        return self.lease.waited_s if self.lease is not None else 0.0

    @property
    def first_token_s(self) -> float | None:
        """From the call's arrival to its first byte, where a stream came so far."""
        first_at_s = self.lease.delivery.first_at_s if self.lease is not None else None
        return None if first_at_s is None else first_at_s - self.received_at_s
