"""Who may do what in the admin API: nothing without a credential, with one what its role permits; all of it told."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.admin.operations import OPERATIONS, PREFIX, Operation
from gateway.admin.roles import LEAST, Act, may
from gateway.identity.keys import digest
from gateway.settings import Role
from tests.gateway.administering import CALLER, KEYS, Desk, administering
from tests.harness import SECRET

pytestmark = pytest.mark.anyio

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
# Who may do what, once more and by hand: the least role, by the operation's name.
PERMITTED = {
    "whoAmI": "viewer",
    "describe": "viewer",
    "getStatus": "viewer",
    "listKeys": "viewer",
    "getKey": "viewer",
    "listTenants": "viewer",
    "getTenant": "viewer",
    "sumUsage": "viewer",
    "exportSums": "viewer",
    "listRecords": "viewer",
    "exportRecords": "viewer",
    "createKey": "operator",
    "updateKey": "operator",
    "rotateKey": "operator",
    "revokeKey": "operator",
    "listEntries": "operator",
    "exportEntries": "operator",
    "createTenant": "admin",
    "updateTenant": "admin",
    "removeTenant": "admin",
}
RANKS = ("viewer", "operator", "admin")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with administering(tmp_path) as found:
        yield found


def path_of(operation: Operation) -> str:
    return PREFIX + operation.path.replace("{name}", "alice")


def body_of(operation: Operation) -> Any:
    """What the operation can do something with."""
    bodies = {
        "createKey": {"name": "new"},
        "updateKey": {"priority": "low"},
        "createTenant": {"name": "new"},
        "updateTenant": {"weight": 2},
    }
    return bodies.get(operation.name, {}) if operation.in_body else None


def test_every_operation_and_every_act_has_its_least_role() -> None:
    """The tables agree, and nothing is left out of them."""
    assert {operation.name for operation in OPERATIONS} == set(PERMITTED)
    for operation in OPERATIONS:
        assert PERMITTED[operation.name] == (LEAST[operation.act] if operation.act else "viewer")
    assert set(LEAST) == set(Act)
    assert [may(Role.OPERATOR, act) for act in Act if act.startswith("administrators.")] == [False] * 4


@pytest.mark.parametrize(
    "path", [*sorted({path_of(each) for each in OPERATIONS}), "/", "/%0d%0a", "/livez", "/v1/models", PREFIX]
)
async def test_nothing_is_answered_without_an_administrators_credential(desk: Desk, path: str) -> None:
    """401 for every path and method, also for those that do not exist; with the same words for every wrong key."""
    for method in METHODS:
        nobody = await desk.call(method, path, role=None)
        assert nobody.status == 401, (method, path)
        assert nobody.header("www-authenticate") == "Bearer"
        wrong = [
            await desk.call(method, path, key=key)
            for key in (CALLER, "pga-wrong", "pg-wrong", "x" * 600, digest(KEYS["admin"], SECRET.encode()))
        ]
        assert [reply.status for reply in wrong] == [401] * 5
        assert len({reply.body for reply in wrong}) == 1
        for reply in (nobody, *wrong):
            assert reply.header("x-request-id")
            assert reply.header("cache-control") == "no-store"
    assert not await desk.entries()


@pytest.mark.parametrize("headers", [{"cookie": f"key={KEYS['admin']}"}, {"x-api-key": KEYS["admin"]}])
async def test_a_credential_is_taken_from_one_place_only(desk: Desk, headers: dict[str, str]) -> None:
    """A browser that is made to call has cookies, but no bearer token."""
    assert (await desk.call("GET", f"{PREFIX}/keys", role=None, headers=headers)).status == 401
    assert (await desk.call("GET", f"{PREFIX}/keys?key={KEYS['admin']}", role=None)).status == 401


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize("role", RANKS)
async def test_a_role_permits_what_it_permits(desk: Desk, operation: Operation, role: str) -> None:
    """403 with the role that is needed, before what was sent is read, and an entry; or else not 403."""
    await desk.call("POST", f"{PREFIX}/keys", {"name": "alice"})
    await desk.call("POST", f"{PREFIX}/tenants", {"name": "alice"})
    before = len(await desk.entries())
    needed = PERMITTED[operation.name]
    if RANKS.index(role) >= RANKS.index(needed):
        reply = await desk.call(operation.method, path_of(operation), body_of(operation), role=role)
        assert reply.status == operation.status, reply.body
        return
    reply = await desk.call(operation.method, path_of(operation), {"what": "ever"}, role=role)
    error = reply.json["error"]
    assert (reply.status, error["type"], error["code"]) == (403, "permission_error", "role_too_small")
    assert f"the role `{needed}`" in error["message"]
    [entry] = (await desk.entries())[before:]
    assert (entry.actor, entry.role, entry.action) == (f"the-{role}", role, operation.act)
    assert (entry.outcome, entry.details) == ("denied", {"needed": needed})


async def test_an_operator_makes_no_administrator(desk: Desk) -> None:
    """Of no role: a larger one would be his, and a smaller one is not his to give."""
    for role in RANKS:
        reply = await desk.call("POST", f"{PREFIX}/keys", {"name": "mine", "role": role}, role="operator")
        assert reply.status == 403
        assert "the role `admin`" in reply.json["error"]["message"]
    assert [entry.outcome for entry in await desk.entries()] == ["denied"] * 3
    assert {entry.action for entry in await desk.entries()} == {"administrators.create"}
    assert not (await desk.get(f"{PREFIX}/keys?prefix=mine"))["data"]


async def test_an_operator_touches_no_administrators_key(desk: Desk) -> None:
    """To rotate an admin's key would be to become the admin: by its name or by its identifier, it is denied."""
    made = (await desk.call("POST", f"{PREFIX}/keys", {"name": "root", "role": "admin"})).json
    for name in ("root", made["id"]):
        for method, path, body in (
            ("POST", "/rotate", {"grace_s": 0}),
            ("POST", "/revoke", {}),
            ("PATCH", "", {"expires_in_s": 60}),
        ):
            reply = await desk.call(method, f"{PREFIX}/keys/{name}{path}", body, role="operator")
            assert (reply.status, reply.json["error"]["code"]) == (403, "role_too_small")
    denied = [entry for entry in await desk.entries() if entry.outcome == "denied"]
    assert [entry.target for entry in denied] == ["root"] * 6
    assert (await desk.look()).find(made["key"]) is not None


