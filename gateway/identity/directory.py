"""Who exists: keys and tenants, from the settings file and from the database, as they are looked up on every call.

All of them are in memory, so a call never waits for a database, and one that is lost changes nothing for known keys.
Only keyed digests are held: without the secret they say nothing about the keys, and a lookup by digest tells an
attacker who times it nothing, because he cannot compute digests that lie near another's. Where file and database
name the same thing, the file wins.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from gateway.identity.keys import cache_salt, digest
from gateway.identity.principal import Administrator, Principal, Tenant
from gateway.settings import (
    LEAST_WEIGHT,
    MOST_WEIGHT,
    AdminKeySettings,
    Budget,
    IdentitySettings,
    KeySettings,
    Limits,
    Priority,
    Role,
    TenantSettings,
)
from gateway.store.rows import KeyRow, TenantRow


class Known(NamedTuple):
    """What a digest stands for, and until when (wall seconds)."""

    who: Principal | Administrator
    until_s: float | None


class Directory:
    """`<Directory 3 keys, 2 tenants, revision 17>`. `following.py` alone changes it, in parts where there is much."""

    def __init__(
        self,
        settings: IdentitySettings,
        administrators: Iterable[AdminKeySettings],
        secret: bytes,
        wall: Callable[[], float],
        *,
        complete: bool = True,
        unreadable: Callable[[str], None] = lambda what: None,
    ) -> None:
        """`complete` is False while there is a database that has not been read yet. `unreadable` is told of rows."""
        self.complete = complete
        self._unreadable = unreadable
        self._secret = secret
        self._wall = wall
        self._known: dict[str, Known] = {}
        self._tenants: dict[str, Tenant] = {}
        # What the database holds, by name and identifier; and the digests that a key of it is known by.
        self._rows: dict[str, KeyRow] = {}
        self._digests: dict[str, tuple[str, ...]] = {}
        self._keys_of: dict[str, set[str]] = {}
        self.revision = 0
        self.file_tenants = frozenset(tenant.name for tenant in settings.tenants)
        for tenant in settings.tenants:
            self._tenants[tenant.name] = self._of_tenant(tenant)
        for key in settings.keys:
            self._known[key.digest] = _of_key(key, self._tenants[key.tenant])
        held = tuple(administrators)
        self.file_keys = frozenset([*(key.name for key in settings.keys), *(each.name for each in held)])
        for administrator in held:
            self._known[administrator.digest] = Known(Administrator(administrator.name, administrator.role), None)
        self._file_digests = frozenset(self._known)

    def find(self, credential: str) -> Principal | Administrator | None:
        """Whom a key stands for; None for one that is wrong, expired or revoked."""
        known = self._known.get(digest(credential, self._secret))
        if known is None or (known.until_s is not None and known.until_s <= self._wall()):
            return None
        return known.who

    def tenant(self, name: str) -> Tenant | None:
        return self._tenants.get(name)

    def tenants(self) -> Iterable[Tenant]:
        return self._tenants.values()

    def restart(self, revision: int, tenants: Iterable[TenantRow], keys: Iterable[KeyRow]) -> None:
        """Takes in all that the database holds, and forgets what else was known of it: it went back in time."""
        for row in self._rows.values():
            for known in self._digests.pop(row.id, ()):
                del self._known[known]
        self._rows.clear()
        self._keys_of.clear()
        self._tenants = {name: tenant for name, tenant in self._tenants.items() if name in self.file_tenants}
        self.revision = 0
        self.follow(revision, tenants, keys)

    def follow(self, revision: int, tenants: Iterable[TenantRow], keys: Iterable[KeyRow]) -> None:
        """Takes in what has changed in the database up to `revision`: it knows all there is then."""
        self.learn(tenants, keys)
        self.revision = revision
        self.complete = True

    def learn(self, tenants: Iterable[TenantRow], keys: Iterable[KeyRow]) -> None:
        """Takes in a part of what has changed.

        A row that cannot be understood, as a later version may write it, is told of and opens nothing.
        """
        touched = set[str]()
        for tenant in tenants:
            if tenant.name not in self.file_tenants:
                touched |= self._keys_of.get(tenant.name, set())
                self._tenants.pop(tenant.name, None)
                if tenant.removed_at is None:
                    try:
                        self._tenants[tenant.name] = self._of_row(tenant)
                    except ValueError:
                        self._unreadable(f"tenant {tenant.name}")
        for key in keys:
            known = self._rows.get(key.id)
            if known is not None:
                self._keys_of[known.tenant].discard(key.id)
            self._rows[key.id] = key
            self._keys_of.setdefault(key.tenant, set()).add(key.id)
            touched.add(key.id)
        for identifier in touched:
            self._learn(self._rows[identifier])

    def _learn(self, row: KeyRow) -> None:
        """Makes what is known of a key agree with its row and its tenant."""
        for known in self._digests.pop(row.id, ()):
            del self._known[known]
        if row.revoked_at is not None:
            del self._rows[row.id]
            self._keys_of[row.tenant].discard(row.id)
            return
        try:
            who = self._who(row)
        except ValueError:
            self._unreadable(f"key {row.name}")
            return
        if row.name in self.file_keys or who is None:
            return
        until_s = row.expires_at.timestamp() if row.expires_at else None
        held = {row.digest: until_s}
        if row.previous_digest is not None and row.previous_until is not None:
            grace_s = row.previous_until.timestamp()
            held[row.previous_digest] = grace_s if until_s is None else min(until_s, grace_s)
        held = {each: until for each, until in held.items() if each not in self._file_digests}
        self._known.update({each: Known(who, until) for each, until in held.items()})
        self._digests[row.id] = tuple(held)

    def _who(self, row: KeyRow) -> Principal | Administrator | None:
        _check_patterns(row.models)
        if row.role is not None:
            return Administrator(row.name, Role(row.role))
        tenant = self._tenants.get(row.tenant)
        if tenant is None:
            return None
        priority = Priority(row.priority) if row.priority else tenant.priority
        limits = Limits.model_validate(row.limits)
        return Principal(f"key/{row.id}", row.name, tenant, row.models, limits, priority)

    def _of_tenant(self, tenant: TenantSettings) -> Tenant:
        return Tenant(
            tenant.name,
            tenant.limits,
            cache_salt(tenant.name, self._secret),
            tenant.models,
            tenant.budget,
            tenant.weight,
            tenant.priority,
        )

    def _of_row(self, row: TenantRow) -> Tenant:
        if not LEAST_WEIGHT <= row.weight <= MOST_WEIGHT:
            raise ValueError("no such weight")
        _check_patterns(row.models)
        return Tenant(
            row.name,
            Limits.model_validate(row.limits),
            cache_salt(row.name, self._secret),
            row.models,
            Budget.model_validate(row.budget),
            row.weight,
            Priority(row.priority),
        )

    def __repr__(self) -> str:
        return f"<Directory {len(self._known)} keys, {len(self._tenants)} tenants, revision {self.revision}>"


def _of_key(key: KeySettings, tenant: Tenant) -> Known:
    priority = key.priority or tenant.priority
    principal = Principal(f"key/{key.name}", key.name, tenant, key.models, key.limits, priority)
    return Known(principal, key.expires_at.timestamp() if key.expires_at else None)


def _check_patterns(models: object) -> None:
    if not isinstance(models, tuple) or not all(isinstance(pattern, str) for pattern in models):
        raise ValueError("no patterns")
