"""The admin API's tenants: made, listed, changed, removed; and what each used of its budget."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.identity.principal import Principal
from gateway.store import usage
from tests.gateway.administering import Desk, administering, used

pytestmark = pytest.mark.anyio
TENANTS = "/admin/v1/tenants"
KEYS = "/admin/v1/keys"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with administering(tmp_path) as found:
        yield found


async def made(desk: Desk, name: str = "acme", **fields: Any) -> dict[str, Any]:
    reply = await desk.call("POST", TENANTS, {"name": name, **fields})
    assert reply.status == 201, reply.body
    found: dict[str, Any] = reply.json
    return found


async def test_a_tenant_that_was_made_holds_its_keys_to_what_was_wished(desk: Desk) -> None:
    """Models, limits, budget, weight and class of its calls."""
    wanted: dict[str, Any] = {
        "models": ["llama-*"],
        "limits": {"concurrent_calls": 4},
        "budget": {"tokens_per_day": 100, "cost_per_month": 2.5},
        "weight": 3,
        "priority": "low",
    }
    shown = await made(desk, **wanted)
    assert {name: shown[name] for name in wanted} == wanted
    key = (await desk.call("POST", KEYS, {"name": "alice", "tenant": "acme"})).json["key"]
    who = (await desk.look()).find(key)
    assert isinstance(who, Principal)
    assert (who.tenant.name, who.tenant.models, who.tenant.weight, who.priority) == ("acme", ("llama-*",), 3.0, "low")
    assert who.tenant.limits.concurrent_calls == 4
    assert who.tenant.budget.model_dump(mode="json", exclude_defaults=True) == wanted["budget"]
    assert desk.changes == 2


async def test_a_change_leaves_alone_what_it_does_not_name(desk: Desk) -> None:
    """Also within limits, budget and metadata; null takes away. What was before is in the audit log."""
    await made(desk, budget={"tokens_per_day": 100, "tokens_per_month": 900}, metadata={"a": "1"}, weight=2)
    change = {"budget": {"tokens_per_day": None, "cost_per_day": 1.5}, "metadata": {"b": "2"}, "weight": 0.5}
    shown = (await desk.call("PATCH", f"{TENANTS}/acme", change)).json
    assert shown["budget"] == {"tokens_per_month": 900, "cost_per_day": 1.5}
    assert (shown["metadata"], shown["weight"], shown["priority"]) == ({"a": "1", "b": "2"}, 0.5, "normal")
    details = (await desk.entries())[-1].details
    assert details["before"]["budget"] == {"tokens_per_day": 100, "tokens_per_month": 900}
    assert details["weight"] == 0.5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "something to change"),
        ({"name": "other"}, "name"),
        ({"weight": 0}, "weight: must be at least 0.001"),
        ({"weight": None}, "weight: cannot be null"),
        ({"budget": {"cost_per_day": -1}}, "budget.cost_per_day: must be more than 0"),
        ({"budget": {"cost_per_day": 1e400}}, "too large"),
        ({"priority": "urgent"}, "priority"),
    ],
)
async def test_a_change_that_cannot_be_is_refused(desk: Desk, change: Any, told: str) -> None:
    """400, and the tenant stays as it was."""
    await made(desk)
    raw = b'{"budget":{"cost_per_day":1e400}}' if "1e400" in repr(change) or "inf" in repr(change) else b""
    reply = await desk.call(
        "PATCH",
        f"{TENANTS}/acme",
        None if raw else change,
        raw=raw,
        headers={"content-type": "application/json"} if raw else None,
    )
    assert reply.status == 400
    assert told in reply.json["error"]["message"]
    assert desk.changes == 1


async def test_a_tenant_shows_what_it_used_of_its_budget(desk: Desk) -> None:
    """This day and this month in UTC, tokens and cost; nobody else's."""
    await made(desk, budget={"tokens_per_day": 1000})
    at = desk.now
    records = [
        used("1", at, tenant="acme", prompt_tokens=10, completion_tokens=5, cost_micros=2_000_000),
        used("2", at - timedelta(days=3), tenant="acme", prompt_tokens=100, completion_tokens=0, cost_micros=500_000),
        used("3", at - timedelta(days=20), tenant="acme", prompt_tokens=7777, completion_tokens=0),
        used("4", at, tenant="of-file", prompt_tokens=9999, completion_tokens=0),
    ]
    await desk.database.run(usage.write, records)
    shown = await desk.get(f"{TENANTS}/acme", "viewer")
    assert shown["budget"] == {"tokens_per_day": 1000}
    assert shown["spent"] == {"day": {"tokens": 15, "cost": 2.0}, "month": {"tokens": 115, "cost": 2.5}}
    assert shown["unit"] == "credit"
    assert (await desk.get(f"{TENANTS}/of-file"))["spent"]["day"]["tokens"] == 9999


