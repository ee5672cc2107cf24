"""The admin API's usage: sums, single calls, and files of both, however much it is."""

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.store import usage
from gateway.store.rows import UsageRecord
from tests.gateway.administering import KEYS, NOW, Desk, administering, used
from tests.wire_client import WireClient, WireStream

pytestmark = pytest.mark.anyio
USAGE = "/admin/v1/usage"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with administering(tmp_path) as found:
        yield found


def two_days() -> list[UsageRecord]:
    """Four calls: two tenants, two models, today and yesterday."""
    return [
        used("c1", NOW, tenant="acme", key="alice", model="big", prompt_tokens=10, cost_micros=1_500_000),
        used("c2", NOW, tenant="acme", key="bob", model="small", prompt_tokens=20, cost_micros=500_000),
        used("c3", NOW - timedelta(days=1), tenant="acme", key="alice", model="big", prompt_tokens=30),
        used("c4", NOW - timedelta(days=1), tenant="zeta", key="zoe", model="big", prompt_tokens=40),
    ]


@pytest.mark.parametrize(
    ("query", "sums"),
    [
        ("", [{"day": "2026-03-13", "calls": 2}, {"day": "2026-03-14", "calls": 2}]),
        ("group_by=tenant", [{"tenant": "acme", "prompt_tokens": 60, "cost": 2.0}, {"tenant": "zeta", "calls": 1}]),
        ("group_by=model&tenant=acme", [{"model": "big", "calls": 2}, {"model": "small", "calls": 1}]),
        ("group_by=day,key&key=alice", [{"day": "2026-03-13", "key": "alice"}, {"day": "2026-03-14", "key": "alice"}]),
        ("since=2026-03-14&until=2026-03-14&group_by=tenant", [{"tenant": "acme", "prompt_tokens": 30}]),
        ("since=2026-03-15", []),
        ("model=nothing", []),
    ],
)
async def test_what_was_used_is_summed_as_it_is_asked(desk: Desk, query: str, sums: list[dict[str, Any]]) -> None:
    """By day, tenant, key and model, of a range of days, filtered."""
    await desk.database.run(usage.write, two_days())
    if query.startswith("since=2026-03-15"):
        query += "&until=2026-03-15"
    found = await desk.get(f"{USAGE}?{query}", "viewer")
    assert len(found["data"]) == len(sums)
    for got, wanted in zip(found["data"], sums, strict=True):
        assert wanted.items() <= got.items()
    assert found["unit"] == "credit"


async def test_without_days_the_last_thirty_are_summed(desk: Desk) -> None:
    """And the answer says which these were."""
    await desk.database.run(usage.write, [used("in", NOW - timedelta(days=29)), used("out", NOW - timedelta(days=30))])
    found = await desk.get(f"{USAGE}?group_by=model")
    assert (found["since"], found["until"]) == ("2026-02-13", "2026-03-14")
    assert found["data"][0]["calls"] == 1


