"""Usage in the database: records counted once, sums that agree with them, pages, budgets, the end of old records."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from gateway.store import usage
from gateway.store.database import Database
from gateway.store.rows import Spent, UsageRecord, UsageSum, clean
from tests.databases import together
from tests.unit.stored import HOSTILE, NOW, at, used

pytestmark = pytest.mark.anyio
TODAY = NOW.date()

WRITER = """
import asyncio, sys
from pydantic import SecretStr
from gateway.store import usage
from gateway.store.database import Database
from tests.unit.stored import used

async def write(url):
    async with Database(SecretStr(url)) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        for batch in range(10):
            await store.run(usage.write, [
                used(f"{batch}-{number:03}", key=f"key-{number % 5}", model=f"model-{number % 3}")
                for number in reversed(range(100))
            ])

asyncio.run(write(sys.argv[1]))
"""


async def sums(store: Database, by: Sequence[usage.By] = (), **filters: str) -> Sequence[UsageSum]:
    return await store.read(usage.summed, by=by, first=date(2026, 1, 1), last=date(2026, 12, 31), **filters)


async def test_a_record_comes_back_as_it_was_put(store: Database) -> None:
    """With everything, and with nothing that may be missing."""
    full = used("c1", version="v2", error="EngineFailed", stream=False, measured=False)
    bare = used("c0", version=None, replica=None, error=None, first_token_ms=None)
    assert await store.run(usage.write, [full, bare]) == 2
    assert await store.read(usage.listed, limit=9) == [full, bare]


async def test_times_of_records_are_kept_in_utc(store: Database) -> None:
    """To the microsecond; and the day that a record counts for is UTC's."""
    early = datetime(2026, 3, 15, 1, 0, 0, 1, tzinfo=timezone(timedelta(hours=2)))
    await store.run(usage.write, [used(at=early)])
    (found,) = await store.read(usage.listed, limit=9)
    assert (found.at, found.at.utcoffset()) == (early, timedelta(0))
    assert [one.day for one in await sums(store, by=("day",))] == [date(2026, 3, 14)]


async def test_a_batch_that_is_written_twice_counts_once(store: Database) -> None:
    """Whole or in part, and within itself."""
    batch = [used(f"c{number}", prompt_tokens=number) for number in range(10)]
    assert await store.run(usage.write, batch[:4]) == 4
    assert await store.run(usage.write, batch + batch) == 6
    assert await store.run(usage.write, batch) == 0
    assert await store.run(usage.write, []) == 0
    (total,) = await sums(store)
    assert (total.calls, total.prompt_tokens, total.completion_tokens) == (10, 45, 50)
    assert len(await store.read(usage.listed, limit=99)) == 10


async def test_two_processes_that_write_the_same_count_it_once(store: Database, store_url: str) -> None:
    """At the same time, whatever order the records come in: no deadlock, and sums that agree with the records."""
    await asyncio.to_thread(together, WRITER, (store_url,), (store_url,))
    (total,) = await sums(store)
    assert (total.calls, total.cost_micros) == (1000, 100_000)
    assert sum([len(page) async for page in usage.exported(store)]) == 1000


