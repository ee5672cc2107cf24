"""The ledger: records reach the database once, whatever the database does; what is lost is counted."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, text

from gateway.settings import StoreSettings
from gateway.store import usage
from gateway.store.database import Database, StoreLost
from gateway.store.rows import UsageRecord
from gateway.usage.ledger import BATCH, Ledger
from gateway.usage.records import Spool, line_of, record_of
from tests.databases import modes
from tests.unit.stored import HOSTILE, at, used

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]

ADDER = """
import asyncio, sys
from pathlib import Path
from pydantic import SecretStr
from gateway.settings import StoreSettings
from gateway.store import usage
from gateway.store.database import Database
from gateway.usage.ledger import Ledger
from gateway.usage.records import Spool
from tests.unit.stored import used

async def add(file):
    url = SecretStr(f"sqlite:///{file}")
    settings = StoreSettings(url=url, usage_flush_s=0.1)
    async with Database(url) as store, Ledger(usage.Writer(store), settings, Spool.beside(store.file), print) as ledger:
        added = 0
        while True:
            for _ in range(10):
                ledger.add(used(f"{added:06}"))
                added += 1
            print(added, ledger.written, ledger.waiting, flush=True)
            await asyncio.sleep(0.002)

asyncio.run(add(sys.argv[1]))
"""


class Table:
    """Stands for the database: takes records, unless it is away, stands still, or refuses some of them."""

    def __init__(self) -> None:
        self.batches: list[list[UsageRecord]] = []
        self.tried = 0
        self.away = False
        self.still = False
        self.refused: set[str] = set()
        self.breaks: set[str] = set()
        self._changed = asyncio.Event()

    async def write(self, records: Sequence[UsageRecord]) -> None:
        self.tried += 1
        self._changed.set()
        if self.still:
            await asyncio.Event().wait()
        if self.away:
            raise StoreLost("the database is away")
        if self.refused.intersection(self.ids(records)):
            raise StoreLost("the database did not do it (DataError)", refused=True)
        if self.breaks.intersection(self.ids(records)):
            raise TypeError("not a number")
        self.batches.append(list(records))

    async def until(self, tried: int = 0, written: int = 0) -> None:
        """Waits until so many batches were tried, and so many records written."""
        while self.tried < tried or len(self.written) < written:
            self._changed.clear()
            await self._changed.wait()

    @staticmethod
    def ids(records: Sequence[UsageRecord]) -> list[str]:
        return [record.id for record in records]

    @property
    def written(self) -> list[str]:
        return [id for batch in self.batches for id in self.ids(batch)]


class Case:
    """A ledger before a table, and what it noted."""

    def __init__(self, flush_s: float = 0.001, buffer: int = 1000, spool: Spool | None = None) -> None:
        self.table = Table()
        self.notes: list[str] = []
        self.spool = spool
        self.settings = StoreSettings(usage_flush_s=flush_s, usage_buffer=buffer)

    @asynccontextmanager
    async def ledger(self, leave_s: float = 5) -> AsyncIterator[Ledger]:
        async with Ledger(self.table, self.settings, self.spool, self.notes.append, leave_s) as ledger:
            yield ledger
        self.left = repr(ledger)


def records(count: int, start: int = 0) -> list[UsageRecord]:
    return [used(f"c{number:05}") for number in range(start, start + count)]


def ids(count: int, start: int = 0) -> list[str]:
    return [f"c{number:05}" for number in range(start, start + count)]


async def test_records_are_written_after_the_flush_interval() -> None:
    """Without anybody waiting; those of one interval in one batch."""
    case = Case()
    async with case.ledger() as ledger:
        for record in records(3):
            ledger.add(record)
        assert repr(ledger) == "<Ledger 3 waiting, 0 written, 0 lost>"
        await case.table.until(written=3)
        assert len(case.table.batches) == 1
        ledger.add(used("later"))
        await case.table.until(written=4)
    assert case.left == "<Ledger 0 waiting, 4 written, 0 lost>"
    assert case.notes == []


async def test_a_full_batch_does_not_wait_for_the_interval() -> None:
    """And many records go in batches of a bounded size, in their order."""
    case = Case(flush_s=3600, buffer=10_000)
    async with case.ledger() as ledger:
        for record in records(2 * BATCH + 10):
            ledger.add(record)
        await case.table.until(written=2 * BATCH)
        assert [len(batch) for batch in case.table.batches] == [BATCH, BATCH]
    assert case.table.written == ids(2 * BATCH + 10), "leaving writes the rest"
    assert case.left == f"<Ledger 0 waiting, {2 * BATCH + 10} written, 0 lost>"


async def test_nothing_is_written_twice_or_lost_while_the_database_is_away() -> None:
    """It is tried again, and written in order when the database is back; both are noted once."""
    case = Case()
    case.table.away = True
    async with case.ledger() as ledger:
        for record in records(5):
            ledger.add(record)
        await case.table.until(tried=3)
        assert repr(ledger) == "<Ledger 5 waiting, 0 written, 0 lost>"
        case.table.away = False
        await case.table.until(written=5)
    assert case.table.written == ids(5)
    assert case.notes == ["usage waits for the database: the database is away", "usage is written again"]


async def test_what_waits_is_bounded_and_what_is_lost_is_counted() -> None:
    """New records are lost first: what is missing is one stretch of time. It is noted once."""
    case = Case(buffer=100)
    case.table.away = True
    async with case.ledger() as ledger:
        for record in records(130):
            ledger.add(record)
        assert repr(ledger) == "<Ledger 100 waiting, 0 written, 30 lost>"
        await case.table.until(tried=2)
        case.table.away = False
        await case.table.until(written=100)
        ledger.add(used("after"))
    assert case.table.written == [*ids(100), "after"]
    assert [note for note in case.notes if "lost" in note] == ["usage is being lost: 100 records wait for the database"]


@pytest.mark.parametrize("how", ["refused", "breaks"])
async def test_a_record_that_cannot_be_written_stops_no_other(how: str) -> None:
    """Whether the database refuses it or the program fails over it: found by halves, counted, noted without it."""
    case = Case()
    getattr(case.table, how).update(("c00003", "c00700"))
    async with case.ledger() as ledger:
        for record in records(800):
            ledger.add(record)
        await case.table.until(written=798)
    assert set(case.table.written) == set(ids(800)) - {"c00003", "c00700"}
    assert case.left == "<Ledger 0 waiting, 798 written, 2 lost>"
    assert len(case.notes) == 2


async def test_leaving_has_a_deadline_and_the_rest_is_taken_in_by_the_next(tmp_path: Path) -> None:
    """Whether the database is away or stands still."""
    spool = Spool(tmp_path)
    for way in ("away", "still"):
        case = Case(spool=spool)
        setattr(case.table, way, True)
        async with case.ledger(leave_s=0.05) as ledger:
            for record in records(1200):
                ledger.add(replace(record, id=f"{way}-{record.id}"))
            await case.table.until(tried=1)
        assert case.left == "<Ledger 0 waiting, 0 written, 200 lost>"
        assert "left for the next start" in case.notes[-1]
    files = spool.files()
    assert len(files) == 2
    assert modes(tmp_path) == {file.name: 0o600 for file in files}

    case = Case(spool=spool)
    async with case.ledger() as ledger:
        await case.table.until(written=2000)
        ledger.add(used("new"))
    assert sorted(case.table.written) == sorted(
        [f"{way}-{id}" for way in ("away", "still") for id in ids(1000)] + ["new"]
    )
    assert case.left == "<Ledger 0 waiting, 2001 written, 0 lost>"
    assert modes(tmp_path) == {}


async def test_without_a_place_to_leave_them_records_are_lost_and_counted(tmp_path: Path) -> None:
    """No spool, or a folder that is not there."""
    for spool in (None, Spool(tmp_path / "nowhere")):
        case = Case(spool=spool)
        case.table.away = True
        async with case.ledger(leave_s=0.05) as ledger:
            ledger.add(used())
        assert case.left == "<Ledger 0 waiting, 0 written, 1 lost>"
        assert case.notes[-1] == "1 records of usage are lost with the end of this process"


async def test_a_start_before_a_database_that_is_away_keeps_what_was_left(tmp_path: Path) -> None:
    """The file is removed when all of it is written, and not before."""
    spool = Spool(tmp_path)
    spool.keep(records(700))
    case = Case(spool=spool)
    case.table.away = True
    async with case.ledger(leave_s=0.05):
        await case.table.until(tried=2)
    assert len(spool.files()) == 1
    assert case.left == "<Ledger 0 waiting, 0 written, 0 lost>"
    case.table.away = False
    async with case.ledger():
        await case.table.until(written=700)
    assert spool.files() == []


async def test_lines_that_cannot_be_read_are_counted_and_their_file_kept(tmp_path: Path) -> None:
    """Under another name, for somebody to look at; the lines between them are taken in."""
    good = line_of(used("good")).encode()
    naive = line_of(used()).replace("+00:00", "").encode()
    (tmp_path / "pagegate.usage-1.jsonl").write_bytes(
        b'{"torn\n' + good + b"[]\n" + b"\xff\n" + naive + good.replace(b'"tenant"', b'"other"')
    )
    case = Case(spool=Spool(tmp_path))
    async with case.ledger():
        await case.table.until(written=1)
    assert (case.table.written, case.left) == (["good"], "<Ledger 0 waiting, 1 written, 5 lost>")
    assert list(modes(tmp_path)) == ["pagegate.usage-1.unreadable"]


async def test_spools_of_two_databases_in_one_folder_are_apart(tmp_path: Path) -> None:
    one, other = Spool.beside(tmp_path / "one.db"), Spool.beside(tmp_path / "other.db")
    one.keep(records(1))
    assert (len(one.files()), len(other.files())) == (1, 0)


def test_every_record_comes_back_from_its_line() -> None:
    """Whatever its texts are, and with nothing that may be missing."""
    bare = used(version=None, replica=None, error=None, first_token_ms=None, at=at(0.000001))
    for record in (bare, *(used(id=hostile, tenant=hostile, error=hostile) for hostile in HOSTILE)):
        assert record_of(line_of(record).encode()) == record


def kill_while_adding(file: Path) -> tuple[int, int, int]:
    """Kills a process that adds records; returns how many it added, had written and had waiting at the end."""
    with subprocess.Popen([sys.executable, "-c", ADDER, str(file)], cwd=ROOT, stdout=subprocess.PIPE) as adder:
        assert adder.stdout is not None
        for line in adder.stdout:
            _, written, waiting = line.split()
            if int(written) > 2000 and int(waiting) > 0:
                break
        adder.kill()
        last = [line, *adder.stdout.read().splitlines(keepends=True)]
    assert adder.returncode == -9
    added, written, waiting = [line for line in last if line.endswith(b"\n")][-1].split()
    return int(added), int(written), int(waiting)


async def test_a_killed_process_loses_what_was_added_since_the_last_flush(tmp_path: Path) -> None:
    """kill -9: the file is whole, the sums agree, and what is missing is what still waited, and nothing in between."""
    file = tmp_path / "usage.db"
    added, written, waiting = await asyncio.to_thread(kill_while_adding, file)
    assert added == written + waiting

    def looked_at(connection: Connection) -> tuple[str, list[str]]:
        check = connection.execute(text("PRAGMA integrity_check")).scalar_one()
        return check, list(connection.execute(text("SELECT id FROM usage ORDER BY id")).scalars())

    async with Database(SecretStr(f"sqlite:///{file}")) as store:
        check, found = await store.read(looked_at)
        (total,) = await store.read(usage.summed, by=(), first=used().at.date(), last=used().at.date())
    assert check == "ok"
    assert found == [f"{number:06}" for number in range(len(found))], "one stretch, without a hole"
    assert len(found) >= written, "what was said to be written is there"
    assert (total.calls, total.prompt_tokens) == (len(found), 10 * len(found))


async def test_a_real_database_that_goes_and_comes_back_counts_each_record_once(store: Database) -> None:
    """Through the real writer; what is taken in from a spool beside what is there already adds nothing."""
    settings = StoreSettings(usage_flush_s=0.01)
    notes: list[str] = []
    async with Ledger(usage.Writer(store), settings, None, notes.append) as ledger:
        for record in records(1500):
            ledger.add(record)
    assert repr(ledger) == "<Ledger 0 waiting, 1500 written, 0 lost>"
    async with Ledger(usage.Writer(store), settings, None, notes.append) as ledger:
        for record in [*records(1500), used("new")]:
            ledger.add(record)
    (total,) = await store.read(usage.summed, by=(), first=used().at.date(), last=used().at.date())
    assert total.calls == 1501
    assert notes == []


def test_a_line_is_json_of_ascii_alone() -> None:
    line = line_of(used(tenant="büro"))
    assert line.isascii()
    assert line.endswith("\n")
    assert json.loads(line)["tenant"] == "büro"
