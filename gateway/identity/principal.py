"""Principals and tenants: who a call is made by and for, and which models it may name."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from gateway.settings import Limits


@dataclass(frozen=True, slots=True)
class Tenant:
    """The owner of shared limits. `cache_salt` keeps its prompts apart in engines' prefix caches."""

    name: str
    limits: Limits
    cache_salt: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Principal:
    """One key, acting for a tenant."""

    name: str
    tenant: Tenant
    models: tuple[str, ...]
    limits: Limits

    def may_call(self, model: str) -> bool:
        """Whether `model`, a canonical name, matches one of the permitted patterns."""
        return "*" in self.models or any(fnmatchcase(model, pattern) for pattern in self.models)