async def test_an_administrators_key_is_changed_by_an_admin(desk: Desk) -> None:
    """And the log names it as what it is."""
    await desk.call("POST", f"{PREFIX}/keys", {"name": "chief", "role": "admin"})
    assert (await desk.call("PATCH", f"{PREFIX}/keys/chief", {"expires_in_s": 60})).status == 200
    assert (await desk.call("PATCH", f"{PREFIX}/keys/chief", {"models": ["*"]})).status == 400
    assert (await desk.call("POST", f"{PREFIX}/keys/chief/rotate")).status == 200
    assert (await desk.call("POST", f"{PREFIX}/keys/chief/revoke")).status == 200
    told = [(entry.action, entry.outcome) for entry in await desk.entries()]
    assert told == [
        ("administrators.create", "done"),
        ("administrators.update", "done"),
        ("administrators.update", "failed"),
        ("administrators.rotate", "done"),
        ("administrators.revoke", "done"),
    ]


async def test_who_asks_is_told_who_he_is(desk: Desk) -> None:
    """Name, role, and what that permits."""
    found = await desk.get(f"{PREFIX}/whoami", "operator")
    assert (found["name"], found["role"]) == ("the-operator", "operator")
    assert "keys.rotate" in found["may"]
    assert "tenants.create" not in found["may"]


