"""The callers of one listener: their connections, the exchanges under way, and what all of them share."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.deadlines import Deadlines
from gateway.edge.connection import CallerConnection
from gateway.edge.exchange import Exchange
from gateway.errors import GatewayError

# How long the rest of a body that was answered is read and dropped, so that the answer is not lost.
LINGER_S = 5.0
# How long a connection that was just made is left open when the listener closes: its call is on the way.
FIRST_CALL_S = 0.5
# Connections beyond the limit that are kept for long enough to be told so; those beyond are cut at once.
SURPLUS = 64

App = Callable[[Exchange], Awaitable[None]]
"""Answers one exchange. Raises nothing; an exchange that it leaves without a whole answer loses its connection."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How long callers may take, in seconds, and how many connections there may be."""

    head_timeout_s: float
    slow_reader_s: float
    keep_alive_s: float
    connections: int
    connections_per_address: int | None = None


class Census(Protocol):
    """Who counts connections, and the heads that never became calls."""

    connections: int

    def head_refused(self, error: GatewayError) -> None: ...


class Callers:
    """The connections of one listener; `<Callers 3 connections, 1 exchanges>`.

    `surplus` answers on connections beyond the limit. `retiring`: every answer from now on is the last one on its
    connection.
    """

    def __init__(
        self,
        app: App,
        surplus: App,
        limits: ConnectionLimits,
        census: Census,
        new_id: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self.limits = limits
        self.census = census
        self.new_id = new_id
        self.clock = clock
        self.retiring = False
        self.heads = Deadlines(limits.head_timeout_s, CallerConnection.miss_head)
        self.idle = Deadlines(limits.keep_alive_s, CallerConnection.close)
        self.stalls = Deadlines(limits.slow_reader_s, CallerConnection.stall)
        self.lingering = Deadlines(LINGER_S, CallerConnection.cut)
        self._app = app
        self._surplus = surplus
        self._connections: set[CallerConnection] = set()
        self._by_address: Counter[str] = Counter()
        # Tasks are kept here: an event loop holds them weakly.
        self._tasks: dict[Exchange, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def connection(self) -> CallerConnection:
        """A protocol for a connection that was accepted."""
        return CallerConnection(self)

    def retire(self) -> None:
        """Every answer from now on is the last one on its connection, and says so."""
        self.retiring = True

    def close(self) -> None:
        """Closes connections: those without a call now, the others after their answer."""
        self.retire()
        for connection in tuple(self._connections):
            connection.retire()
        self._loop.call_later(FIRST_CALL_S, self._close_silent)

    async def gone(self, within_s: float) -> None:
        """Waits until no connection is open and no exchange runs; cuts off what is left after `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                await self._until_none()
        except TimeoutError:
            for connection in tuple(self._connections):
                connection.cut()
            await self._until_none()
        for deadlines in (self.heads, self.idle, self.stalls, self.lingering):
            deadlines.close()

    # What connections call.

    def joined(self, connection: CallerConnection) -> None:
        self._connections.add(connection)
        self.census.connections += 1
        beyond = len(self._connections) - self.limits.connections
        if self.limits.connections_per_address is not None:
            self._by_address[connection.address] += 1
            beyond = max(beyond, self._by_address[connection.address] - self.limits.connections_per_address)
        connection.surplus = beyond > 0
        if beyond > SURPLUS:
            connection.cut()

    def left(self, connection: CallerConnection) -> None:
        self._connections.discard(connection)
        self.census.connections -= 1
        if self.limits.connections_per_address is not None:
            self._by_address[connection.address] -= 1
            if not self._by_address[connection.address]:
                del self._by_address[connection.address]
        self._changed.set()

    def serve(self, connection: CallerConnection, exchange: Exchange) -> None:
        """Has an exchange answered, in a task of its own."""
        self._tasks[exchange] = self._loop.create_task(self._answer(connection, exchange))

    async def _answer(self, connection: CallerConnection, exchange: Exchange) -> None:
        try:
            await (self._surplus if connection.surplus else self._app)(exchange)
        finally:
            connection.abandoned(exchange)
            del self._tasks[exchange]
            if self.retiring:
                self._changed.set()

    def _close_silent(self) -> None:
        for connection in tuple(self._connections):
            if connection in self.heads:
                self.heads.stop(connection)
                connection.miss_head()

    async def _until_none(self) -> None:
        while self._connections or self._tasks:
            self._changed.clear()
            await self._changed.wait()

    def __repr__(self) -> str:
        return f"<Callers {len(self._connections)} connections, {len(self._tasks)} exchanges>"
