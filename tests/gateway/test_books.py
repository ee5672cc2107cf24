"""A gateway with a database, end to end: keys that come and go, usage that is written, budgets that are remembered."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engines import scripted
from tests.harness import KEY, MODEL, Harness, administered, bearer, gateway, hello, key
from tests.wire_client import WireReply

pytestmark = pytest.mark.anyio
WITHIN_S = 10


async def until(ask: Callable[[], Any], fact: Callable[[Any], bool]) -> Any:
    """Asks until the answer makes the fact true; that answer."""
    async with asyncio.timeout(WITHIN_S):
        while not fact(answer := await ask()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return answer


async def made(harness: Harness, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = await harness.administer("POST", path, body)
    assert reply.status in (200, 201), reply.body
    found: dict[str, Any] = reply.json
    return found


async def records(harness: Harness, count: int) -> list[dict[str, Any]]:
    """The records of usage, newest first, once there are so many."""

    async def ask() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await harness.administer("GET", "/usage/records")).json["data"]
        return found

    found: list[dict[str, Any]] = await until(ask, lambda found: len(found) >= count)
    return found


def calling(harness: Harness, secret: str, **fields: Any) -> Callable[[], Any]:
    async def ask() -> WireReply:
        return await harness.post(hello(**fields), bearer(secret))

    return ask


def is_status(status: int) -> Callable[[WireReply], bool]:
    return lambda reply: reply.status == status


async def test_a_key_is_made_used_rotated_and_revoked_while_calls_go_on(tmp_path: Path) -> None:
    """Each change is in force within moments; nobody restarts anything."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, **administered(tmp_path / "db")) as harness,
    ):
        await made(harness, "/tenants", {"name": "acme"})
        first = (await made(harness, "/keys", {"name": "ci", "tenant": "acme", "models": ["ti*"]}))["key"]
        assert (await harness.post(headers=bearer(first))).status == 200, "it holds at once where it was made"
        second = (await made(harness, "/keys/ci/rotate", {"grace_s": 3600}))["key"]
        await until(calling(harness, second), is_status(200))
        assert (await harness.post(headers=bearer(first))).status == 200
        assert (await harness.administer("PATCH", "/keys/ci", {"models": ["other"]})).status == 200
        await until(calling(harness, second), is_status(404))
        assert (await harness.administer("POST", "/keys/ci/revoke", {})).status == 200
        refused = await harness.post(headers=bearer(second))
        assert refused.status == 401
        assert refused.json["error"]["code"] == "invalid_api_key"
        assert (await harness.post(headers=bearer(first))).status == 401
        assert (await harness.post()).status == 200


async def test_every_admitted_call_leaves_one_record_of_what_it_used(tmp_path: Path) -> None:
    """Who, which model, where, how much, what it cost, how it ended, and whether that was measured."""
    price = {"prompt": 1000, "completion": 2000}
    async with scripted("a") as engines:
        model = {"name": MODEL, "price": price, "replicas": [{"name": "a", "url": engines["a"].url}]}
        async with gateway({}, **administered(tmp_path / "db"), models=[model]) as harness:
            engines["a"].says("one", " two")
            good = await harness.post()
            engines["a"].dies_after(1, calls=1)
            await harness.post(hello(stream=True))
            assert (await harness.post(hello(max_tokens=0))).status == 400
            assert (await harness.post(headers=bearer("pg-wrong"))).status == 401
            await harness.ended(4)
            broken, whole = await records(harness, 2)
            assert (await harness.administer("GET", "/usage/records")).json["next"] is None
            sums = (await harness.administer("GET", "/usage?group_by=tenant")).json["data"]
    assert whole["id"] == good.header("x-request-id")
    assert whole["trace_id"] == good.header("x-pagegate-trace")
    known = {"tenant": "default", "key": "tester", "model": MODEL, "replica": "a", "attempts": 1}
    for record in (broken, whole):
        assert known.items() <= record.items()
    assert (whole["outcome"], whole["stream"], whole["measured"]) == ("ok", False, True)
    assert (whole["prompt_tokens"], whole["completion_tokens"], whole["cost"]) == (2, 2, 0.006)
    assert (broken["outcome"], broken["error"], broken["measured"]) == ("severed", "EngineLost", False)
    assert broken["completion_tokens"] >= 1
    (total,) = sums
    assert (total["tenant"], total["calls"]) == ("default", 2)
    assert total["cost"] == pytest.approx(whole["cost"] + broken["cost"])


