"""Principals and tenants: who a call is made by and for, and which models it may name; and who administers."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from gateway.settings import NO_BUDGET, UNLIMITED, Budget, Limits, Priority, Role

EVERY_MODEL = ("*",)


@dataclass(frozen=True, slots=True, eq=False)
class Tenant:
    """The owner of shared limits and a budget. `cache_salt` keeps its prompts apart in engines' prefix caches.

    `weight` is its share of busy engines, against other tenants' weights.
    """

    name: str
    limits: Limits
    cache_salt: str = field(repr=False)
    models: tuple[str, ...] = EVERY_MODEL
    budget: Budget = NO_BUDGET
    weight: float = 1.0
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """Who calls, acting for a tenant. `id` is unlike any other's; `name` is what logs and refusals call it.

    Equal to itself alone: what is known of a caller changes by being replaced.
    """

    id: str
    name: str
    tenant: Tenant
    models: tuple[str, ...]
    limits: Limits = UNLIMITED
    priority: Priority = Priority.NORMAL

    def may_call(self, model: str) -> bool:
        """Whether `model`, a canonical name, matches a pattern of the caller's own and one of his tenant's."""
        return _matches(self.models, model) and _matches(self.tenant.models, model)


class Administrator(NamedTuple):
    """Who acts on keys, tenants and what was used; never a caller."""

    name: str
    role: Role


def _matches(patterns: tuple[str, ...], model: str) -> bool:
    return "*" in patterns or any(fnmatchcase(model, pattern) for pattern in patterns)
