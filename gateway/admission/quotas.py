"""Quotas: each limit that holds a call, as a value. What they count and over what time; not how much of it is used.

The state of a quota is kept by a limiter, in this process or in Redis, under the quota's `id`, which is the same in
every gateway. Which quotas hold a call is `rulebook.py`'s business.
"""

import enum
from typing import NamedTuple

from gateway.settings import OnLoss


class Kind(enum.StrEnum):
    """How use is given back: evenly as time passes, when the call ends, or when the calendar turns."""

    RATE = "rate"
    SLOTS = "slots"
    DAY = "day"
    MONTH = "month"


class Unit(enum.StrEnum):
    """What is counted. COST is in millionths of the cost unit."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    COST = "cost"
    CALLS = "calls"


class Quota(NamedTuple):
    """One limit of one owner.

    `size` units of RATE come back evenly within `period_s`; of the other kinds `period_s` is 0. `owner` and `limit`
    are how a refusal names it: `tenant acme`, `tokens_per_minute`. Of one that is `shared` among tenants none is told
    how it stands: that would tell of the others.
    """

    id: str
    owner: str
    limit: str
    kind: Kind
    unit: Unit
    size: int
    period_s: float = 0.0
    on_loss: OnLoss = OnLoss.SHARE
    shared: bool = False

    def share(self, gateways: int) -> "Quota":
        """The part of it that each of so many gateways may use by itself: at least one unit."""
        return self._replace(size=max(1, self.size // max(1, gateways)))


class Demand(NamedTuple):
    """What a call takes of quotas, or gives back of them, by unit. A call always takes one of CALLS."""

    requests: int
    tokens: int
    cost: int = 0

    def of(self, unit: Unit) -> int:
        match unit:
            case Unit.REQUESTS:
                return self.requests
            case Unit.TOKENS:
                return self.tokens
            case Unit.COST:
                return self.cost
            case Unit.CALLS:
                return 1


class Standing(NamedTuple):
    """A quota after a reservation: whole units left, and seconds until all of it is there again."""

    quota: Quota
    left: int
    full_in_s: float