async def test_two_gateways_on_one_database_know_the_same_keys(tmp_path: Path) -> None:
    sections = administered(tmp_path / "db")
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, **sections) as one,
        gateway({"a": engines["a"].url}, **sections) as other,
    ):
        secret = (await made(one, "/keys", {"name": "ci"}))["key"]
        await until(calling(other, secret), is_status(200))
        await made(other, "/keys/ci/revoke", {})
        await until(calling(one, secret), is_status(401))


async def test_a_budget_is_remembered_by_the_next_gateway(tmp_path: Path) -> None:
    """What was used of it is in the books; who has none left is told so, and that to retry is vain."""
    budget = {"name": "default", "budget": {"tokens_per_day": 40}}
    identity = {"tenants": [budget], "keys": [key("tester")]}
    sections = {**administered(tmp_path / "db"), "identity": identity}
    async with scripted("a") as engines:
        engines["a"].says(*(f"w{number} " for number in range(9)))
        async with gateway({"a": engines["a"].url}, **sections) as harness:
            assert (await harness.post(hello("x", max_tokens=9))).status == 200
            await records(harness, 1)
        async with gateway({"a": engines["a"].url}, **sections) as harness:
            refused = await harness.post(hello("x", max_tokens=9))
    assert (refused.status, refused.json["error"]["code"]) == (429, "insufficient_quota")
    assert refused.json["error"]["type"] == "insufficient_quota"
    assert refused.header("x-should-retry") == "false"
    assert float(refused.header("retry-after") or 0) > 0


async def test_a_key_that_the_file_names_cannot_be_changed_by_the_api(tmp_path: Path) -> None:
    """The file wins, and says so."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, **administered(tmp_path / "db")) as harness:
        refused = await harness.administer("POST", "/keys/tester/revoke", {})
        taken = await harness.administer("POST", "/keys", {"name": "tester"})
        assert (refused.status, taken.status) == (409, 409)
        assert refused.json["error"]["code"] == "managed_by_file"
        assert (await harness.post()).status == 200


async def test_the_admin_api_is_not_where_callers_are_nor_theirs(tmp_path: Path) -> None:
    """Another listener, other keys: neither opens the other."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, **administered(tmp_path / "db")) as harness:
        assert (await harness.get("/admin/v1/keys")).status == 404
        assert (await harness.administer("GET", "/keys", key=KEY)).status == 401
        assert (await harness.administer("GET", "/keys")).status == 200
        assert (await harness.post(headers=bearer("pga-test-key"))).status == 401
        status = (await harness.administer("GET", "/status")).json
        assert status["gate"] == harness.gate
        assert status["ledger"].startswith("<Ledger")


async def test_a_database_that_cannot_be_used_ends_no_call_of_a_known_key(tmp_path: Path) -> None:
    """The file of a database that is gone: calls go on, usage waits, the log says it once."""
    database = tmp_path / "folder" / "db"
    database.parent.mkdir()
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, **administered(database)) as harness:
        secret = (await made(harness, "/keys", {"name": "ci"}))["key"]
        await until(calling(harness, secret), is_status(200))
        for file in database.parent.iterdir():
            file.chmod(0)
            file.unlink()
        database.parent.rmdir()
        for _ in range(3):
            assert (await harness.post(headers=bearer(secret))).status == 200


async def test_usage_and_costs_show_in_metrics(tmp_path: Path) -> None:
    sections = {**administered(tmp_path / "db"), "pricing": {"accelerator_hour": 3600e3}}
    async with scripted("a") as engines, gateway({"a": engines["a"].url}, **sections) as harness:
        await harness.post()
        await records(harness, 1)
        assert harness.metric("pagegate_usage_records_total", fate="written") == 1
        assert harness.metric("pagegate_usage_records_total", fate="lost") == 0
        assert harness.metric("pagegate_cost_micros_total", model=MODEL) > 0


async def test_many_wrong_keys_from_one_address_are_told_to_slow_down() -> None:
    """Whatever they are; a good one still passes."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, identity={"failures_per_minute": 3}) as harness,
    ):
        found = [await harness.post(headers=bearer(f"pg-{number}")) for number in range(5)]
        assert [reply.status for reply in found] == [401, 401, 401, 429, 429]
        assert float(found[4].header("retry-after") or 0) > 0
        assert found[4].json["error"]["code"] == "rate_limit_exceeded"
        assert (await harness.post()).status == 200
