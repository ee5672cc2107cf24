"""An HTTP/1.1 client for engines: one exchange at a time on a connection, bytes as they come, nothing else.

Owns sockets and their reuse. It knows no model, no retry and no event: a broken exchange raises `Broken`, which
says how far it came. Many body chunks that arrive in one read are handed on as one piece. An engine that sends
faster than its reader is held back by the socket. How long to wait is the user's business: he has `expire` called.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from gateway.deadlines import Deadlines

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
HIGH_WATER_BYTES = 256 * 1024
# How long an engine may take over the end of a message whose reply is complete.
FAREWELL_S = 1.0
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)


class Address(NamedTuple):
    """Where an engine listens, and the key that it wants."""

    host: str
    port: int
    tls: bool = False
    api_key: str | None = None

    @classmethod
    def of(cls, url: str, api_key: str | None = None) -> "Address":
        """The address in `http://host:port` or `https://host:port`."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), tls, api_key)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<Address {self}>"


Sink = Callable[[bytes], bool]
"""Takes some bytes of a body, and says whether it wants more."""


class Broken(Exception):
    """An exchange that cannot be completed. `refused`: no connection came about; `silent`: no byte was received."""

    def __init__(self, why: str, *, refused: bool = False, silent: bool = False) -> None:
        super().__init__(why)
        self.refused = refused
        self.silent = silent


class Head(NamedTuple):
    """Status and headers of an answer; names in lower case."""

    status: int
    headers: dict[bytes, bytes]


