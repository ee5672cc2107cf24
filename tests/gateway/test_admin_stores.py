"""The admin API on both databases: who acts at once, and answers that are what the document says."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from gateway.admin.operations import OPERATIONS, PREFIX
from gateway.store import usage
from tests.databases import postgres_server, store_url
from tests.gateway.administering import NOW, Desk, administering, used

__all__ = ["postgres_server", "store_url"]

pytestmark = pytest.mark.anyio
KEYS, TENANTS = f"{PREFIX}/keys", f"{PREFIX}/tenants"


@pytest.fixture
async def desk(tmp_path: Path, store_url: str) -> AsyncIterator[Desk]:
    async with administering(tmp_path, url=store_url) as found:
        yield found


async def at_once(desk: Desk, *calls: tuple[str, str, Any]) -> list[Any]:
    """Calls that are all under way together; what was answered."""
    return list(await asyncio.gather(*(desk.call(*call) for call in calls)))


async def test_of_many_who_want_a_name_one_gets_it(desk: Desk) -> None:
    """And each of them has an entry, whatever came of it."""
    replies = await at_once(desk, *[("POST", KEYS, {"name": "alice"})] * 20)
    assert Counter(reply.status for reply in replies) == {201: 1, 409: 19}
    assert len((await desk.get(f"{KEYS}?prefix=alice"))["data"]) == 1
    assert Counter(entry.outcome for entry in await desk.entries()) == {"done": 1, "failed": 19}


async def test_no_change_is_lost_to_another(desk: Desk) -> None:
    """Each merges into what the one before it has left."""
    await desk.call("POST", KEYS, {"name": "alice"})
    changes = [("PATCH", f"{KEYS}/alice", {"metadata": {f"k{number}": "v"}}) for number in range(12)]
    assert {reply.status for reply in await at_once(desk, *changes)} == {200}
    assert len((await desk.get(f"{KEYS}/alice"))["metadata"]) == 12


async def test_no_key_is_made_for_a_tenant_that_is_being_removed(desk: Desk) -> None:
    """Whichever comes first: no live key is left whose tenant is gone."""
    for number in range(6):
        name = f"acme-{number}"
        await desk.call("POST", TENANTS, {"name": name})
        made = [("POST", KEYS, {"name": f"key-{number}-{each}", "tenant": name}) for each in range(4)]
        removal = ("DELETE", f"{TENANTS}/{name}?revoke_keys=true", None)
        replies = await at_once(desk, *made[:2], removal, *made[2:])
        assert {reply.status for reply in replies} <= {200, 201, 400}
        assert (await desk.get(f"{KEYS}?tenant={name}&revoked=false"))["data"] == []


async def test_of_many_rotations_one_key_and_its_grace_are_left(desk: Desk) -> None:
    """The last two that were made open, and none before them."""
    await desk.call("POST", KEYS, {"name": "alice"})
    replies = await at_once(desk, *[("POST", f"{KEYS}/alice/rotate", {})] * 8)
    keys = [reply.json["key"] for reply in replies]
    assert len(set(keys)) == 8
    directory = await desk.look()
    assert sum(directory.find(key) is not None for key in keys) == 2


async def test_every_answer_is_what_the_document_says(desk: Desk) -> None:
    """Each operation once, and its answer held to its schema."""
    await desk.database.run(usage.write, [used("c1", NOW, tenant="acme", cost_micros=10)])
    document = await desk.get(f"{PREFIX}/openapi.json")
    steps: list[tuple[str, str, Any]] = [
        ("createTenant", "/tenants", {"name": "acme", "budget": {"cost_per_day": 1.5}}),
        ("updateTenant", "/tenants/acme", {"weight": 2}),
        ("createKey", "/keys", {"name": "alice", "tenant": "acme", "limits": {"tokens_per_day": 5}}),
        ("updateKey", "/keys/alice", {"expires_in_s": 60}),
        ("rotateKey", "/keys/alice/rotate", {"grace_s": 5}),
        *((name, path, None) for name, path in (("getKey", "/keys/alice"), ("getKey", "/keys/from-file"))),
        *((name, path, None) for name, path in (("getTenant", "/tenants/acme"), ("getTenant", "/tenants/of-file"))),
        ("listKeys", "/keys?limit=3", None),
        ("listTenants", "/tenants", None),
        ("revokeKey", "/keys/alice/revoke", {}),
        ("removeTenant", "/tenants/acme", None),
        ("sumUsage", "/usage?group_by=tenant", None),
        ("listRecords", "/usage/records", None),
        ("listEntries", "/audit", None),
        ("whoAmI", "/whoami", None),
        ("getStatus", "/status", None),
        ("describe", "/openapi.json", None),
    ]
    by_name = {operation.name: operation for operation in OPERATIONS}
    assert {name for name, _, _ in steps} == {name for name in by_name if by_name[name].gives != "File"}
    for name, path, body in steps:
        operation = by_name[name]
        reply = await desk.call(operation.method, PREFIX + path, body)
        assert reply.status == operation.status, (name, reply.body)
        schema = {**document, "$ref": f"#/components/schemas/{operation.gives}"}
        jsonschema_rs.Draft202012Validator(schema).validate(reply.json)
        if body is not None and operation.takes.__name__ in document["components"]["schemas"]:
            taken = {**document, "$ref": f"#/components/schemas/{operation.takes.__name__}"}
            jsonschema_rs.Draft202012Validator(taken).validate(body)
    refused = await desk.call("GET", f"{KEYS}/nobody")
    jsonschema_rs.Draft202012Validator({**document, "$ref": "#/components/schemas/Error"}).validate(refused.json)