async def test_what_is_not_there_is_not_found_by_who_may_look(desk: Desk) -> None:
    """404 and 405, in the shape of all errors."""
    reply = await desk.call("GET", f"{PREFIX}/nothing")
    assert (reply.status, reply.json["error"]["code"]) == (404, None)
    for method, path, allowed in (
        ("PUT", "/keys", "GET, POST"),
        ("DELETE", "/keys/alice", "GET, PATCH"),
        ("HEAD", "/usage/export", "GET"),
        ("POST", "/whoami", "GET"),
    ):
        reply = await desk.call(method, PREFIX + path)
        assert (reply.status, reply.header("allow")) == (405, allowed)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/keys?limit=0", "limit: must be at least 1"),
        ("/keys?limit=1001", "limit: must be at most 1000"),
        ("/keys?limit=many", "limit:"),
        ("/keys?after=!", "after: is not `next`"),
        ("/keys?after=WzFd", "after: is not `next`"),
        ("/keys?after=WyJhIl0", "after: is not `next`"),
        ("/usage/records?after=WyJhIiwiYiJd", "after: is not `next`"),
        ("/usage/records?after=WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwiYiJd", "after: is not `next`"),
        ("/keys?colour=red", "colour"),
        ("/keys?limit=1&limit=2", "more than once"),
        ("/keys?tenant=a%0d%0ab", "tenant"),
        ("/keys/a%0d%0ab", "a name that no key or tenant can have"),
        ("/keys/a%00b", "a name that no key or tenant can have"),
        ("/usage?group_by=colour", "group_by"),
        ("/usage?since=2026-03-14&until=2026-03-13", "since: must not be after until"),
        ("/usage?since=2024-01-01", "not be more than 400 days"),
        ("/usage?since=2026", "must be a day"),
        ("/usage/records?since=yesterday", "must be a day"),
        ("/usage/records?since=2026-03-14T00:00:00", "since: must have a time zone"),
        ("/usage/records?until=2026-02-30", "until: must be a day"),
        ("/usage/records?until=0001-01-01T00:00:00%2B14:00", "until: must be in a year from 2000"),
        ("/usage?until=0001-01-01", "until: must be in a year from 2000"),
        ("/usage/records?until=9999-12-31", "until: must be in a year from 2000"),
        ("/audit?action=KEYS", "action"),
    ],
)
async def test_a_query_that_cannot_be_is_refused_with_what_is_wrong(desk: Desk, path: str, told: str) -> None:
    """400, whatever it is."""
    reply = await desk.call("GET", PREFIX + path)
    assert reply.status == 400, reply.body
    assert told in reply.json["error"]["message"]


# The record.


async def test_each_act_leaves_exactly_one_entry(desk: Desk) -> None:
    """Who did what to what, from where, in which call; what failed is told with why, and what was only read is not."""
    steps: list[tuple[str, str, Any, str, str, str]] = [
        ("POST", "/tenants", {"name": "acme"}, "tenants.create", "acme", "done"),
        ("POST", "/tenants", {"name": "acme"}, "tenants.create", "acme", "failed"),
        ("PATCH", "/tenants/acme", {"weight": 2}, "tenants.update", "acme", "done"),
        ("PATCH", "/tenants/default", {"weight": 2}, "tenants.update", "default", "failed"),
        ("POST", "/keys", {"name": "alice", "tenant": "acme"}, "keys.create", "alice", "done"),
        ("POST", "/keys", {"name": "alice", "tenant": "acme"}, "keys.create", "alice", "failed"),
        ("POST", "/keys", {"name": "eve", "tenant": "nobody"}, "keys.create", "eve", "failed"),
        ("PATCH", "/keys/alice", {"priority": "low"}, "keys.update", "alice", "done"),
        ("PATCH", "/keys/nobody", {"priority": "low"}, "keys.update", "nobody", "failed"),
        ("POST", "/keys/alice/rotate", {"grace_s": 60}, "keys.rotate", "alice", "done"),
        ("DELETE", "/tenants/acme", None, "tenants.remove", "acme", "failed"),
        ("POST", "/keys/alice/revoke", {}, "keys.revoke", "alice", "done"),
        ("POST", "/keys/alice/revoke", {}, "keys.revoke", "alice", "failed"),
        ("DELETE", "/tenants/acme", None, "tenants.remove", "acme", "done"),
        ("GET", "/usage/export", None, "usage.export", "sums", "done"),
        ("GET", "/usage/records/export", None, "usage.export", "records", "done"),
        ("GET", "/audit/export", None, "audit.export", "", "done"),
    ]
    for number, (method, path, body, action, target, outcome) in enumerate(steps):
        reply = await desk.call(method, PREFIX + path, body)
        entries = await desk.entries()
        assert len(entries) == number + 1, (method, path, reply.body)
        entry = entries[-1]
        assert (entry.action, entry.target, entry.outcome) == (action, target, outcome)
        assert (entry.actor, entry.role, entry.at) == ("the-admin", "admin", desk.now)
        assert entry.address == "127.0.0.1"
        assert entry.call_id == reply.header("x-request-id")
        assert ("why" in entry.details) == (outcome == "failed")
        desk.advance(1)
    for path in ("/keys", "/keys/alice", "/tenants", "/tenants/acme", "/usage", "/usage/records", "/audit", "/whoami"):
        assert (await desk.call("GET", PREFIX + path)).status == 200
    assert len(await desk.entries()) == len(steps)


