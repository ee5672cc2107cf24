"""The owner of the connections: many starts at once, databases that go away, stand still and come back, and secrets."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import Connection, text

from gateway.settings import SettingsError
from gateway.store import keys, migrations, revisions, tenants
from gateway.store.database import Database, StoreLost
from gateway.store.schema import metadata
from tests.databases import Postgres, modes, sqlite_url, together
from tests.unit.stored import key, tenant

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]

STARTER = """
import asyncio, sys
from pydantic import SecretStr
from gateway.store import connections, keys, migrations
from gateway.store.database import Database
from tests.unit.stored import key

async def start(url, name):
    print("ready", flush=True)
    sys.stdin.readline()
    async with Database(SecretStr(url)) as store:
        await store.run(keys.add, key(name))

asyncio.run(start(*sys.argv[1:]))
"""


@pytest.fixture
def server_url(postgres_server: Postgres) -> Iterator[str]:
    with postgres_server.database() as url:
        yield url


def count(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM keys")).scalar_one())


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("store")]


async def test_many_processes_may_start_at_once(store_url: str) -> None:
    """On an empty database: one makes the tables, the others wait for it, all of them work."""
    await asyncio.to_thread(together, STARTER, *((store_url, f"k{number}") for number in range(4)))
    async with Database(SecretStr(store_url)) as store:
        assert await store.read(count) == 4
        assert await store.read(revisions.current) == 4


async def test_migrations_make_the_tables_of_the_schema(store: Database) -> None:
    """A change to `schema.py` needs a step beside it."""

    def differences(connection: Connection) -> object:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return compare_metadata(context, metadata)

    assert await store.read(differences) == []


async def test_a_database_of_a_newer_version_is_used_as_it_is(store: Database, store_url: str) -> None:
    """During an update older gateways start beside newer ones, and change nothing of what those made."""

    def newer(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE keys ADD COLUMN colour TEXT"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    await store.run(newer)
    async with Database(SecretStr(store_url)) as older:
        await older.run(keys.add, key())
        version = await older.read(lambda it: it.execute(text("SELECT version_num FROM alembic_version")).scalar_one())
        assert version == "9999"


async def test_a_migration_that_fails_leaves_nothing(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables are made in one transaction."""
    upgrade = migrations.upgrade

    def fails(connection: Connection) -> None:
        upgrade(connection)
        connection.execute(text("SELECT * FROM no_such_table"))

    monkeypatch.setattr(migrations, "upgrade", fails)
    with pytest.raises(StoreLost):
        async with Database(SecretStr(store_url)):
            raise AssertionError("entered")
    monkeypatch.undo()
    async with Database(SecretStr(store_url)) as store:
        assert await store.read(count) == 0


async def test_a_transaction_is_all_or_nothing(store: Database) -> None:
    """What an act raises comes out as it is, and what it did before is undone."""

    def two(connection: Connection) -> None:
        keys.add(connection, key())
        raise LookupError("in between")

    with pytest.raises(LookupError, match="in between"):
        await store.run(two)
    assert await store.read(count) == 0


async def test_what_reads_cannot_write(store: Database) -> None:
    """A function that is called by the wrong name is found out on both databases; the connection stays usable."""
    for _ in range(9):
        with pytest.raises(StoreLost):
            await store.read(keys.add, key())
    await store.run(keys.add, key())


async def test_readers_do_not_wait_for_a_writer(store: Database) -> None:
    """They see what was committed before."""
    writing, read = threading.Event(), threading.Event()

    def slow(connection: Connection) -> bool:
        keys.add(connection, key())
        writing.set()
        return read.wait(9)

    async with asyncio.TaskGroup() as group:
        writer = group.create_task(store.run(slow))
        await asyncio.to_thread(writing.wait)
        assert await store.read(count) == 0
        read.set()
    assert writer.result()
    assert await store.read(count) == 1


async def test_the_event_loop_goes_on_while_the_database_works(store: Database) -> None:
    """Acts run in threads, at most as many as were given, and the others wait for their turn."""
    go = threading.Event()
    async with asyncio.TaskGroup() as group:
        acts = [group.create_task(store.read(lambda _: go.wait(9))) for _ in range(8)]
        await asyncio.sleep(0)
        assert repr(store).endswith(" 8 acts>")
        assert len(threads()) == 4
        go.set()
    assert all(act.result() for act in acts)
    assert repr(store).endswith(" 0 acts>")


async def test_who_leaves_does_not_end_what_has_begun(store_url: str) -> None:
    """A transaction is committed although its caller is gone."""
    begun, go = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        begun.set()
        go.wait(9)
        keys.add(connection, key())

    async with Database(SecretStr(store_url), threads=1) as store:
        async with asyncio.TaskGroup() as group:
            caller = group.create_task(store.run(slow))
            await asyncio.to_thread(begun.wait)
            caller.cancel()
        assert caller.cancelled()
        go.set()
        # With one thread the next act begins when the other one has ended.
        assert await store.read(count) == 1


