"""What can be done with keys: made, listed, changed, rotated, revoked. A key itself is known once, when it is made.

Acts on administrators' keys are acts of their own, which take a larger role; whether a key is one is found out in the
transaction that changes it.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.admin.bodies import KeyChange, KeysWanted, NewKey, Rotation, merged
from gateway.admin.cursors import cursor, place
from gateway.admin.declared import Declared
from gateway.admin.denials import FromFile, InTheWay, NotThere
from gateway.admin.recorded import Note, Recorded, check
from gateway.admin.roles import ON_ADMINISTRATORS, Act, Actor
from gateway.errors import BadCall
from gateway.identity.keys import ADMIN_KEY_PREFIX, KEY_PREFIX, digest, new_key
from gateway.settings import AdminKeySettings, KeySettings
from gateway.store import keys, revisions, tenants
from gateway.store.rows import KeyChanges, KeyRow, Missing, Taken, TenantRow

if TYPE_CHECKING:
    from sqlalchemy import Connection

IDENTIFIER = re.compile(r"key_[0-9a-f]{24}")
HINT_LENGTH = 4


class Made(NamedTuple):
    """A key that was made. `secret` is the key itself: it is handed over now and kept nowhere."""

    row: KeyRow
    secret: str


class KeysPage(NamedTuple):
    """Some keys in the order of their names, the file's and the database's, and where the next ones begin."""

    found: Sequence[KeySettings | AdminKeySettings | KeyRow]
    next: str | None


class KeyActs:
    """The acts. Raise NotThere, InTheWay, BadCall, and what `Recorded` raises."""

    def __init__(self, recorded: Recorded, declared: Declared, secret: bytes, now: Callable[[], datetime]) -> None:
        self._recorded = recorded
        self._declared = declared
        self._secret = secret
        self._now = now

    async def create(self, actor: Actor, wanted: NewKey) -> Made:
        """A new key; an administrator's, if a role is wanted."""
        act = Act.KEYS_CREATE if wanted.role is None else Act.ADMINISTRATORS_CREATE
        note = Note(act, wanted.name, wanted.model_dump(mode="json", exclude_unset=True, exclude={"name"}))
        key = new_key(_prefix(wanted.role))
        row = await self._recorded.change(actor, note, self._create, wanted, key)
        return Made(row, key)

    async def listed(self, actor: Actor, wanted: KeysWanted) -> KeysPage:
        """A page of keys. What the file names is never revoked."""
        after = place(wanted.after, 2)
        rows = await self._recorded.read(
            actor,
            Act.KEYS_READ,
            keys.listed,
            limit=wanted.limit + 1,
            after=(after[0], after[1]) if after else None,
            tenant=wanted.tenant,
            revoked=wanted.revoked,
            administrators=None if wanted.kind is None else wanted.kind == "administrator",
            prefix=wanted.prefix or "",
        )
        own = (
            []
            if wanted.revoked
            else [key for key in self._of_file(wanted) if after is None or _place(key) > tuple(after)]
        )
        found = sorted([*own, *rows], key=_place)
        page = found[: wanted.limit]
        return KeysPage(page, cursor(*_place(page[-1])) if len(found) > wanted.limit else None)

    async def one(self, actor: Actor, name: str) -> KeySettings | AdminKeySettings | KeyRow:
        """The key of this identifier or name; of a name that was used again, the one that has it now."""
        await self._recorded.permit(actor, Act.KEYS_READ, name)
        for declared in (self._declared.keys, self._declared.administrators):
            if name in declared:
                return declared[name]
        return await self._recorded.read(actor, Act.KEYS_READ, _found, name)

    async def update(self, actor: Actor, name: str, change: KeyChange) -> KeyRow:
        """Changes what is given."""
        note = Note(Act.KEYS_UPDATE, name, change.model_dump(mode="json", exclude_unset=True))
        return await self._recorded.change(actor, note, partial(self._update, actor, note), name, change)

    async def rotate(self, actor: Actor, name: str, wanted: Rotation) -> Made:
        """A new key for the same rights; the old one opens for the grace that is wanted."""
        note = Note(Act.KEYS_ROTATE, name, {"grace_s": wanted.grace_s})
        words = new_key("")
        row = await self._recorded.change(actor, note, partial(self._rotate, actor, note), name, wanted, words)
        return Made(row, _prefix(row.role) + words)

    async def revoke(self, actor: Actor, name: str) -> KeyRow:
        """Ends a key for ever, and at once."""
        note = Note(Act.KEYS_REVOKE, name)
        return await self._recorded.change(actor, note, partial(self._revoke, actor, note), name)

    # What is done in the transaction.

    def _create(self, connection: "Connection", wanted: NewKey, key: str) -> KeyRow:
        revisions.following(connection)  # Nobody removes the tenant while it gets a key.
        now = self._now()
        if self._declared.has_key(wanted.name):
            raise InTheWay(f"The name `{wanted.name}` is taken by a key in the gateway's settings file.")
        if IDENTIFIER.fullmatch(wanted.name):
            raise BadCall("name: looks like a key's identifier", "name")
        administers = wanted.role is not None
        if not administers and not self._has_tenant(connection, wanted.tenant):
            raise BadCall(f"tenant: there is no tenant `{wanted.tenant}`", "tenant")
        row = KeyRow(
            id=f"key_{secrets.token_hex(12)}",
            name=wanted.name,
            tenant="" if administers else wanted.tenant,
            digest=digest(key, self._secret),
            hint=key[-HINT_LENGTH:],
            created_at=now,
            models=() if administers else wanted.models,
            limits=wanted.limits.model_dump(mode="json", exclude_defaults=True),
            priority=wanted.priority.value if wanted.priority is not None else None,
            metadata=wanted.metadata,
            role=wanted.role.value if wanted.role is not None else None,
            expires_at=wanted.ends_at(now),
        )
        try:
            return keys.add(connection, row)
        except Taken:
            raise InTheWay(f"The name `{wanted.name}` is taken by another key.") from None

    def _update(self, actor: Actor, note: Note, connection: "Connection", name: str, change: KeyChange) -> KeyRow:
        row = self._to_change(connection, actor, note, name)
        given = change.model_fields_set
        if row.role is not None and given & {"models", "limits", "priority"}:
            raise BadCall("An administrator's key calls no model: it has no models, limits or priority.")
        changes: KeyChanges = {}
        if change.models is not None:
            changes["models"] = change.models
        if change.limits is not None:
            changes["limits"] = merged(row.limits, change.limits.model_dump(mode="json", exclude_unset=True))
        if "priority" in given:
            changes["priority"] = change.priority.value if change.priority is not None else None
        if change.metadata is not None:
            changes["metadata"] = labelled(row.metadata, change.metadata)
        if given & {"expires_at", "expires_in_s"}:
            changes["expires_at"] = change.ends_at(self._now())
        note.details = {**note.details, "before": before(row, changes)}
        return keys.update(connection, row.id, changes)

    def _rotate(
        self, actor: Actor, note: Note, connection: "Connection", name: str, wanted: Rotation, words: str
    ) -> KeyRow:
        row, now = self._to_change(connection, actor, note, name), self._now()
        if row.expires_at is not None and row.expires_at <= now:
            raise InTheWay(f"The key `{row.name}` has expired: give it a later `expires_at` first.")
        return keys.rotate(
            connection,
            row.id,
            digest=digest(_prefix(row.role) + words, self._secret),
            hint=words[-HINT_LENGTH:],
            previous_until=now + timedelta(seconds=wanted.grace_s),
        )

    def _revoke(self, actor: Actor, note: Note, connection: "Connection", name: str) -> KeyRow:
        return keys.revoke(connection, self._to_change(connection, actor, note, name).id, self._now())

    def _to_change(self, connection: "Connection", actor: Actor, note: Note, name: str) -> KeyRow:
        """The key, as nobody else changes it now. An act on an administrator's key becomes one of its own."""
        revisions.following(connection)
        if self._declared.has_key(name):
            raise FromFile("key", name)
        row = _found(connection, name)
        note.target, note.details = row.name, {"id": row.id, **note.details}
        if row.role is not None:
            note.act = ON_ADMINISTRATORS[note.act]
            check(actor, note.act)
        if row.revoked_at is not None:
            raise InTheWay(f"The key `{row.name}` was revoked, which is for ever. Make a new one.")
        return row

    def _has_tenant(self, connection: "Connection", name: str) -> bool:
        if name in self._declared.tenants:
            return True
        try:
            return tenants.get(connection, name).removed_at is None
        except Missing:
            return False

    def _of_file(self, wanted: KeysWanted) -> list[KeySettings | AdminKeySettings]:
        found: list[KeySettings | AdminKeySettings] = []
        if wanted.kind != "administrator":
            found += [key for key in self._declared.keys.values() if wanted.tenant in (None, key.tenant)]
        if wanted.kind != "caller" and wanted.tenant is None:
            found += self._declared.administrators.values()
        return [key for key in found if key.name.startswith(wanted.prefix or "")]


def state_of(row: KeyRow, now: datetime) -> str:
    """In one word, whether a key opens."""
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= now else "active"


def labelled(old: Any, change: Any) -> dict[str, str]:
    """Metadata after a change. Raises BadCall for too many."""
    found = merged(old, change)
    if len(found) > 16:
        raise BadCall("metadata: must have at most 16 texts", "metadata")
    return found


def before(row: KeyRow | TenantRow, changes: Iterable[str]) -> dict[str, Any]:
    """What is about to change, as it was: for the audit log."""
    found = {name: getattr(row, name) for name in changes}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in found.items()}


def _prefix(role: str | None) -> str:
    return KEY_PREFIX if role is None else ADMIN_KEY_PREFIX


def _found(connection: "Connection", name: str) -> KeyRow:
    try:
        return keys.get(connection, name) if IDENTIFIER.fullmatch(name) else keys.named(connection, name)
    except Missing:
        raise NotThere("key", name) from None


def _place(key: KeySettings | AdminKeySettings | KeyRow) -> tuple[str, str]:
    match key:
        case KeyRow():
            return key.name, key.id
        case KeySettings():
            return key.name, ""
        case AdminKeySettings():
            return key.name, "!"
