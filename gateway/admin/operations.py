"""The operations of the admin API as one table: where each is, which act it is, what it takes and what comes back.

Routing, permission, the OpenAPI document and the tests that try every route read this table, so none is forgotten.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from gateway.admin import bodies
from gateway.admin.bodies import Body
from gateway.admin.roles import Act
from gateway.errors import NoSuchRoute, WrongMethod

PREFIX = "/admin/v1"
CHANGING = frozenset({"POST", "PATCH", "PUT"})


class Operation(NamedTuple):
    """One operation. `takes` is read from the body of what changes, and else from the query.

    `act` None: every administrator may. `gives` names a schema of the document, `status` is that of success.
    """

    method: str
    path: str
    name: str
    act: Act | None
    summary: str
    takes: type[Body] = bodies.Nothing
    gives: str = "Anything"
    status: int = 200

    @property
    def in_body(self) -> bool:
        """Whether what it takes is in the body."""
        return self.method in CHANGING

    @property
    def pattern(self) -> re.Pattern[str]:
        """Which paths it is at. Names may hold slashes, so the longer path is the more particular one."""
        return re.compile(re.escape(PREFIX + self.path).replace(r"\{name\}", "(?P<name>.+)"), re.DOTALL)


OPERATIONS: Sequence[Operation] = (
    Operation("GET", "/whoami", "whoAmI", None, "Who is asking, and what he may do", gives="Whoami"),
    Operation("GET", "/status", "getStatus", Act.STATUS_READ, "What the gateway's parts say of themselves"),
    Operation("GET", "/openapi.json", "describe", None, "This document"),
    Operation("GET", "/keys", "listKeys", Act.KEYS_READ, "Keys, by name", bodies.KeysWanted, "Keys"),
    Operation("POST", "/keys", "createKey", Act.KEYS_CREATE, "Make a key", bodies.NewKey, "MadeKey", 201),
    Operation("POST", "/keys/{name}/rotate", "rotateKey", Act.KEYS_ROTATE, "Replace a key", bodies.Rotation, "MadeKey"),
    Operation("POST", "/keys/{name}/revoke", "revokeKey", Act.KEYS_REVOKE, "End a key for ever", gives="Key"),
    Operation("GET", "/keys/{name}", "getKey", Act.KEYS_READ, "One key, by identifier or name", gives="Key"),
    Operation("PATCH", "/keys/{name}", "updateKey", Act.KEYS_UPDATE, "Change a key", bodies.KeyChange, "Key"),
    Operation("GET", "/tenants", "listTenants", Act.TENANTS_READ, "Tenants, by name", bodies.TenantsWanted, "Tenants"),
    Operation("POST", "/tenants", "createTenant", Act.TENANTS_CREATE, "Make a tenant", bodies.NewTenant, "Tenant", 201),
    Operation(
        "GET", "/tenants/{name}", "getTenant", Act.TENANTS_READ, "One tenant, and what it used", gives="TenantAndSpent"
    ),
    Operation(
        "PATCH",
        "/tenants/{name}",
        "updateTenant",
        Act.TENANTS_UPDATE,
        "Change a tenant",
        bodies.TenantChange,
        "Tenant",
    ),
    Operation(
        "DELETE",
        "/tenants/{name}",
        "removeTenant",
        Act.TENANTS_REMOVE,
        "Remove a tenant",
        bodies.Removal,
        "RemovedTenant",
    ),
    Operation("GET", "/usage", "sumUsage", Act.USAGE_READ, "What was used, summed", bodies.SumsWanted, "Sums"),
    Operation("GET", "/usage/export", "exportSums", Act.USAGE_EXPORT, "The sums as a file", bodies.SumsExport, "File"),
    Operation(
        "GET", "/usage/records", "listRecords", Act.USAGE_READ, "Calls, newest first", bodies.RecordsWanted, "Records"
    ),
    Operation(
        "GET",
        "/usage/records/export",
        "exportRecords",
        Act.USAGE_EXPORT,
        "The calls as a file",
        bodies.RecordsExport,
        "File",
    ),
    Operation(
        "GET",
        "/audit",
        "listEntries",
        Act.AUDIT_READ,
        "Acts of administrators, newest first",
        bodies.EntriesWanted,
        "Entries",
    ),
    Operation(
        "GET",
        "/audit/export",
        "exportEntries",
        Act.AUDIT_EXPORT,
        "The audit log as JSON lines",
        bodies.EntriesExport,
        "File",
    ),
)


class Operations:
    """The table, to be asked for the operation of a call."""

    def __init__(self, table: Sequence[Operation] = OPERATIONS) -> None:
        self._patterns = [(operation.pattern, operation) for operation in table]

    def find(self, method: str, path: str) -> tuple[Operation, str]:
        """The operation, and the name in its path. Raises NoSuchRoute, WrongMethod."""
        allowed = []
        for pattern, operation in self._patterns:
            found = pattern.fullmatch(path)
            if found and operation.method == method:
                return operation, found.groupdict().get("name", "")
            if found:
                allowed.append(operation.method)
        if not allowed:
            raise NoSuchRoute(method, path)
        raise WrongMethod(method, ", ".join(sorted(set(allowed))))
