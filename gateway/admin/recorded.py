"""Acts and their record: each is permitted or denied by the role of who acts, and done in one transaction together
with its entry in the audit log. What is denied and what fails has an entry as well.

What an act does is said by whoever calls. Nothing here changes or removes an entry.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from gateway.admin.denials import RoleTooSmall, StoreAway
from gateway.admin.roles import LEAST, Act, Actor, may
from gateway.errors import BadCall
from gateway.store import audit
from gateway.store.database import Database, StoreLost
from gateway.store.rows import AuditEntry

if TYPE_CHECKING:
    from sqlalchemy import Connection

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Note:
    """What the audit log will say of an act: an act finds out more about itself while it is being done."""

    act: Act
    target: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


Changed = Callable[[], Awaitable[None]]


class Recorded:
    """Does acts on a database. `changed` is awaited after each that changed something, until it holds here."""

    def __init__(self, database: Database, now: Callable[[], datetime], changed: Changed) -> None:
        self._database = database
        self._now = now
        self._changed = changed

    async def permit(self, actor: Actor, act: Act, target: str = "") -> None:
        """Raises RoleTooSmall for who may not do this, once that was recorded."""
        try:
            check(actor, act)
        except RoleTooSmall as denied:
            await self._tell(actor, Note(act, target), denied)
            raise

    async def change(
        self,
        actor: Actor,
        note: Note,
        act: "Callable[Concatenate[Connection, P], T]",
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """What `act(connection, ...)` returns, done and recorded, or neither.

        Raises what the act raises, RoleTooSmall, and StoreAway.
        """

        def whole(connection: "Connection") -> T:
            check(actor, note.act)
            done = act(connection, *args, **kwargs)
            audit.append(connection, self._entry(actor, note, "done"))
            return done

        try:
            done = await self._reached(whole)
        except (RoleTooSmall, BadCall, StoreLost) as error:
            await self._tell(actor, note, error)
            raise
        await self._changed()
        return done

    async def record(self, actor: Actor, note: Note) -> None:
        """Records an act that changes nothing and is still worth an entry. Raises RoleTooSmall, StoreAway."""
        await self.permit(actor, note.act, note.target)
        await self._reached(audit.append, self._entry(actor, note, "done"))

    async def read(
        self,
        actor: Actor,
        act: Act,
        look: "Callable[Concatenate[Connection, P], T]",
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """What `look(connection, ...)` finds. Raises RoleTooSmall, StoreAway."""
        await self.permit(actor, act)
        try:
            return await self._database.read(look, *args, **kwargs)
        except StoreLost as error:
            raise _away(error) from error

    async def _reached(self, act: "Callable[Concatenate[Connection, P], T]", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._database.run(act, *args, **kwargs)
        except StoreLost as error:
            raise _away(error) from error

    async def _tell(self, actor: Actor, note: Note, error: Exception) -> None:
        """An entry in a transaction of its own: the act's was taken back."""
        if isinstance(error, RoleTooSmall):
            outcome, why = "denied", {"needed": error.needed.value}
        else:
            outcome, why = "failed", {"why": str(error)}
        told = Note(note.act, note.target, {**note.details, **why})
        await self._reached(audit.append, self._entry(actor, told, outcome))

    def _entry(self, actor: Actor, note: Note, outcome: str) -> AuditEntry:
        return AuditEntry(
            id=f"act_{secrets.token_hex(12)}",
            at=self._now(),
            actor=actor.name,
            role=actor.role.value,
            action=note.act.value,
            target=note.target,
            outcome=outcome,
            details=note.details,
            address=actor.address,
            call_id=actor.call_id,
        )


def check(actor: Actor, act: Act) -> None:
    """Raises RoleTooSmall for who may not do this."""
    if not may(actor.role, act):
        raise RoleTooSmall(act.value, LEAST[act], actor.role)


def _away(error: StoreLost) -> Exception:
    """A database that is there and will never take this is our own fault, and looks like it."""
    return error if error.refused else StoreAway()