class Connection(asyncio.Protocol):
    """A connection to one engine. After `send`, await `head`, then `read` until it returns b"", or `pour`."""

    __slots__ = (
        "_barren_bytes",
        "_buffered",
        "_complete",
        "_error",
        "_head",
        "_head_bytes",
        "_headers",
        "_loop",
        "_news",
        "_on_lost",
        "_parser",
        "_parts",
        "_paused",
        "_received",
        "_reusable",
        "_sink",
        "_then",
        "_transport",
        "_waiter",
        "exchanges",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[["Connection"], None]) -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.exchanges = 0
        self._begin()

    def _begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._head: Head | None = None
        self._head_bytes = 0
        self._barren_bytes = 0
        self._parts: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._received = False
        self._news = False
        self._complete = False
        self._reusable = False
        self._error: Broken | TimeoutError | None = None
        self._then: Callable[[], None] | None = None
        self._sink: Sink | None = None

    # What the user of the connection calls.

    def send(self, message: bytes) -> None:
        """Begins an exchange: `message` is the whole of it, head and body."""
        self.exchanges += 1
        self._begin()
        if self._transport is None or self._transport.is_closing():
            self._error = Broken("connection closed", silent=True)
        else:
            self._transport.write(message)

    async def head(self) -> Head:
        """The answer's head. Raises Broken, and TimeoutError once expired."""
        while self._head is None:
            if self._error:
                raise _anew(self._error)
            await self._wait()
        return self._head

    async def read(self) -> bytes:
        """All of the body that is here, at least one byte; b"" at its end. Raises Broken, TimeoutError once expired.

        What arrived before a connection broke is still returned first.
        """
        while not self._parts:
            if self._complete:
                return b""
            if self._error:
                raise _anew(self._error)
            await self._wait()
        return self._taken()

    async def pour(self, sink: Sink) -> None:
        """Gives the rest of the body to `sink`, read by read, from within the event loop's callback.

        Ends with the body, or as soon as `sink` wants no more. Raises Broken, TimeoutError once expired; what
        arrived before a connection broke is still given first.
        """
        self._sink = sink
        try:
            while True:
                if not self._give():
                    return
                if self._error:
                    raise _anew(self._error)
                await self._wait()
        finally:
            self._sink = None

    def pause(self) -> None:
        """Reads nothing more for now, so that the engine is held back."""
        if not (self._complete or self._paused or self.closed) and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self.closed and self._transport is not None:
                self._transport.resume_reading()

    def expire(self) -> None:
        """The engine had its time: whoever waits for it is told so."""
        if not self._complete and self._error is None:
            self._error = TimeoutError()
            self._wake()

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow: the last one is complete, and both sides keep the connection.

        An engine may answer before it took the whole call; the next one is not to wait behind the rest of it.
        """
        if not (self._complete and self._reusable) or self._transport is None or self._transport.is_closing():
            return False
        return self._transport.get_write_buffer_size() == 0

    @property
    def complete(self) -> bool:
        """Whether the answer came to its end."""
        return self._complete

    def when_complete(self, then: Callable[[], None]) -> None:
        """Calls `then` when the answer comes to its end, or its connection does. Nobody may be reading it any more."""
        self._then = then
        self._make_room()

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def abort(self) -> None:
        """Closes at once; an engine that is still working sees its caller gone."""
        if not self._complete and self._error is None:
            self._error = Broken("connection closed", silent=not self._received)
        if self._transport is not None:
            self._transport.abort()

    def _taken(self) -> bytes:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._make_room()
        return data

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._then is not None:
            self._make_room()
            if self._complete or self.closed:
                then, self._then = self._then, None
                then()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _make_room(self) -> None:
        self._parts = []
        self._buffered = 0
        self.resume()

    def _fail(self, why: str) -> None:
        if self._error is None and not self._complete:
            self._error = Broken(why, silent=not self._received)
        self._reusable = False
        self.abort()
        self._wake()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, they only look like them.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._complete or self._error or not self.exchanges:
            # Bytes that belong to no exchange: whatever they are, this connection cannot be trusted any more.
            self._reusable = False
            self.abort()
            return
        self._received = True
        self._news = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("unexpected protocol upgrade")
        except httptools.HttpParserError:
            self._fail("malformed answer")
        else:
            # A stream under way, read by read: the shortest way there is.
            if self._sink is not None and self._parts:
                self._barren_bytes = 0
                if not self._give():
                    self._wake()
            else:
                self._take_in(len(data))

    def _take_in(self, read_bytes: int) -> None:
        """After a read: wakes who waits, only if there is something for him, so that a trickle renews no timeout."""
        self._barren_bytes = 0 if self._news else self._barren_bytes + read_bytes
        if self._barren_bytes > MAX_HEAD_BYTES:
            self._fail("endless head or framing")
            return
        if self._sink is not None:
            # Who waits is woken only at the end.
            if not self._give():
                self._wake()
        elif self._buffered > HIGH_WATER_BYTES:
            self.pause()
            self._wake()
        elif self._news:
            self._wake()

    def _give(self) -> bool:
        """Gives what one read brought to the sink, which may pause us; whether there is more to give."""
        if self._parts and self._sink is not None:
            parts, self._parts, self._buffered = self._parts, [], 0
            if self._paused:
                self.resume()
            if not self._sink(parts[0] if len(parts) == 1 else b"".join(parts)):
                self._sink = None
        return self._sink is not None and not self._complete

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._complete and self._error is None:
            if self._until_close and exc is None:
                self._complete = True
            else:
                self._error = Broken("connection lost", silent=not self._received)
        self._transport = None
        del self._parser  # It knows us, too.
        self._on_lost(self)
        self._wake()

    @property
    def _until_close(self) -> bool:
        """An answer without length or chunks ends where its connection ends (RFC 9112, 6.3)."""
        return (
            self._head is not None
            and b"content-length" not in self._head.headers
            and b"transfer-encoding" not in self._head.headers
        )

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("bytes after the end of the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES or len(self._headers) >= MAX_HEADERS:
            raise ValueError("the head is too large")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 100:
            raise ValueError("no such status")
        if status >= 200:
            self._head = Head(status, self._headers)
            self._news = True
        self._headers = {}

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._buffered += len(body)
        self._news = True

    def on_message_complete(self) -> None:
        if self._head is None:  # An interim answer (1xx): the real one is still to come.
            return
        self._complete = self._news = True
        self._reusable = self._parser.should_keep_alive() and not self._until_close


class OutOfFiles(Broken):
    """No connection came about because this process may open no more files: the engine has no part in it."""

    def __init__(self) -> None:
        super().__init__("no connection: out of files", refused=True, silent=True)


def _anew(error: Broken | TimeoutError) -> Exception:
    """The same to be raised: raised itself it would hold its connection, which holds it."""
    if isinstance(error, Broken):
        return Broken(str(error), refused=error.refused, silent=error.silent)
    return TimeoutError()


def reason_of(error: OSError | UnicodeError) -> str:
    """Why no connection came about, for callers too: asyncio's own words would name the address."""
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "unknown host"
    return os.strerror(error.errno) if error.errno else "no address answered"