async def test_the_log_is_read_newest_first_and_in_pages(desk: Desk) -> None:
    """By who, what, to what and when; as a list or as lines."""
    for number in range(5):
        await desk.call("POST", f"{PREFIX}/keys", {"name": f"key-{number}"}, role="operator" if number % 2 else "admin")
        desk.advance(3600)
    whole = (await desk.get(f"{PREFIX}/audit", "operator"))["data"]
    assert [entry["target"] for entry in whole] == [f"key-{number}" for number in (4, 3, 2, 1, 0)]
    found, after = [], ""
    for _ in range(3):
        page = await desk.get(f"{PREFIX}/audit?limit=2{after}")
        found += page["data"]
        after = f"&after={page['next']}"
    assert found == whole
    assert page["next"] is None
    for query, targets in (
        ("actor=the-operator", [3, 1]),
        ("target=key-2", [2]),
        ("action=keys.create&since=2026-03-14T17:00:00Z", [4, 3, 2]),
        ("until=2026-03-14T17:00:00Z", [1, 0]),
        ("until=2026-03-14", [4, 3, 2, 1, 0]),
        ("since=2026-03-15", []),
        ("action=keys.revoke", []),
    ):
        read = (await desk.get(f"{PREFIX}/audit?{query}"))["data"]
        assert [entry["target"] for entry in read] == [f"key-{number}" for number in targets], query


async def test_the_log_cannot_be_changed_through_the_api(desk: Desk) -> None:
    """There is no operation on it but reading."""
    assert {operation.method for operation in OPERATIONS if operation.path.startswith("/audit")} == {"GET"}
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await desk.call(method, f"{PREFIX}/audit")).status == 405


async def test_a_store_that_is_away_is_said_so(desk: Desk) -> None:
    """503 with when to come back; not a word of where the store is."""
    await desk.lose_database()
    for method, path, body in (
        ("GET", "/keys", None),
        ("POST", "/keys", {"name": "alice"}),
        ("GET", "/usage/export", None),
        ("GET", "/tenants/default", None),
    ):
        reply = await desk.call(method, PREFIX + path, body)
        assert (reply.status, reply.header("retry-after")) == (503, "1")
        assert b"sqlite" not in reply.body
    assert (await desk.call("GET", f"{PREFIX}/whoami")).status == 200
    assert (await desk.call("GET", f"{PREFIX}/status")).status == 200


async def test_the_document_says_what_there_is(desk: Desk) -> None:
    """Every operation, with what it takes; and every reference in it leads somewhere."""
    found = await desk.get(f"{PREFIX}/openapi.json", "viewer")
    named = {
        (method.upper(), path.removeprefix(PREFIX)): described["operationId"]
        for path, methods in found["paths"].items()
        for method, described in methods.items()
    }
    assert named == {(each.method, each.path): each.name for each in OPERATIONS}
    schemas = found["components"]["schemas"]
    text = str(found)
    assert {"NewKey", "KeyChange", "Rotation", "NewTenant", "TenantChange", "Limits", "Budget"} <= set(schemas)
    for word in text.split("'"):
        if word.startswith("#/components/schemas/"):
            assert word.rpartition("/")[2] in schemas