async def test_errors_tell_neither_address_nor_credentials_nor_values(store_url: str) -> None:
    """Not in their text, not in what they were raised from; and neither does the database itself."""
    secrets = ("secret-of-the-tests", "a-digest", "INSERT", store_url, "/tmp")
    database = Database(SecretStr(store_url))
    async with database as store:
        statements = [
            lambda connection: connection.execute(text("INSERT INTO keys (id) VALUES (:it)"), {"it": "a-digest"}),
            lambda connection: connection.execute(text("SELECT nothing FROM nowhere WHERE it = 'a-digest'")),
        ]
        for statement in statements:
            with pytest.raises(StoreLost) as lost:
                await store.run(statement)
            told = f"{lost.value!r} {lost.value.__context__!r} {lost.value.__cause__!r} {database!r} {vars(database)}"
            assert not [secret for secret in secrets[:4] if secret in told], told
    with pytest.raises(StoreLost, match="closed"):
        await database.read(count)


async def test_what_a_database_will_never_take_is_told_apart(store: Database) -> None:
    """To try again is vain; that a database is away is another matter."""

    def bad(connection: Connection) -> None:
        connection.execute(text("INSERT INTO revisions (id, revision) VALUES (1, NULL)"))

    with pytest.raises(StoreLost) as lost:
        await store.run(bad)
    assert lost.value.refused


@pytest.mark.parametrize(
    "url", ["sqlite:///", "sqlite:///:memory:", "sqlite:///a.db?mode=ro", "postgresql://", "postgresql://a:b@c:d/e"]
)
async def test_a_url_that_names_no_database_is_refused(url: str) -> None:
    """As a mistake of the configuration, without repeating it."""
    with pytest.raises(SettingsError) as error:
        async with Database(SecretStr(url)):
            raise AssertionError("entered")
    assert "store.url" in str(error.value)
    assert "a:b" not in str(error.value)


async def test_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    """With everything that SQLite puts beside it; and a file that was there keeps its mode."""
    async with Database(SecretStr(f"sqlite:///{tmp_path / 'new.db'}")) as store:
        await store.run(keys.add, key())
        found = modes(tmp_path)
    assert found == dict.fromkeys(("new.db", "new.db-wal", "new.db-shm"), 0o600)
    assert modes(tmp_path) == {"new.db": 0o600}, "nothing is left beside it"
    (tmp_path / "new.db").chmod(0o640)
    async with Database(SecretStr(f"sqlite:///{tmp_path / 'new.db'}")) as store:
        assert await store.read(count) == 1
    assert modes(tmp_path) == {"new.db": 0o640}


async def test_a_file_may_be_named_from_where_the_process_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with Database(SecretStr("sqlite:///here.db")) as store:
        assert store.file == Path("here.db")
    assert (tmp_path / "here.db").exists()


async def test_sqlite_keeps_what_was_committed_also_when_power_is_lost(tmp_path: Path) -> None:
    """Write-ahead log, and each commit waits for the disk; foreign keys are looked at."""
    async with Database(SecretStr(sqlite_url(tmp_path))) as store:

        def pragmas(connection: Connection) -> list[object]:
            names = ("journal_mode", "synchronous", "foreign_keys")
            return [connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in names]

        assert await store.read(pragmas) == ["wal", 2, 1]


@pytest.mark.parametrize("place", ["no-such-folder/a.db", ".", "text.db"])
async def test_a_file_that_cannot_be_used_is_said(tmp_path: Path, place: str) -> None:
    """A folder that is not there, a folder, and something else than a database; nothing is left running."""
    (tmp_path / "text.db").write_text("not a database, but longer than the header that SQLite looks at" * 9)
    with pytest.raises(StoreLost, match="cannot be opened") as lost:
        async with Database(SecretStr(f"sqlite:///{tmp_path / place}")):
            raise AssertionError("entered")
    assert str(tmp_path) not in str(lost.value)
    assert threads() == []


async def test_a_locked_file_is_lost_in_time_and_found_again(tmp_path: Path) -> None:
    """Another process that holds the lock costs an act its time, not the event loop nor the readers theirs."""
    url = sqlite_url(tmp_path)
    async with Database(SecretStr(url)) as holder, Database(SecretStr(url), act_s=0.3) as store:
        held, go = threading.Event(), threading.Event()

        def hold(_: Connection) -> bool:
            held.set()
            return go.wait(20)

        async with asyncio.TaskGroup() as group:
            group.create_task(holder.run(hold))
            await asyncio.to_thread(held.wait)
            with pytest.raises(StoreLost):
                await store.run(keys.add, key())
            assert await store.read(count) == 0
            go.set()
        await store.run(keys.add, key())


