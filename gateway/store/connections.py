"""How the two databases differ: opening one, beginning a transaction in it, cutting it off while a thread waits for it.

Transactions that write are serial on SQLite (`BEGIN IMMEDIATE`); those that read see the state at their beginning and
wait for nobody. On PostgreSQL each transaction begins with one statement that sets its limits, which also shows
whether the connection is still alive; nothing is set on the session, so that a pooler between does no harm.
"""

import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from gateway.settings import SettingsError

BUSY_S = 5.0
"""How long SQLite files are waited for while they are opened."""

MIGRATING = 0x7061676567617465
"""The advisory lock of whoever changes the tables: `pagegate`."""

LIMITS = text(
    "SELECT set_config('statement_timeout', :ms, true), set_config('idle_in_transaction_session_timeout', :ms, true), "
    "set_config('transaction_read_only', :reading, true)"
)


class Kind(Protocol):
    """One of the two kinds of database."""

    engine: Engine

    def begin(self, connection: Connection, reading: bool, limit_s: float) -> None:
        """The first statements of a transaction."""
        ...

    def lock(self, connection: Connection) -> None:
        """Waits until nobody else changes the tables; the lock ends with the transaction."""
        ...

    @contextmanager
    def cutting(self, connection: Connection) -> Iterator[Callable[[], object]]:
        """What ends, from any thread and within the block, whatever the connection waits for."""
        ...


class Sqlite:
    """A file, opened by each thread. Creates it readable by its owner alone; leaves an existing one's mode as it is."""

    def __init__(self, file: Path, threads: int) -> None:
        """Raises OSError and sqlite3.Error."""
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        _write_ahead(file)
        self.engine = create_engine(
            URL.create("sqlite+pysqlite", database=str(file)),
            connect_args={"check_same_thread": False, "isolation_level": None},
            poolclass=QueuePool,
            pool_size=threads,
            max_overflow=0,
            hide_parameters=True,
        )
        event.listen(self.engine, "connect", _prepare)

    def begin(self, connection: Connection, reading: bool, limit_s: float) -> None:
        # What waits for another process cannot be interrupted.
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(limit_s * 500)}")
        connection.exec_driver_sql(f"PRAGMA query_only = {int(reading)}")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    def lock(self, connection: Connection) -> None:
        """The transaction has the lock already."""

    @contextmanager
    def cutting(self, connection: Connection) -> Iterator[Callable[[], object]]:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        yield driver.interrupt


def _prepare(driver: sqlite3.Connection, record: object) -> None:
    driver.execute("PRAGMA foreign_keys = ON")
    # What is committed survives also the loss of power.
    driver.execute("PRAGMA synchronous = FULL")


def _write_ahead(file: Path) -> None:
    """Lets readers and a writer work at once; stays with the file. SQLite lets nobody wait who wants to set it."""
    connection = sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)
    try:
        until = time.monotonic() + BUSY_S
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
    finally:
        connection.close()


class Postgres:
    """A server, reached with psycopg. What the URL itself says of timeouts holds."""

    def __init__(self, url: str, threads: int, connect_s: int) -> None:
        """Raises SettingsError."""
        try:
            parsed = make_url(url).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError):
            parsed = None
        if parsed is None or not parsed.database:
            raise SettingsError("store.url", ["must be postgresql://USER:PASSWORD@HOST/NAME"])
        wanted: dict[str, Any] = {
            "connect_timeout": connect_s,
            "application_name": "pagegate",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        }
        self.engine = create_engine(
            parsed,
            # A pooler may give each transaction another session, which does not know what was prepared.
            connect_args={"prepare_threshold": None}
            | {name: value for name, value in wanted.items() if name not in parsed.query},
            pool_size=threads,
            max_overflow=0,
            hide_parameters=True,
        )

    def begin(self, connection: Connection, reading: bool, limit_s: float) -> None:
        connection.execute(LIMITS, {"ms": str(int(limit_s * 1000)), "reading": "on" if reading else "off"})

    def lock(self, connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATING})

    @contextmanager
    def cutting(self, connection: Connection) -> Iterator[Callable[[], object]]:
        driver: Any = connection.connection.driver_connection
        # Its own descriptor: the driver may close the other at any time, and somebody else be given its number.
        with socket.socket(fileno=os.dup(driver.fileno())) as line:

            def cut() -> None:
                with suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)

            yield cut


def why(error: DBAPIError | sqlite3.Error) -> str:
    """What a driver's error is called, without its text, which may say anything."""
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None)
    return f"{type(original).__name__} {code}" if code else type(original).__name__


def is_refusal(error: DBAPIError) -> bool:
    """Whether the statement itself or its values are at fault: it would fail again."""
    return type(error).__name__ in ("DataError", "IntegrityError", "NotSupportedError", "ProgrammingError")