class Connections:
    """The connections to all engines; idle ones are kept for `idle_s` and used again, the newest first.

    Use as `async with`: on leaving, every connection is closed.
    """

    def __init__(self, connect_timeout_s: float, idle_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        # The oldest first; the values say nothing.
        self._idle: dict[Address, dict[Connection, None]] = {}
        self._idling = Deadlines(idle_s, Connection.abort)
        self._leaving = Deadlines(FAREWELL_S, Connection.abort)
        self._patiences: list[Deadlines[Connection]] = []
        self._open: set[Connection] = set()
        self._all_lost = asyncio.Event()
        self._tls: ssl.SSLContext | None = None

    async def __aenter__(self) -> "Connections":
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for deadlines in (self._idling, self._leaving, *self._patiences):
            deadlines.close()
        for connection in tuple(self._open):
            connection.abort()
        if self._open:
            self._all_lost.clear()
            await self._all_lost.wait()

    def patience(self, delay_s: float) -> "Deadlines[Connection]":
        """Deadlines for connections: one that was started `delay_s` ago and not stopped expires."""
        made = Deadlines(delay_s, Connection.expire)
        self._patiences.append(made)
        return made

    async def acquire(self, address: Address, *, fresh: bool = False) -> Connection:
        """A connection to send on: a kept one unless `fresh`. Raises Broken when none can be made."""
        idle = self._idle.get(address)
        while idle and not fresh:
            connection, _ = idle.popitem()
            self._idling.stop(connection)
            if not connection.closed:
                return connection
        return await self._connect(address)

    def release(self, connection: Connection, address: Address) -> None:
        """Keeps a connection for the next call where its exchange is complete, closes it otherwise."""
        if connection.reusable:
            self._idle.setdefault(address, {})[connection] = None
            self._idling.start(connection)
        else:
            connection.abort()

    def release_at_end(self, connection: Connection, address: Address) -> None:
        """The same once the exchange is complete, if that is soon; what still comes is dropped, nobody waits."""
        if connection.complete or connection.closed:
            self.release(connection, address)
            return

        def ended() -> None:
            self._leaving.stop(connection)
            self.release(connection, address)

        self._leaving.start(connection)
        connection.when_complete(ended)

    async def _connect(self, address: Address) -> Connection:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop, partial(self._forget, address)),
                    address.host,
                    address.port,
                    ssl=self._tls_context() if address.tls else None,
                )
        except TimeoutError:
            raise Broken("no connection in time", refused=True, silent=True) from None
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno in OUT_OF_FILES:
                raise OutOfFiles from error
            raise Broken(f"no connection: {reason_of(error)}", refused=True, silent=True) from error
        if not connection.closed:
            self._open.add(connection)
        return connection

    def _forget(self, address: Address, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._all_lost.set()
        self._idle.get(address, {}).pop(connection, None)
        self._idling.stop(connection)

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def __repr__(self) -> str:
        idle = sum(len(connections) for connections in self._idle.values())
        return f"<Connections {len(self._open)} open, {idle} idle>"
