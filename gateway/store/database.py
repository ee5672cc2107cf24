"""The owner of the connections: runs functions in a few threads of its own, each in a transaction, within a time.

Whatever a driver raises leaves here as StoreLost. A connection that does not answer is cut off from outside, by a
timer of the event loop: no thread waits for ever, not even for a server that stands still. SQLAlchemy is imported
when a database is entered (`_connecting`), and not before.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from pydantic import SecretStr

from gateway.settings import SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.store.connections import Kind

P = ParamSpec("P")
T = TypeVar("T")
SQLITE = "sqlite:///"
LATE = "the database gave no answer in time"


class StoreLost(Exception):
    """The database did not do it. The text has no address, no credential and nothing of what was to be stored.

    `refused` is True if the database is there and will never take this: to try again is vain.
    """

    def __init__(self, why: str, *, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


class _Stale(StoreLost):
    """The connection died since it was used last; nothing was done with it."""


class _Act:
    """One function on its way. Its time ends by `expire`, from any thread, which cuts what it holds then or later."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.expired = False
        self._lock = threading.Lock()
        self._cut: Callable[[], object] | None = None

    @contextmanager
    def holding(self, cut: Callable[[], object]) -> Iterator[None]:
        with self._lock:
            self._cut = cut
            if self.expired:
                cut()
        try:
            yield
        finally:
            with self._lock:
                self._cut = None

    def expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._cut is not None:
                self._cut()


class Database:
    """A database with its tables up to date. Use as `async with`. `<Database sqlite, 0 acts>`.

    An act takes no longer than `act_s`, and `connect_s` if it must connect first; then it is undone. `file` is that of
    a SQLite database, None for PostgreSQL.
    """

    def __init__(
        self, url: SecretStr, *, threads: int = 4, act_s: float = 10, connect_s: int = 3, migrate_s: float = 120
    ) -> None:
        """Raises SettingsError for a URL that names no file."""
        self.file = _file_of(url)
        self._url = url
        self._threads = threads
        self._act_s = act_s
        self._connect_s = connect_s
        self._migrate_s = migrate_s
        self._acts: dict[asyncio.Future[Any], _Act] = {}
        self._kind: Kind | None = None
        self._open = False

    async def __aenter__(self) -> Self:
        """Connects and brings the tables up to date. Raises StoreLost."""
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="store")
        self._open = True
        try:
            await self._submit(self._connect, self._migrate_s)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cuts off what is still under way."""
        await self._close()

    async def run(self, do: "Callable[Concatenate[Connection, P], T]", *args: P.args, **kwargs: P.kwargs) -> T:
        """What `do(connection, ...)` returns, in a transaction that ends with it. Raises StoreLost, and what it raises.

        A caller who is cancelled does not end a transaction that has begun.
        """
        return await self._submit(lambda act: self._transact(act, lambda it: do(it, *args, **kwargs)), self._act_s)

    async def read(self, do: "Callable[Concatenate[Connection, P], T]", *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for what only reads, which waits for no writer; it cannot write."""
        return await self._submit(
            lambda act: self._transact(act, lambda it: do(it, *args, **kwargs), reading=True), self._act_s
        )

    async def _submit(self, work: Callable[[_Act], T], limit_s: float) -> T:
        if not self._open:
            raise StoreLost("the database is closed")
        act = _Act(limit_s)
        running = asyncio.wrap_future(self._pool.submit(work, act))
        self._acts[running] = act
        timer = asyncio.get_running_loop().call_later(limit_s, act.expire)

        def ended(running: asyncio.Future[T]) -> None:
            timer.cancel()
            del self._acts[running]

        running.add_done_callback(ended)
        return await asyncio.shield(running)

    async def _close(self) -> None:
        self._open = False
        for act in self._acts.values():
            act.expire()
        try:
            if self._acts:
                await asyncio.wait(list(self._acts))
            if self._kind is not None:
                await asyncio.wrap_future(self._pool.submit(self._kind.engine.dispose))
        except BaseException:
            self._pool.shutdown(wait=False)
            raise
        # Its threads have nothing to do any more: they end at once.
        self._pool.shutdown()

    # In a thread.

    def _connect(self, act: _Act) -> None:
        from gateway.store import connections, migrations

        try:
            if self.file is not None:
                kind: Kind = connections.Sqlite(self.file, self._threads)
            else:
                kind = connections.Postgres(self._url.get_secret_value(), self._threads, self._connect_s)
        except OSError as error:
            lost = StoreLost(f"the database's file cannot be opened: {error.strerror}")
        except sqlite3.Error as error:
            lost = StoreLost(f"the database's file cannot be opened: {connections.why(error)}")
        else:
            self._kind = kind

            def upgrade(connection: "Connection") -> None:
                kind.lock(connection)
                migrations.upgrade(connection)

            return self._transact(act, upgrade)
        raise lost

    def _transact(self, act: _Act, work: "Callable[[Connection], T]", reading: bool = False) -> T:
        try:
            return self._attempt(act, work, reading)
        except _Stale:
            pass
        return self._attempt(act, work, reading)

    def _attempt(self, act: _Act, work: "Callable[[Connection], T]", reading: bool) -> T:
        from sqlalchemy.exc import DBAPIError

        from gateway.store.connections import is_refusal, why

        kind = self._kind
        assert kind is not None
        begun = False
        try:
            if act.expired:
                raise StoreLost(LATE)
            with kind.engine.connect() as connection, kind.cutting(connection) as cut, act.holding(cut):
                try:
                    kind.begin(connection, reading, act.limit_s)
                    begun = True
                    result = work(connection)
                    if act.expired:
                        raise StoreLost(LATE)
                    connection.commit()
                    return result
                except BaseException:
                    # Here, where it can be cut off, and not when the connection goes back.
                    connection.rollback()
                    raise
        except DBAPIError as error:
            if act.expired:
                lost = StoreLost(LATE)
            elif error.connection_invalidated and not begun:
                lost = _Stale(f"the database is away ({why(error)})")
            else:
                what = "the database did not do it" if begun else "the database cannot be reached"
                lost = StoreLost(f"{what} ({why(error)})", refused=is_refusal(error))
        # Outside of the block: what the driver's error holds, texts and values, does not go along.
        raise lost

    def __repr__(self) -> str:
        return f"<Database {'postgresql' if self.file is None else 'sqlite'}, {len(self._acts)} acts>"


def _file_of(url: SecretStr) -> Path | None:
    text = url.get_secret_value()
    if not text.startswith(SQLITE):
        return None
    name = text.removeprefix(SQLITE)
    if not name or name.startswith(":memory:") or "?" in name or "\0" in name:
        raise SettingsError("store.url", ["must name a file, and nothing after it"])
    return Path(name)
