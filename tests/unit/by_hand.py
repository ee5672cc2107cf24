"""An event loop that is turned by hand, and what a caller's connection needs of the world around it.

Time passes when a test says so, and a task runs when a test lets it: no socket, no sleep and no chance is in it.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar, cast

from gateway.edge.callers import Callers, ConnectionLimits
from gateway.edge.connection import CallerConnection
from gateway.edge.exchange import Exchange
from gateway.errors import GatewayError

T = TypeVar("T")
# As in asyncio: above the one a transport says that it is full, below the other that it has room again.
HIGH_WATER_BYTES = 64 * 1024
LOW_WATER_BYTES = 16 * 1024


class HandLoop:
    """Runs callbacks when it is told to; `now_s` is its clock. What went wrong in a callback is in `errors`.

    It is no whole event loop: `as_loop` is for those who want one, and need of it what is here.
    """

    def __init__(self) -> None:
        self.as_loop = cast(asyncio.AbstractEventLoop, self)
        self.now_s = 1000.0
        self.errors: list[dict[str, Any]] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[asyncio.TimerHandle] = []

    @contextmanager
    def running(self) -> Iterator["HandLoop"]:
        """The block sees this loop as the running one."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self.as_loop)
        try:
            yield self
        finally:
            asyncio._set_running_loop(before)

    def turn(self) -> None:
        """Runs what is ready, and what becomes ready by that."""
        with self.running():
            while self._ready:
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()

    def pass_time(self, seconds: float) -> None:
        """Lets time pass; what comes due on the way runs at its own time."""
        end_s = self.now_s + seconds
        self.turn()
        while self.timers and self.timers[0].when() <= end_s:
            timer = self.timers[0]
            self._timers.remove(timer)
            self.now_s = max(self.now_s, timer.when())
            with self.running():
                timer._run()
            self.turn()
        self.now_s = end_s

    @property
    def timers(self) -> list[asyncio.TimerHandle]:
        """Those that still run, the next one first."""
        self._timers = sorted(timer for timer in self._timers if not timer.cancelled())
        return self._timers

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns that comes to its end without anything else happening."""
        task = self.create_task(coroutine)
        self.turn()
        return task.result()

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self.as_loop)

    def create_task(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        return asyncio.Task(coroutine, loop=self.as_loop)

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self.as_loop, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self.as_loop, context)
        self._timers.append(timer)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)


@dataclass
class Socket:
    """What a connection does to its socket; `error` is what the kernel has against it."""

    error: int = 0
    lingers: list[bytes] = field(default_factory=list)

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_LINGER)
        self.lingers.append(value)

    def getsockopt(self, level: int, name: int) -> int:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.error


class Wire:
    """A transport: `sent` is what was written, `held` what of it the caller has not read yet.

    He reads all at once unless `reads` is False. `cut`: the connection was reset.
    """

    def __init__(self, loop: HandLoop) -> None:
        self.sent = b""
        self.writes = 0
        self.held = 0
        self.reads = True
        self.paused = False
        self.ended = False
        self.cut = False
        self.closing = False
        self.lost = False
        self.socket = Socket()
        self._full = False
        self._loop = loop
        self.protocol: CallerConnection

    def write(self, data: bytes) -> None:
        assert not self.ended, "written after the end"
        if self.closing:
            return
        self.writes += 1
        self.sent += data
        if not self.reads:
            self.held += len(data)
            if self.held > HIGH_WATER_BYTES and not self._full:
                self._full = True
                self.protocol.pause_writing()

    def write_eof(self) -> None:
        self.ended = True

    def take(self, size: int | None = None) -> None:
        """The caller reads `size` bytes, or all."""
        self.held = 0 if size is None else max(0, self.held - size)
        if self._full and self.held <= LOW_WATER_BYTES:
            self._full = False
            with self._loop.running():
                self.protocol.resume_writing()
        if self.closing and not self.held:
            self._lose()

    def close(self) -> None:
        self.closing = True
        if not self.held:
            self._lose()

    def abort(self) -> None:
        self.closing = self.cut = True
        self.held = 0
        self._lose()

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self._loop.call_soon(self.protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.held

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_extra_info(self, name: str) -> Any:
        return {"socket": self.socket, "peername": ("127.0.0.1", 1)}[name]


@dataclass
class Census:
    """Counts as the metrics do."""

    connections: int = 0
    refused: list[GatewayError] = field(default_factory=list)

    def head_refused(self, error: GatewayError) -> None:
        self.refused.append(error)


App = Callable[[Exchange], Awaitable[None]]
LIMITS = ConnectionLimits(head_timeout_s=10.0, slow_reader_s=30.0, keep_alive_s=75.0, connections=1000)


class Listener:
    """The owner of connections, on a loop that is turned by hand; ids of exchanges are `id-1`, `id-2` and so on."""

    def __init__(self, app: App, limits: ConnectionLimits = LIMITS) -> None:
        self.loop = HandLoop()
        self.exchanges: list[Exchange] = []
        self.census = Census()
        numbers = count(1)

        async def watched(exchange: Exchange) -> None:
            self.exchanges.append(exchange)
            await app(exchange)

        with self.loop.running():
            self.callers = Callers(watched, watched, limits, self.census, lambda: f"id-{next(numbers)}", self.loop.time)

    def accept(self) -> "Caller":
        return Caller(self)

    @property
    def deadlines(self) -> str:
        """How many things have a deadline, by kind; empty where nothing has."""
        callers = self.callers
        kinds = (("heads", callers.heads), ("idle", callers.idle), ("stalls", callers.stalls))
        found = {name: len(kind._started) for name, kind in (*kinds, ("lingering", callers.lingering))}
        return ", ".join(f"{number} {name}" for name, number in found.items() if number)


class Caller:
    """The other end of a connection: sends bytes, looks at what came back, and leaves."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.loop = listener.loop
        self.wire = Wire(self.loop)
        with self.loop.running():
            self.connection = listener.callers.connection()
            self.wire.protocol = self.connection
            self.connection.connection_made(cast(asyncio.Transport, self.wire))

    def send(self, *parts: bytes, turning: bool = True) -> "Caller":
        """Sends parts, each of which is one read of the gateway; whoever works on calls gets to it after each."""
        for part in parts:
            if not self.wire.closing:
                with self.loop.running():
                    self.connection.data_received(part)
            if turning:
                self.loop.turn()
        return self

    def half_close(self) -> bool:
        """Closes the sending side; whether the connection stays open for the answer."""
        with self.loop.running():
            stays = self.connection.eof_received()
        if not stays:
            self.wire.close()
        self.loop.turn()
        return stays

    def leave(self, error: Exception | None = None) -> None:
        """The connection is gone."""
        if not self.wire.lost:
            self.wire.lost = self.wire.closing = True
            with self.loop.running():
                self.connection.connection_lost(error)
        self.loop.turn()

    @property
    def answered(self) -> bytes:
        return self.wire.sent
