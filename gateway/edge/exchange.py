"""One exchange on a caller's connection: the call as it comes in, and the one answer that goes out.

Reads the body under limits of size and time, frames the answer, and tells when the caller has left. Sockets,
deadlines on connections and the order of exchanges are the connection's business.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from gateway.edge.head import Head
from gateway.errors import BodyTooLarge, BodyTooSlow, GatewayError

Told = Callable[[GatewayError], None]
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
CLOSE = b"connection: close\r\n"
LAST_CHUNK = b"0\r\n\r\n"
# Heads of chunks of the usual sizes: writing a number costs more than the chunk around it.
MOST_USUAL = 4096
CHUNK_HEADS = tuple(b"%x\r\n" % size for size in range(MOST_USUAL))
# Who sends a long body is held back while nobody has asked for it.
UNASKED_BYTES = 64 * 1024


class Connection(Protocol):
    """What an exchange needs of the connection that it is on. `address` is the host that connected."""

    address: str

    def write(self, data: bytes) -> None: ...
    def hold_back(self) -> None: ...
    def let_on(self) -> None: ...
    def answered(self, exchange: "Exchange") -> None: ...
    def last(self) -> bool: ...


class Exchange:
    """`head` is there from the beginning. `received_at_s` is monotonic; `full`: the caller has much to read still."""

    __slots__ = (
        "_bodiless",
        "_body",
        "_chunked",
        "_complete",
        "_connection",
        "_departed",
        "_failure",
        "_keep_alive",
        "_limit_bytes",
        "_on_departure",
        "_on_room",
        "_opening",
        "_waiter",
        "ended",
        "full",
        "head",
        "id",
        "received_at_s",
        "speaks_events",
        "started",
    )

    def __init__(self, connection: Connection, head: Head, call_id: str, received_at_s: float) -> None:
        self.head = head
        self.id = call_id
        self.received_at_s = received_at_s
        self.started = False
        self.ended = False
        # Whether an error can still be told in a stream that has begun.
        self.speaks_events = False
        self.full = False
        self._connection = connection
        self._complete = False
        self._body: bytes | bytearray = b""
        self._limit_bytes = UNASKED_BYTES
        self._keep_alive = head.keep_alive and not head.http_1_0
        self._waiter: asyncio.Future[None] | None = None
        self._failure: GatewayError | None = None
        self._departed: GatewayError | None = None
        self._on_departure: Told | None = None
        self._on_room: Callable[[], None] | None = None
        self._opening = b""
        self._chunked = False
        self._bodiless = head.method == "HEAD"

    # The call.

    @property
    def unread(self) -> bool:
        """Whether some of the body is still to come."""
        return not self._complete

    @property
    def address(self) -> str:
        """The host that connected, which may be a proxy; empty for a caller on a local socket."""
        return self._connection.address

    @property
    def departed(self) -> GatewayError | None:
        """Why the caller is not there any more; None while he is."""
        return self._departed

    def when_departed(self, told: Told) -> None:
        """Calls `told` once if the caller leaves before his answer is complete."""
        self._on_departure = told

    async def body(self, limit_bytes: int, within_s: float) -> bytes:
        """The whole body. Raises BodyTooLarge, BodyTooSlow, CallerLeft, and what is wrong with its framing."""
        self._limit_bytes = limit_bytes
        if len(self._body) > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        self._connection.let_on()
        if not (self._complete or self._failure or self._departed):
            if self.head.expects and not self._body:
                self._connection.write(CONTINUE)
            await self._rest(within_s)
        failure = self._failure or self._departed
        if failure is not None:
            raise failure
        body, self._body = self._body, b""
        return bytes(body)

    async def _rest(self, within_s: float) -> None:
        timer = asyncio.get_running_loop().call_later(within_s, self.fail, BodyTooSlow(within_s))
        try:
            while not (self._complete or self._failure or self._departed):
                await self._news()
        finally:
            timer.cancel()

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # The answer.

    def whole(self, status: int, lines: bytes, body: bytes) -> None:
        """Sends one document, and ends the exchange. `lines` are header lines, each with its CR LF."""
        length = b"content-length: %d\r\n" % len(body)
        self.started = True
        self._connection.write(self._opened(status, lines + length) + (b"" if self.head.method == "HEAD" else body))
        self._end()

    def begin(self, status: int, lines: bytes) -> None:
        """Begins a stream; its head goes out with the first write."""
        self.started = True
        self._chunked = not self.head.http_1_0
        if self.head.http_1_0:
            # Such a caller knows no chunks: the stream ends where the connection does.
            self._opening = self._opened(status, lines)
        else:
            self._opening = self._opened(status, lines + b"transfer-encoding: chunked\r\n")

    def write(self, data: bytes) -> None:
        """Sends some of a stream. If `full` is set after that, more should wait until there is room."""
        if not data or self._departed or self._bodiless:
            return
        if self._chunked:
            size = len(data)
            head = CHUNK_HEADS[size] if size < MOST_USUAL else b"%x\r\n" % size
            data = head + data + b"\r\n"
        if self._opening:
            data = self._opening + data
            self._opening = b""
        self._connection.write(data)

    def end(self, data: bytes = b"") -> None:
        """Ends a stream, with some last `data`."""
        self.write(data)
        if not self._departed:
            self._connection.write(self._opening + (LAST_CHUNK if self._chunked and not self._bodiless else b""))
        self._end()

    def end_connection(self) -> None:
        """Makes the answer, which has not begun, the last one on its connection."""
        self._keep_alive = False

    def when_room(self, told: Callable[[], None]) -> None:
        """Calls `told` once the caller has taken up what waits for him; never if he leaves first."""
        self._on_room = told

    async def room(self) -> None:
        """Waits until the caller has taken up what waits for him. Raises how he left, if he does."""
        while self.full and self._departed is None:
            await self._news()
        if self._departed is not None:
            raise self._departed

    @property
    def keep_alive(self) -> bool:
        """Whether another exchange may follow on the connection, as far as this one goes."""
        return self._keep_alive

    def _opened(self, status: int, lines: bytes) -> bytes:
        if self._keep_alive and (not self._complete or self._failure or self._connection.last()):
            self._keep_alive = False
        closing = b"" if self._keep_alive else CLOSE
        return b"%bx-request-id: %b\r\ncache-control: no-store\r\n%b%b\r\n" % (
            STATUS_LINES[status],
            self.id.encode(),
            lines,
            closing,
        )

    def _end(self) -> None:
        self.ended = True
        self._on_departure = self._on_room = None
        self._connection.answered(self)

    # What the connection calls.

    def feed(self, data: bytes) -> None:
        """Some of the body came."""
        if self.ended or self._failure:
            return
        if not self._body:
            self._body = data
        elif isinstance(self._body, bytearray):
            self._body += data
        else:
            self._body = bytearray(self._body) + data
        if len(self._body) > self._limit_bytes:
            if self._waiter is None:
                self._connection.hold_back()
            else:
                self._body = b""
                self.fail(BodyTooLarge(self._limit_bytes))

    def complete(self) -> None:
        """The body came to its end."""
        self._complete = True
        self._wake()

    def fail(self, error: GatewayError) -> None:
        """The body cannot be read; where it was read already, this does not matter to its call."""
        if not self._complete and self._failure is None:
            self._failure = error
            self._wake()

    def depart(self, error: GatewayError) -> None:
        """The caller has left."""
        if self._departed is None and not self.ended:
            self._departed = error
            self._body = b""
            self._wake()
            if self._on_departure is not None:
                self._on_departure(error)

    def fill(self) -> None:
        """The caller does not read as fast as we write."""
        self.full = True

    def empty(self) -> None:
        """The caller has taken up what waited."""
        self.full = False
        self._wake()
        told, self._on_room = self._on_room, None
        if told is not None:
            told()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __repr__(self) -> str:
        state = "answered" if self.ended else "being answered" if self.started else "open"
        return f"<Exchange {self.head.method} {self.head.path[:64]} {state}>"