async def test_single_calls_are_read_newest_first_and_in_pages(desk: Desk) -> None:
    """Each once, though many ended at the same moment; filtered by whose they were and when."""
    records = [used(f"c{number:03}", NOW - timedelta(minutes=number // 3)) for number in range(25)]
    await desk.database.run(usage.write, records)
    found, after = [], ""
    while True:
        page = await desk.get(f"{USAGE}/records?limit=4{after}")
        assert len(page["data"]) <= 4
        found += page["data"]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    wanted = sorted(records, key=lambda record: (record.at, record.id), reverse=True)
    assert [record["id"] for record in found] == [record.id for record in wanted]
    query = "since=2026-03-14T15:05:26Z&until=2026-03-14T17:09:26%2B02:00"
    ids = {record["id"] for record in (await desk.get(f"{USAGE}/records?{query}"))["data"]}
    assert ids == {f"c{number:03}" for number in range(3, 15)}
    assert not (await desk.get(f"{USAGE}/records?tenant=nobody"))["data"]


async def test_a_call_is_shown_with_all_that_is_known_of_it(desk: Desk) -> None:
    """Cost in units, times in UTC, and what is not known as null."""
    await desk.database.run(usage.write, [used("c1", NOW, tenant="acme", cost_micros=1_250_000, first_token_ms=None)])
    [shown] = (await desk.get(f"{USAGE}/records", "viewer"))["data"]
    assert shown["at"] == "2026-03-14T15:09:26.000Z"
    assert (shown["cost"], shown["first_token_ms"], shown["measured"], shown["outcome"]) == (1.25, None, True, "ok")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
async def test_an_export_holds_every_call_once(desk: Desk, form: str) -> None:
    """More than one page of them, in the order of the list."""
    records = [used(f"c{number:04}", NOW - timedelta(seconds=number // 2)) for number in range(2500)]
    await desk.database.run(usage.write, records)
    reply = await desk.call("GET", f"{USAGE}/records/export?format={form}", role="viewer")
    assert reply.complete
    assert reply.header("content-disposition") == f'attachment; filename="calls.{form}"'
    text = reply.body.decode()
    if form == "csv":
        assert reply.header("content-type") == "text/csv; charset=utf-8"
        found = [row["id"] for row in csv.DictReader(io.StringIO(text))]
    else:
        found = [json.loads(line)["id"] for line in text.splitlines()]
    wanted = sorted(records, key=lambda record: (record.at, record.id), reverse=True)
    assert found == [record.id for record in wanted]


async def test_a_spreadsheet_takes_no_cell_for_a_formula(desk: Desk) -> None:
    """What begins like one is text: CSV goes to people who open it with a click."""
    evil = ['=HYPERLINK("http://evil")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]
    await desk.database.run(usage.write, [used(f"c{at}", NOW, version=text) for at, text in enumerate(evil)])
    reply = await desk.call("GET", f"{USAGE}/records/export?format=csv")
    rows = list(csv.DictReader(io.StringIO(reply.body.decode(), newline="")))
    assert sorted(row["version"] for row in rows) == sorted(f"'{text}" for text in evil)
    assert {row["stream"] for row in rows} == {"true"}
    assert {row["replica"] for row in rows} == {""}
    lines = (await desk.call("GET", f"{USAGE}/records/export")).body.decode().splitlines()
    assert sorted(json.loads(line)["version"] for line in lines) == sorted(evil)


@pytest.mark.parametrize("by", ["day,tenant", "tenant"])
async def test_sums_are_exported_as_they_are_listed(desk: Desk, by: str) -> None:
    """The same numbers; in CSV below the names of what they were summed by."""
    await desk.database.run(usage.write, two_days())
    listed = (await desk.get(f"{USAGE}?group_by={by}"))["data"]
    lines = (await desk.call("GET", f"{USAGE}/export?group_by={by}")).body.decode().splitlines()
    assert [json.loads(line) for line in lines] == listed
    table = (await desk.call("GET", f"{USAGE}/export?group_by={by}&format=csv")).body.decode()
    rows = list(csv.reader(io.StringIO(table)))
    assert rows[0] == [*by.split(","), "calls", "prompt_tokens", "completion_tokens", "cached_tokens", "cost"]
    assert len(rows) == 1 + len(listed)


async def test_an_export_of_nothing_is_an_empty_file(desk: Desk) -> None:
    """With its columns, where it has some."""
    assert (await desk.call("GET", f"{USAGE}/records/export?format=jsonl")).body == b""
    rows = (await desk.call("GET", f"{USAGE}/records/export?format=csv")).body.decode().splitlines()
    assert len(rows) == 1
    assert rows[0].startswith("id,at,tenant,key,model")


async def test_an_export_that_cannot_be_finished_does_not_look_finished(desk: Desk) -> None:
    """The store goes away between two pages: the connection breaks off without the end of the body."""
    note = "x" * 500
    records = [used(f"c{number:05}", NOW, trace_id=note, version=note) for number in range(20_000)]
    for start in range(0, len(records), 5000):
        await desk.database.run(usage.write, records[start : start + 5000])
    async with WireClient(desk.url, receive_buffer_bytes=4096, within_s=20) as client:
        await client.send("GET", f"{USAGE}/records/export", headers={"authorization": f"Bearer {KEYS['viewer']}"})
        stream = WireStream(client, await client.head())
        assert stream.status == 200
        await stream.read()
        # What was read so far is far from the end: the export waits for the reader.
        await desk.lose_database()
        while await stream.read():
            pass
        assert stream.ending == "reset"
        assert not stream.terminated
        assert 0 < len(stream.raw) < 20_000 * 500


async def test_who_leaves_in_the_middle_of_an_export_ends_it(desk: Desk) -> None:
    """Nothing goes on for him; the listener has no exchange left when the test is."""
    records = [used(f"c{number:05}", NOW, version="x" * 500) for number in range(5000)]
    await desk.database.run(usage.write, records)
    async with WireClient(desk.url, receive_buffer_bytes=4096) as client:
        await client.send("GET", f"{USAGE}/records/export", headers={"authorization": f"Bearer {KEYS['viewer']}"})
        await client.head()
        client.leave("reset")
    assert (await desk.call("GET", f"{USAGE}/records?limit=1")).status == 200
