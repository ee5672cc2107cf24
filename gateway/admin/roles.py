"""Who may do what: the acts that there are, and the least role that each of them takes.

A table and two questions to it. Who somebody is was found out before, by `identity`.
"""

import enum
from collections.abc import Mapping
from typing import NamedTuple

from gateway.settings import Role


class Act(enum.StrEnum):
    """What an administrator can do; the values are the words of the audit log."""

    KEYS_READ = "keys.read"
    KEYS_CREATE = "keys.create"
    KEYS_UPDATE = "keys.update"
    KEYS_ROTATE = "keys.rotate"
    KEYS_REVOKE = "keys.revoke"
    ADMINISTRATORS_CREATE = "administrators.create"
    ADMINISTRATORS_UPDATE = "administrators.update"
    ADMINISTRATORS_ROTATE = "administrators.rotate"
    ADMINISTRATORS_REVOKE = "administrators.revoke"
    TENANTS_READ = "tenants.read"
    TENANTS_CREATE = "tenants.create"
    TENANTS_UPDATE = "tenants.update"
    TENANTS_REMOVE = "tenants.remove"
    USAGE_READ = "usage.read"
    USAGE_EXPORT = "usage.export"
    AUDIT_READ = "audit.read"
    AUDIT_EXPORT = "audit.export"
    STATUS_READ = "status.read"


class Actor(NamedTuple):
    """An administrator in one call: who he is, from where he calls, and the call's identifier."""

    name: str
    role: Role
    address: str
    call_id: str


RANKS: Mapping[Role, int] = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}

LEAST: Mapping[Act, Role] = {
    Act.KEYS_READ: Role.VIEWER,
    Act.TENANTS_READ: Role.VIEWER,
    Act.USAGE_READ: Role.VIEWER,
    Act.USAGE_EXPORT: Role.VIEWER,
    Act.STATUS_READ: Role.VIEWER,
    Act.KEYS_CREATE: Role.OPERATOR,
    Act.KEYS_UPDATE: Role.OPERATOR,
    Act.KEYS_ROTATE: Role.OPERATOR,
    Act.KEYS_REVOKE: Role.OPERATOR,
    Act.AUDIT_READ: Role.OPERATOR,
    Act.AUDIT_EXPORT: Role.OPERATOR,
    Act.TENANTS_CREATE: Role.ADMIN,
    Act.TENANTS_UPDATE: Role.ADMIN,
    Act.TENANTS_REMOVE: Role.ADMIN,
    Act.ADMINISTRATORS_CREATE: Role.ADMIN,
    Act.ADMINISTRATORS_UPDATE: Role.ADMIN,
    Act.ADMINISTRATORS_ROTATE: Role.ADMIN,
    Act.ADMINISTRATORS_REVOKE: Role.ADMIN,
}

# Acts on callers' keys, and the same on administrators': who may do the first may not by that raise himself.
ON_ADMINISTRATORS: Mapping[Act, Act] = {
    Act.KEYS_CREATE: Act.ADMINISTRATORS_CREATE,
    Act.KEYS_UPDATE: Act.ADMINISTRATORS_UPDATE,
    Act.KEYS_ROTATE: Act.ADMINISTRATORS_ROTATE,
    Act.KEYS_REVOKE: Act.ADMINISTRATORS_REVOKE,
}

# What changes nothing and takes nothing away is not in the audit log, unless it was denied.
UNRECORDED = frozenset({Act.KEYS_READ, Act.TENANTS_READ, Act.USAGE_READ, Act.AUDIT_READ, Act.STATUS_READ})


def may(role: Role, act: Act) -> bool:
    """Whether a role is enough for an act."""
    return RANKS[role] >= RANKS[LEAST[act]]