async def test_a_tenant_with_keys_is_not_removed_by_mistake(desk: Desk) -> None:
    """409 says which are in the way; with `revoke_keys` they go with it, at once and in one transaction."""
    await made(desk)
    keys = [(await desk.call("POST", KEYS, {"name": f"key-{n}", "tenant": "acme"})).json["key"] for n in range(3)]
    reply = await desk.call("DELETE", f"{TENANTS}/acme")
    assert (reply.status, reply.json["error"]["code"]) == (409, "conflict")
    assert "(3, among them `key-0`)" in reply.json["error"]["message"]
    assert all([(await desk.look()).find(key) for key in keys])
    reply = await desk.call("DELETE", f"{TENANTS}/acme?revoke_keys=true")
    assert (reply.status, reply.json["state"]) == (200, "removed")
    assert reply.json["revoked_keys"] == ["key-0", "key-1", "key-2"]
    assert not any([(await desk.look()).find(key) for key in keys])
    assert (await desk.entries())[-1].details["revoked"] == ["key-0", "key-1", "key-2"]
    assert (await desk.call("DELETE", f"{TENANTS}/acme")).status == 404
    assert (await desk.call("PATCH", f"{TENANTS}/acme", {"weight": 2})).status == 404


async def test_a_removed_tenant_takes_no_keys_and_its_name_can_be_used_again(desk: Desk) -> None:
    """It begins anew, with no keys of the one before it."""
    await made(desk, weight=5)
    key = (await desk.call("POST", KEYS, {"name": "old", "tenant": "acme"})).json["key"]
    await desk.call("DELETE", f"{TENANTS}/acme?revoke_keys=true")
    reply = await desk.call("POST", KEYS, {"name": "alice", "tenant": "acme"})
    assert (reply.status, reply.json["error"]["param"]) == (400, "tenant")
    assert (await made(desk))["weight"] == 1.0
    assert (await desk.look()).find(key) is None
    assert (await desk.call("POST", KEYS, {"name": "alice", "tenant": "acme"})).status == 201


async def test_what_the_file_names_is_shown_and_cannot_be_changed(desk: Desk) -> None:
    """409, with where to change it."""
    assert (await desk.get(f"{TENANTS}/of-file"))["managed_by"] == "file"
    for method, path, body in (
        ("PATCH", "/of-file", {"weight": 2}),
        ("DELETE", "/of-file", None),
        ("DELETE", "/of-file?revoke_keys=true", None),
    ):
        reply = await desk.call(method, TENANTS + path, body)
        assert (reply.status, reply.json["error"]["code"]) == (409, "managed_by_file")
        assert "edit the file" in reply.json["error"]["message"]
    assert (await desk.call("POST", TENANTS, {"name": "of-file"})).status == 409
    assert (await desk.call("POST", TENANTS, {"name": "default"})).status == 409
    assert desk.changes == 0


async def test_tenants_are_listed_in_pages_that_miss_none_and_repeat_none(desk: Desk) -> None:
    """The file's and the database's together; those that were removed if they are asked for."""
    for name in ("beta", "alpha", "zeta", "delta", "a/b"):
        await made(desk, name)
    await desk.call("DELETE", f"{TENANTS}/delta")
    whole = (await desk.get(TENANTS))["data"]
    names = [tenant["name"] for tenant in whole]
    assert names == ["a/b", "alpha", "beta", "default", "delta", "of-file", "zeta"]
    found, after = [], ""
    while True:
        page = await desk.get(f"{TENANTS}?limit=2{after}")
        found += page["data"]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert found == whole
    for query, wanted in (
        ("removed=true", ["delta"]),
        ("removed=false&prefix=de", ["default"]),
        ("prefix=a", ["a/b", "alpha"]),
    ):
        assert [tenant["name"] for tenant in (await desk.get(f"{TENANTS}?{query}"))["data"]] == wanted


async def test_a_tenant_is_made_once(desk: Desk) -> None:
    """409 for the second time; and not found is 404."""
    await made(desk)
    assert (await desk.call("POST", TENANTS, {"name": "acme"})).status == 409
    for method, body in (("GET", None), ("PATCH", {"weight": 2}), ("DELETE", None)):
        assert (await desk.call(method, f"{TENANTS}/nobody", body)).status == 404
    for name in ("", "a b", "a\nb", "\u202eevil"):
        assert (await desk.call("POST", TENANTS, {"name": name})).status == 400
