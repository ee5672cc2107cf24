"""The admin API over HTTP: an ASGI app that asks who calls before it looks at anything else, whatever is called.

Reads what is sent, has it done, and shows what came of it. Which operations there are is a table (`operations.py`);
whether they are permitted is judged by role before what was sent is read, and once more with the act itself.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.admin import bodies, export, views
from gateway.admin.administration import Administration
from gateway.admin.denials import FromFile, InTheWay, NotThere, RoleTooSmall, StoreAway
from gateway.admin.openapi import document
from gateway.admin.operations import Operation, Operations
from gateway.admin.roles import Act, Actor, may
from gateway.edge import rendering
from gateway.edge.asgi import CALL, Message, Receive, Send, address_of, head_of
from gateway.errors import BadCall, GatewayError, UnsupportedMediaType
from gateway.identity.principal import Administrator
from gateway.settings import Name

Authenticate = Callable[[str | None, str], Awaitable[Administrator]]
"""Who presents a bearer token, from an address. Raises what is refused: NoKey, UnknownKey, ..."""

JSON = "application/json"
BODY_TYPES = (b"", b"application/json", b"application/merge-patch+json")
NAME: TypeAdapter[str] = TypeAdapter(Name)

# How what is denied looks; what is not here looks as it does to callers.
ANSWERS: Mapping[type[GatewayError], tuple[int, str, str]] = {
    RoleTooSmall: (403, "permission_error", "role_too_small"),
    NotThere: (404, "invalid_request_error", "not_found"),
    InTheWay: (409, "invalid_request_error", "conflict"),
    FromFile: (409, "invalid_request_error", "managed_by_file"),
}

Row = TypeVar("Row")


class AdminApi:
    """The app. Nothing is answered without an administrator's credential, also not that there is nothing there."""

    def __init__(self, administration: Administration, authenticate: Authenticate, version: str) -> None:
        self._administration = administration
        self._authenticate = authenticate
        self._operations = Operations()
        self._document = orjson.dumps(document(version))
        self._endpoints: Mapping[str, Callable[[Actor, str, Any], Awaitable[Response]]] = {
            "whoAmI": self._whoami,
            "getStatus": self._status,
            "describe": self._describe,
            "listKeys": self._list_keys,
            "createKey": self._create_key,
            "rotateKey": self._rotate_key,
            "revokeKey": self._revoke_key,
            "getKey": self._get_key,
            "updateKey": self._update_key,
            "listTenants": self._list_tenants,
            "createTenant": self._create_tenant,
            "getTenant": self._get_tenant,
            "updateTenant": self._update_tenant,
            "removeTenant": self._remove_tenant,
            "sumUsage": self._sum_usage,
            "exportSums": self._export_sums,
            "listRecords": self._list_records,
            "exportRecords": self._export_records,
            "listEntries": self._list_entries,
            "exportEntries": self._export_entries,
        }

    def routes(self) -> list[Route]:
        """One route that takes everything: what has none of its own must not be answered without a credential."""
        route = Route("/{rest:path}", self)
        route.path_regex = re.compile("/(?P<rest>.*)", re.DOTALL)  # Starlette's stops at line ends.
        return [route]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        begun = False

        async def told(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        request = Request(scope, receive)
        try:
            await (await self._answer(request))(scope, receive, told)
        except GatewayError as error:
            if begun and isinstance(error, StoreAway):
                return  # An exchange that has no end loses its connection: half a file must not look whole.
            if begun:
                raise
            await refusal(error)(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        address = address_of(request)
        who = await self._authenticate(head_of(request).bearer, address)
        actor = Actor(who.name, who.role, address, request.scope["extensions"][CALL])
        operation, name = self._operations.find(request.method, request.scope["path"])
        if name:
            _check_name(name)
        if operation.act is not None:
            await self._administration.permit(actor, operation.act, name)
        return await self._endpoints[operation.name](actor, name, await _sent(request, operation))

    # Who and what.

    async def _whoami(self, actor: Actor, name: str, wanted: bodies.Nothing) -> Response:
        return shown({"name": actor.name, "role": actor.role, "may": [act for act in Act if may(actor.role, act)]})

    async def _status(self, actor: Actor, name: str, wanted: bodies.Nothing) -> Response:
        return shown(dict(await self._administration.status(actor)))

    async def _describe(self, actor: Actor, name: str, wanted: bodies.Nothing) -> Response:
        return Response(self._document, media_type=JSON)

    # Keys.

    async def _list_keys(self, actor: Actor, name: str, wanted: bodies.KeysWanted) -> Response:
        found, after = await self._administration.keys.listed(actor, wanted)
        return page([self._key(key) for key in found], after)

    async def _create_key(self, actor: Actor, name: str, wanted: bodies.NewKey) -> Response:
        made = await self._administration.keys.create(actor, wanted)
        return shown(self._key(made.row) | {"key": made.secret}, 201)

    async def _rotate_key(self, actor: Actor, name: str, wanted: bodies.Rotation) -> Response:
        made = await self._administration.keys.rotate(actor, name, wanted)
        return shown(self._key(made.row) | {"key": made.secret})

    async def _revoke_key(self, actor: Actor, name: str, wanted: bodies.Nothing) -> Response:
        return shown(self._key(await self._administration.keys.revoke(actor, name)))

    async def _get_key(self, actor: Actor, name: str, wanted: bodies.Nothing) -> Response:
        return shown(self._key(await self._administration.keys.one(actor, name)))

    async def _update_key(self, actor: Actor, name: str, wanted: bodies.KeyChange) -> Response:
        return shown(self._key(await self._administration.keys.update(actor, name, wanted)))

    def _key(self, found: Any) -> views.View:
        return views.key(found, self._administration.declared, self._administration.now())

    # Tenants.

    async def _list_tenants(self, actor: Actor, name: str, wanted: bodies.TenantsWanted) -> Response:
        found, after = await self._administration.tenants.listed(actor, wanted)
        return page([views.tenant(tenant) for tenant in found], after)

    async def _create_tenant(self, actor: Actor, name: str, wanted: bodies.NewTenant) -> Response:
        return shown(views.tenant(await self._administration.tenants.create(actor, wanted)), 201)

    async def _get_tenant(self, actor: Actor, name: str, wanted: bodies.Nothing) -> Response:
        found, spent = await self._administration.tenants.one(actor, name)
        return shown(views.tenant(found, spent) | {"unit": self._administration.unit})

    async def _update_tenant(self, actor: Actor, name: str, wanted: bodies.TenantChange) -> Response:
        return shown(views.tenant(await self._administration.tenants.update(actor, name, wanted)))

    async def _remove_tenant(self, actor: Actor, name: str, wanted: bodies.Removal) -> Response:
        row, revoked = await self._administration.tenants.remove(actor, name, wanted)
        return shown(views.tenant(row) | {"revoked_keys": revoked})

    # What was used and done.

    async def _sum_usage(self, actor: Actor, name: str, wanted: bodies.SumsWanted) -> Response:
        found = await self._administration.records.sums(actor, wanted)
        first, last = wanted.range(self._administration.now().date())
        return shown(
            {
                "data": [views.usage_sum(each, wanted.groups) for each in found],
                "since": first,
                "until": last,
                "unit": self._administration.unit,
            }
        )

    async def _export_sums(self, actor: Actor, name: str, wanted: bodies.SumsExport) -> Response:
        pages = await self._administration.records.sums_export(actor, wanted)
        columns = (*wanted.groups, *views.SUM_COLUMNS)
        return file("usage", pages, lambda row: views.usage_sum(row, wanted.groups), columns, wanted.format)

    async def _list_records(self, actor: Actor, name: str, wanted: bodies.RecordsWanted) -> Response:
        found, after = await self._administration.records.records(actor, wanted)
        return page([views.usage_record(record) for record in found], after)

    async def _export_records(self, actor: Actor, name: str, wanted: bodies.RecordsExport) -> Response:
        pages = await self._administration.records.records_export(actor, wanted)
        return file("calls", pages, views.usage_record, views.RECORD_COLUMNS, wanted.format)

    async def _list_entries(self, actor: Actor, name: str, wanted: bodies.EntriesWanted) -> Response:
        found, after = await self._administration.records.entries(actor, wanted)
        return page([views.entry(entry) for entry in found], after)

    async def _export_entries(self, actor: Actor, name: str, wanted: bodies.EntriesExport) -> Response:
        pages = await self._administration.records.entries_export(actor, wanted)
        return file("audit", pages, views.entry, (), "jsonl")


def shown(value: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type=JSON)


def page(rows: Sequence[views.View], after: str | None) -> Response:
    return shown({"data": rows, "next": after})


def file(
    name: str,
    pages: AsyncIterator[Sequence[Row]],
    view: Callable[[Row], views.View],
    columns: Sequence[str],
    form: export.Format,
) -> Response:
    """Rows as a file that comes as it is read."""
    headers = {
        "content-type": export.CONTENT_TYPES[form],
        "content-disposition": f'attachment; filename="{name}.{form}"',
    }
    return StreamingResponse(export.written(pages, view, columns, form), headers=headers)


def refusal(error: GatewayError) -> Response:
    """What was not done, and why."""
    known = rendering.answer_to(error)
    body = rendering.error_body(error)
    status = known.status
    if type(error) in ANSWERS:
        status, kind, code = ANSWERS[type(error)]
        body["error"] |= {"type": kind, "code": code}
    return Response(orjson.dumps(body), status, rendering.error_headers(error), media_type=JSON)


async def _sent(request: Request, operation: Operation) -> Any:
    """What the operation takes. Raises BadCall with every problem."""
    pairs = request.query_params.multi_items()
    if not operation.in_body:
        return bodies.query(operation.takes, dict(pairs), repeated=len(dict(pairs)) != len(pairs))
    bodies.query(bodies.Nothing, dict(pairs))
    kind = head_of(request).headers.get(b"content-type", b"").lower()
    if kind.partition(b";")[0].strip() not in BODY_TYPES:
        raise UnsupportedMediaType(kind.decode("latin-1"))
    return bodies.read(operation.takes, await request.body())


def _check_name(name: str) -> None:
    try:
        NAME.validate_python(name)
    except ValidationError:
        raise BadCall("The path holds a name that no key or tenant can have.") from None
