"""Administration as a whole: all acts there are, over one database and one record of them. Knows nothing of HTTP."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

from gateway.admin.declared import Declared
from gateway.admin.keys import KeyActs
from gateway.admin.recorded import Recorded
from gateway.admin.records import Records
from gateway.admin.roles import Act, Actor
from gateway.admin.tenants import TenantActs
from gateway.store.database import Database

Status = Callable[[], Mapping[str, str]]
"""What the gateway's parts say of themselves, by name."""


class Administration:
    """`keys`, `tenants` and `records` hold the acts; every one takes the actor first and judges his role.

    Args:
        database: Where keys, tenants, usage and the audit log are.
        declared: What the settings file names.
        secret: The secret under which keys are hashed.
        now: Wall time, aware and in UTC.
        changed: Awaited after each change of keys or tenants; other gateways find out by themselves.
        status: What the parts of this gateway say of themselves.
        unit: What the cost unit is called.
    """

    def __init__(
        self,
        database: Database,
        declared: Declared,
        secret: bytes,
        *,
        now: Callable[[], datetime],
        changed: Callable[[], Awaitable[None]],
        status: Status,
        unit: str,
    ) -> None:
        self._recorded = Recorded(database, now, changed)
        self._status = status
        self.keys = KeyActs(self._recorded, declared, secret, now)
        self.tenants = TenantActs(self._recorded, declared, now)
        self.records = Records(self._recorded, now)
        self.declared = declared
        self.now = now
        self.unit = unit

    async def permit(self, actor: Actor, act: Act, target: str = "") -> None:
        """Raises RoleTooSmall, recorded, for who may not do this; before anything of what he sent is read."""
        await self._recorded.permit(actor, act, target)

    async def status(self, actor: Actor) -> Mapping[str, str]:
        """What the gateway's parts say of themselves."""
        await self._recorded.permit(actor, Act.STATUS_READ)
        return self._status()