async def test_an_act_that_is_late_is_undone(store_url: str) -> None:
    """Also where it is not the database that took the time: nothing is committed after its time."""
    async with Database(SecretStr(store_url), act_s=0.2) as store:
        over = threading.Event()

        def slow(connection: Connection) -> None:
            keys.add(connection, key())
            over.wait(9)

        asyncio.get_running_loop().call_later(0.4, over.set)
        with pytest.raises(StoreLost, match="no answer in time"):
            await store.run(slow)
        assert await store.read(count) == 0


async def test_a_statement_without_end_is_ended(store_url: str) -> None:
    """By time, on both databases, and the thread is free again."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    async with Database(SecretStr(store_url), act_s=0.3, threads=1) as store:
        with pytest.raises(StoreLost, match="no answer in time"):
            await store.read(lambda connection: connection.execute(text(endless)).all())
        assert await store.read(count) == 0


async def test_a_server_that_was_restarted_is_reconnected_to(postgres_server: Postgres, server_url: str) -> None:
    """Nobody notices: connections that died meanwhile are replaced before anything is done with them."""
    async with Database(SecretStr(server_url)) as store:
        await asyncio.gather(*(store.run(tenants.add, tenant(f"t{number}")) for number in range(8)))
        postgres_server.stop()
        with pytest.raises(StoreLost, match=r"cannot be reached|did not do it|is away"):
            await store.read(count)
        postgres_server.start()
        found = await asyncio.gather(*(store.read(count) for _ in range(8)))
        assert found == [0] * 8
        postgres_server.stop()
        postgres_server.start()
        assert await store.read(count) == 0


async def test_a_server_that_stands_still_holds_nobody(postgres_server: Postgres, server_url: str) -> None:
    """Neither with an open connection nor while connecting: each act ends in time, and the next ones work again."""
    async with Database(SecretStr(server_url), act_s=0.3, connect_s=2, threads=2) as store:
        assert await store.read(count) == 0
        postgres_server.pause()
        try:
            begun = time.monotonic()
            for _ in range(2):
                lost = await asyncio.gather(*(store.read(count) for _ in range(4)), return_exceptions=True)
                assert [type(it) for it in lost] == [StoreLost] * 4
            assert time.monotonic() - begun < 20
            with pytest.raises(StoreLost):
                async with Database(SecretStr(server_url), connect_s=2):
                    raise AssertionError("entered")
        finally:
            postgres_server.resume()
        assert await store.read(count) == 0


async def test_leaving_ends_while_the_server_stands_still(postgres_server: Postgres, server_url: str) -> None:
    """What is under way is cut off, and no thread and no connection is left."""
    descriptors = len(os.listdir("/proc/self/fd"))
    database = Database(SecretStr(server_url), act_s=60)
    try:
        async with asyncio.timeout(20), database as store:
            assert await store.read(count) == 0
            postgres_server.pause()
            acts = [asyncio.ensure_future(store.run(keys.add, key(str(number)))) for number in range(3)]
            await asyncio.sleep(0)
            assert repr(store).endswith(" 3 acts>")
    finally:
        postgres_server.resume()
    lost = await asyncio.gather(*acts, return_exceptions=True)
    assert [type(it) for it in lost] == [StoreLost] * 3
    assert threads() == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors


async def test_a_server_that_nobody_answers_for_is_lost() -> None:
    """Refused at once, or silent behind an open port."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StoreLost) as lost:
            async with Database(SecretStr(f"postgresql://user:secret@127.0.0.1:{port}/name"), connect_s=2):
                raise AssertionError("entered")
    with pytest.raises(StoreLost):
        async with Database(SecretStr(f"postgresql://user:secret@127.0.0.1:{port}/name"), connect_s=2):
            raise AssertionError("entered")
    assert "secret" not in f"{lost.value!r}{lost.value.__context__!r}"
    assert threads() == []


async def test_changes_have_their_numbers_in_the_order_of_their_commits(store_url: str) -> None:
    """Of two at once the second waits for the first: who asks for what is new misses nothing."""
    async with Database(SecretStr(store_url)) as one, Database(SecretStr(store_url)) as other:
        added, go = threading.Event(), threading.Event()

        def slow(connection: Connection) -> int:
            revision = keys.add(connection, key("slow")).revision
            added.set()
            go.wait(9)
            return revision

        async with asyncio.TaskGroup() as group:
            first = group.create_task(one.run(slow))
            await asyncio.to_thread(added.wait)
            second = group.create_task(other.run(keys.add, key("quick")))
            before = await other.read(revisions.changed_since, 0)
            go.set()
        assert (first.result(), second.result().revision, before.revision, before.keys) == (1, 2, 0, ())
        assert [it.id for it in (await other.read(revisions.changed_since, 0)).keys] in (
            ["slow", "quick"],
            ["quick", "slow"],
        )


def test_a_gateway_without_a_store_does_not_load_one() -> None:
    """The values, the owner and the ledger can be imported without SQLAlchemy, Alembic and a driver."""
    code = "import gateway.store.rows, gateway.store.database, gateway.usage.ledger, gateway.usage.records, sys; "
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"sqlalchemy", "alembic", "psycopg"} & set(done.stdout.split())
