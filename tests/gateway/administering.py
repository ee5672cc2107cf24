"""The admin API on a loopback socket over a database of its own, with one administrator of each role and a caller.

Built from the parts that a gateway builds it from, but for the gateway around it.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from gateway.admin.administration import Administration
from gateway.admin.api import AdminApi
from gateway.admin.declared import Declared
from gateway.edge.arrival import ReadingLimits, Room
from gateway.edge.callers import Callers, ConnectionLimits
from gateway.edge.routes import Surface
from gateway.errors import GatewayError
from gateway.identity.directory import Directory
from gateway.identity.failures import Failures
from gateway.identity.identities import Identities
from gateway.identity.keys import digest
from gateway.settings import Settings, parse
from gateway.store import audit, revisions
from gateway.store.database import Database
from gateway.store.rows import AuditEntry, UsageRecord
from gateway.telemetry import logs
from tests.harness import SECRET, LogLines
from tests.wire_client import WireClient, WireReply, WireStream

KEYS = {role: f"pga-{role}-of-the-tests" for role in ("viewer", "operator", "admin")}
CALLER = "pg-caller-of-the-tests"
NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
SETTINGS: dict[str, Any] = {
    "identity": {
        "secret": SECRET,
        "tenants": [{"name": "default"}, {"name": "of-file", "budget": {"tokens_per_day": 1000}}],
        "keys": [{"name": "from-file", "digest": digest(CALLER, SECRET.encode()), "tenant": "of-file"}],
        "failures_per_minute": 10_000,
    },
    "admin": {
        "keys": [
            {"name": f"the-{role}", "digest": digest(key, SECRET.encode()), "role": role} for role, key in KEYS.items()
        ]
    },
}


class Census:
    """Counts what the connections have counted."""

    def __init__(self) -> None:
        self.connections = 0
        self.refused: list[GatewayError] = []

    def head_refused(self, error: GatewayError) -> None:
        self.refused.append(error)


@dataclass
class Desk:
    """The admin API under test. `now` is the wall time that it sees; `changes` counts how often it told of one."""

    database: Database
    settings: Settings
    directory: Directory = field(repr=False)
    held: AsyncExitStack = field(repr=False)
    log: LogLines = field(repr=False)
    now: datetime = NOW
    changes: int = 0
    url: str = ""
    callers: Callers | None = None

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    async def changed(self) -> None:
        self.changes += 1

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        role: str | None = "admin",
        key: str | None = None,
        raw: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> WireReply:
        """One call on a connection of its own, by who has this role, or with this key."""
        self.advance(1e-6)  # Of two entries of the same moment none is the first.
        credential = key or (KEYS[role] if role else None)
        given = {"authorization": f"Bearer {credential}"} if credential else {}
        async with WireClient(self.url, within_s=20) as client:
            await client.send(method, path, json=body, body=raw, headers=given | (headers or {}))
            if method == "HEAD":
                return WireStream(client, await client.head()).so_far()
            return await client.reply()

    async def get(self, path: str, role: str = "admin") -> Any:
        """What a call that must succeed finds."""
        reply = await self.call("GET", path, role=role)
        assert reply.status == 200, reply.body
        return reply.json

    async def entries(self) -> list[AuditEntry]:
        """The whole audit log, oldest first."""
        return list(reversed(await self.database.read(audit.listed, limit=1000)))

    async def lose_database(self) -> None:
        """From now on the database cannot be reached."""
        await self.held.aclose()

    async def look(self) -> Directory:
        """The directory as the gateway has it once it has looked at what changed."""
        changes = await self.database.read(revisions.changed_since, self.directory.revision)
        self.directory.follow(changes.revision, changes.tenants, changes.keys)
        return self.directory


@asynccontextmanager
async def administering(
    folder: Path, settings: dict[str, Any] | None = None, *, url: str | None = None
) -> AsyncIterator[Desk]:
    """The admin API while the block runs, on the database of the URL or of the folder; nothing is left behind."""
    parsed = parse(SETTINGS | (settings or {}), "the test's settings", folder)
    lines, census, numbers = LogLines(), Census(), itertools.count(1)
    log = logs.make(parsed.telemetry, lines)  # type: ignore[arg-type]  # A raw stream is all that it needs.
    async with AsyncExitStack() as up:
        held = await up.enter_async_context(AsyncExitStack())
        database = await held.enter_async_context(Database(SecretStr(url or f"sqlite:///{folder / 'pagegate.db'}")))

        def wall() -> float:
            return desk.now.timestamp()

        directory = Directory(parsed.identity, parsed.admin.keys, SECRET.encode(), wall)
        desk = Desk(database, parsed, directory, held, lines)
        identities = Identities(directory, None, Failures(10_000, wall))
        administration = Administration(
            database,
            Declared.of(parsed.identity, parsed.admin),
            SECRET.encode(),
            now=lambda: desk.now,
            changed=desk.changed,
            status=lambda: {"directory": repr(directory)},
            unit="credit",
        )
        api = AdminApi(administration, identities.administrator, "1.2.3")
        surface = Surface({}, api.routes(), ReadingLimits(2**20, 10, 8, Room(2**24)), log)
        limits = ConnectionLimits(10, 10, 10, 1000)
        desk.callers = callers = Callers(
            surface, surface.surplus, limits, census, lambda: f"req_{next(numbers)}", asyncio.get_running_loop().time
        )
        server = await asyncio.get_running_loop().create_server(callers.connection, "127.0.0.1", 0)
        desk.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield desk
        finally:
            server.close()
            callers.close()
            await callers.gone(2)
    assert repr(callers) == "<Callers 0 connections, 0 exchanges>"
    assert not lines.named("call_failed"), lines.text.decode()
    told = lines.text.decode()
    assert SECRET not in told
    assert not any(key in told for key in (*KEYS.values(), CALLER))


def used(id: str, at: datetime, **fields: Any) -> UsageRecord:
    """What one call used."""
    usual: dict[str, Any] = {
        "tenant": "default",
        "key": "alice",
        "model": "tiny",
        "version": None,
        "replica": None,
        "endpoint": "/v1/chat/completions",
        "stream": True,
        "outcome": "ok",
        "error": None,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cached_tokens": 2,
        "measured": True,
        "cost_micros": 0,
        "duration_ms": 100,
        "queue_ms": 0,
        "first_token_ms": 30,
        "attempts": 1,
        "trace_id": "0" * 32,
    }
    return UsageRecord(id=id, at=at, **(usual | fields))