async def test_records_are_read_newest_first_in_pages(store: Database) -> None:
    """Each filter alone and together; records of one instant have an order too."""
    await store.run(
        usage.write,
        [used(f"c{n}", at=at(n // 2), tenant="ab"[n % 2], key=f"k{n // 3}", model=f"m{n // 4}") for n in range(6)],
    )

    async def listed(**filters: object) -> list[str]:
        return [row.id for row in await store.read(usage.listed, **({"limit": 9} | filters))]  # type: ignore[arg-type]

    assert await listed() == ["c5", "c4", "c3", "c2", "c1", "c0"]
    assert await listed(limit=2, before=(at(2), "c5")) == ["c4", "c3"]
    assert await listed(tenant="a") == ["c4", "c2", "c0"]
    assert await listed(key="k1", tenant="b") == ["c5", "c3"]
    assert await listed(model="m1") == ["c5", "c4"]
    assert await listed(since=at(1), until=at(2)) == ["c3", "c2"]


async def test_an_export_has_every_record_once(store: Database) -> None:
    """In pages, also where the last one is just full, and where there is nothing."""
    await store.run(usage.write, [used(f"c{n:02}", at=at(n // 5)) for n in range(30)])
    for page, pages in ((7, 5), (10, 3), (100, 1)):
        found = [it async for it in usage.exported(store, page=page, tenant="acme")]
        assert len(found) == pages
        assert [record.id for it in found for record in it] == [f"c{n:02}" for n in reversed(range(30))]
    assert [it async for it in usage.exported(store, tenant="nobody")] == []


async def test_sums_are_grouped_by_what_is_asked(store: Database) -> None:
    """By day, tenant, key and model, in any mixture, over days with both ends included."""
    records = [
        used("1", at=at(0), tenant="a", key="k1", model="m1"),
        used("2", at=at(86400), tenant="a", key="k1", model="m1"),
        used("3", at=at(86400), tenant="a", key="k2", model="m1"),
        used("4", at=at(2 * 86400), tenant="b", key="k3", model="m2", prompt_tokens=100),
    ]
    await store.run(usage.write, records)
    day = timedelta(days=1)
    by_day = await store.read(usage.summed, by=("day",), first=TODAY, last=TODAY + day)
    assert [(one.day, one.tenant, one.calls) for one in by_day] == [(TODAY, None, 1), (TODAY + day, None, 2)]
    grouped = [(one.tenant, one.model, one.calls, one.prompt_tokens) for one in await sums(store, ("tenant", "model"))]
    assert grouped == [("a", "m1", 3, 30), ("b", "m2", 1, 100)]
    assert [(one.key, one.calls) for one in await sums(store, ("key",), tenant="a", model="m1")] == [
        ("k1", 2),
        ("k2", 1),
    ]
    assert await sums(store) == [UsageSum(None, None, None, None, 4, 130, 20, 8, 400)]
    assert await sums(store, key="none") == []


async def test_what_was_spent_is_known_for_the_day_and_its_month(store: Database) -> None:
    """Prompt and completion tokens; nothing of the month before, nothing of days to come."""
    await store.run(
        usage.write,
        [
            used("1", at=datetime(2026, 2, 28, 23, 59, tzinfo=UTC)),
            used("2", at=datetime(2026, 3, 1, 0, 0, tzinfo=UTC), cost_micros=7),
            used("3", at=NOW, model="other", cost_micros=20),
            used("4", at=NOW, cost_micros=1),
            used("5", at=at(86400)),
            used("6", at=datetime(2026, 3, 2, tzinfo=UTC), tenant="thrifty"),
        ],
    )
    assert await store.read(usage.spent, TODAY) == {
        "acme": Spent(30, 21, 45, 28),
        "thrifty": Spent(0, 0, 15, 100),
    }


async def test_old_records_end_and_sums_stay(store: Database) -> None:
    """In steps of at most so many, the oldest first."""
    await store.run(usage.write, [used(f"c{n}", at=at(n)) for n in range(10)])
    assert await store.run(usage.purge, at(5), limit=3) == 3
    assert [row.id for row in await store.read(usage.listed, limit=9)][-1] == "c3"
    assert await store.run(usage.purge, at(5), limit=3) == 2
    assert await store.run(usage.purge, at(5), limit=3) == 0
    assert await usage.purge_all(store, at(9), limit=1) == 4
    assert [row.id for row in await store.read(usage.listed, limit=9)] == ["c9"]
    (total,) = await sums(store)
    assert total.calls == 10


async def test_numbers_beyond_reason_are_kept_as_the_largest(store: Database) -> None:
    """An engine that reports nonsense cannot keep usage from the database, nor sums from growing."""
    for id in ("1", "2"):
        assert await store.run(usage.write, [used(id, prompt_tokens=10**30, cost_micros=-(10**30))]) == 1
    (total,) = await sums(store)
    assert (total.prompt_tokens, total.cost_micros) == (2 * usage.LARGEST, -2 * usage.LARGEST)


async def test_hostile_texts_in_records_are_only_texts(store: Database) -> None:
    """In every column and as filters; cut off and cleaned, and otherwise as they were."""
    names = [field for field, value in UsageRecord.__annotations__.items() if value in (str, str | None)]

    def all_of(text: str, number: int) -> UsageRecord:
        texts: dict[str, Any] = dict.fromkeys(names, text)
        return used(at=at(number), **texts)

    for number, text in enumerate(HOSTILE):
        record = all_of(text, number)
        assert await store.run(usage.write, [record, record]) == 1
        found = await store.read(usage.listed, limit=9, tenant=text, key=text, model=text)
        assert found == [all_of(clean(text), number)]
        assert [one.tenant for one in await sums(store, ("tenant",), tenant=text)] == [clean(text)]
    (total,) = await sums(store)
    assert total.calls == len(HOSTILE)
