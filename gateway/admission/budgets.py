"""What of tenants' budgets is used up, as the books have it: told to a limiter, which knows only what it saw itself."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from gateway.admission.quotas import Kind, Unit
from gateway.admission.rulebook import budget_quotas
from gateway.admission.windows import window
from gateway.identity.principal import Tenant


class Spent(Protocol):
    """What a tenant used up in a day and in its month so far."""

    @property
    def day_tokens(self) -> int: ...
    @property
    def day_cost_micros(self) -> int: ...
    @property
    def month_tokens(self) -> int: ...
    @property
    def month_cost_micros(self) -> int: ...


class Seed(NamedTuple):
    """So much of a quota is used in a window."""

    quota_id: str
    stamp: int
    used: int


def seeds(tenants: Iterable[Tenant], spent: Mapping[str, Spent], wall_s: float) -> Iterator[Seed]:
    """One for each budget of which something is used."""
    for tenant in tenants:
        used = spent.get(tenant.name)
        if used is None:
            continue
        amounts = {
            (Kind.DAY, Unit.TOKENS): used.day_tokens,
            (Kind.DAY, Unit.COST): used.day_cost_micros,
            (Kind.MONTH, Unit.TOKENS): used.month_tokens,
            (Kind.MONTH, Unit.COST): used.month_cost_micros,
        }
        for quota in budget_quotas(tenant):
            amount = amounts[quota.kind, quota.unit]
            if amount:
                yield Seed(quota.id, window(quota.kind, wall_s).stamp, amount)
