"""One caller's connection: bytes to exchanges, in their order, and answers back.

Decides when a connection has gone on for too long: a head that does not end, a body that goes on after it was
answered, a reader who does not read. What a call says and what is answered is the app's business.
"""

import asyncio
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import httptools

from gateway.edge import rendering
from gateway.edge.exchange import CONTINUE, Exchange
from gateway.edge.head import Head, read_head
from gateway.errors import CallerLeft, GatewayError, HeadTooLarge, HeadTooSlow, NotHttp, SlowReader, TargetTooLong

if TYPE_CHECKING:
    from gateway.edge.callers import Callers

MAX_HEAD_BYTES = 64 * 1024
MAX_TARGET_BYTES = 8 * 1024
MAX_HEADERS = 200
# What still comes of a body after it was answered is read and dropped: a connection that is closed with unread
# bytes is reset, and a reset takes the answer back out of the caller's hands (RFC 9112, 9.6).
LINGER_BYTES = 64 * 2**20
MAX_PIPELINED = 8
# Who takes up so much in the time that he has may go on.
FAIR_BYTES = 16 * 1024
# Between looks at whether a caller who has closed his sending side is still there.
LOOKS_S = (0.002, 1.0)
RESET = struct.pack("ii", 1, 0)
# Of all interim answers the one that every client knows to skip.
INTERIM = CONTINUE
COMMENT = b":\n\n"


class CallerConnection(asyncio.Protocol):
    """The event loop's protocol for one connection. `surplus`: there were already as many as there may be.

    `address` is the host that connected, which may be a proxy.

    A connection *waits* for a head, *answers* one exchange (`_current`) while others are read behind it (`_waiting`,
    `_incoming`), and *ends*: after a `_fault` nothing is read any more, and what was read is still answered; while
    `_closing` what is sent is sent and what comes is dropped; then the transport is gone. Beside that, and
    independent of it: the caller takes up nothing (`_full`), or has closed his sending side (`_half_closed`); or we
    take nothing of him (not `_reading`).
    """

    __slots__ = (
        "_barren_bytes",
        "_callers",
        "_closing",
        "_current",
        "_dropped_bytes",
        "_fault",
        "_full",
        "_half_closed",
        "_head_bytes",
        "_in_head",
        "_incoming",
        "_look_timer",
        "_pairs",
        "_parser",
        "_reading",
        "_splicing",
        "_stalled",
        "_target",
        "_transport",
        "_unread_bytes",
        "_upgrade",
        "_waiting",
        "address",
        "surplus",
    )

    def __init__(self, callers: "Callers") -> None:
        self._callers = callers
        self.surplus = False
        self.address = ""
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        # The head that is being read; and the bytes since the last one that gave something.
        self._in_head = False
        self._head_bytes = 0
        self._barren_bytes = 0
        self._target = b""
        self._pairs: list[tuple[bytes, bytes]] = []
        self._upgrade = False
        self._splicing = False
        # The exchange whose body is being read, the one that is being answered, and those between them.
        self._incoming: Exchange | None = None
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] | None = None
        # Why nothing more is read of this connection.
        self._fault: GatewayError | None = None
        self._reading = True
        self._full = False
        self._half_closed = False
        self._closing = False
        self._stalled = False
        self._unread_bytes = 0
        self._dropped_bytes = 0
        self._look_timer: asyncio.TimerHandle | None = None

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, they only look like them.
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if peer else ""
        self._callers.joined(self)
        self._callers.heads.start(self)

    def data_received(self, data: bytes) -> None:
        if not self._reads():
            self._drop(len(data))
            return
        if self._current is None:
            self._callers.idle.stop(self)
        self._barren_bytes += len(data)
        self._parse(data)
        if not self._reads():
            return
        if self._barren_bytes > MAX_HEAD_BYTES:
            self._break(HeadTooLarge(MAX_HEAD_BYTES))
        elif self._current is None and self not in self._callers.heads:
            self._callers.heads.start(self)

    def eof_received(self) -> bool:
        """A caller who has sent his call may close his side and read on; whether he does, only a write can tell."""
        exchange = self._current
        if exchange is None or self._incoming is not None or self._closing or self._transport is None:
            return False
        self._half_closed = True
        if exchange.ended or exchange.head.http_1_0:
            return True  # There is nothing that could be said to see whether he still reads.
        # Both are without meaning to who does: an interim answer, a comment between two events.
        if exchange.started:
            exchange.write(COMMENT)
        else:
            self._transport.write(INTERIM)
        self._look(LOOKS_S[0])
        return True

    def pause_writing(self) -> None:
        self._full = True
        if self._current is not None:
            self._current.fill()
        if not self._closing:
            self._expect_reading()

    def resume_writing(self) -> None:
        self._full = False
        # What is closing keeps its deadline: the last bytes are to be read as well.
        if not self._closing:
            self._callers.stalls.stop(self)
        if self._current is not None:
            self._current.empty()
        if self._current is not None and self._current.ended:
            # Not from within: asyncio's transport minds being closed while it tells that it has room.
            asyncio.get_running_loop().call_soon(self.answered, self._current)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closing = True
        if self._look_timer is not None:
            self._look_timer.cancel()
        callers = self._callers
        for deadlines in (callers.heads, callers.idle, callers.stalls, callers.lingering):
            deadlines.stop(self)
        self._waiting = self._incoming = None
        del self._parser  # It knows us, too.
        if self._current is not None:
            self._current.depart(SlowReader(callers.limits.slow_reader_s) if self._stalled else CallerLeft())
        callers.left(self)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if not self._splicing:
            self._in_head = True
            self._head_bytes = self._barren_bytes = 0
            self._target = b""
            self._pairs = []

    def on_url(self, url: bytes) -> None:
        self._barren_bytes = 0
        if not self._splicing:
            self._target += url
            if len(self._target) > MAX_TARGET_BYTES:
                self._refuse(TargetTooLong(MAX_TARGET_BYTES))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._barren_bytes = 0
        if self._splicing:
            return
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES or len(self._pairs) >= MAX_HEADERS:
            self._refuse(HeadTooLarge(MAX_HEAD_BYTES))
        if self._in_head:
            # What surrounds a value is no part of it; the parser leaves what is behind it (RFC 9110, 5.5).
            self._pairs.append((name.lower(), value.rstrip(b" \t")))
        # Otherwise it is a trailer of a chunked body, which must not pass for a header (RFC 9110, 6.5.1).

    def on_headers_complete(self) -> None:
        if self._splicing:
            self._splicing = False
            return
        self._callers.heads.stop(self)
        self._in_head = False
        try:
            head = self._head()
        except GatewayError as error:
            self._refuse(error)
            return
        self._pairs = []
        exchange = self._incoming = Exchange(self, head, self._callers.new_id(), self._callers.clock())
        if self._current is None:
            self._serve(exchange)
        else:
            self._queue(exchange)

    def on_body(self, body: bytes) -> None:
        self._barren_bytes = 0
        if self._incoming is not None:
            self._incoming.feed(body)

    def on_message_complete(self) -> None:
        if self._upgrade:
            return  # The parser thinks that the other protocol begins here.
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.complete()

    # What an exchange calls.

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._closing:
            self._transport.write(data)

    def hold_back(self) -> None:
        """Much of a body came and nobody has asked for it yet."""
        if self._incoming is not self._current:
            self.cut()
        else:
            self._stop_reading()

    def let_on(self) -> None:
        if not self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def last(self) -> bool:
        """Whether the answer that begins now is the last one on this connection."""
        if self._waiting:
            return False
        return self._callers.retiring or self._half_closed or self._fault is not None

    def answered(self, exchange: Exchange) -> None:
        """The answer is complete: the next exchange begins, or the connection waits for one, or it ends."""
        if exchange is not self._current:
            return
        if self._full and not self._closing:
            # First he is to read what he asked for: who asks and never reads would have us keep it all.
            self._stop_reading()
            return
        self._current = None
        if self._closing or self._transport is None:
            return
        self.let_on()
        if self._waiting and exchange.keep_alive:
            self._serve(self._waiting.popleft())
        elif self._fault is not None and exchange.keep_alive:
            self._last_words(self._fault)
        elif self._fault is not None or exchange.unread:
            self._linger()
        elif not exchange.keep_alive or self._half_closed or (self._callers.retiring and not self._in_head):
            self.close()
        else:
            (self._callers.heads if self._in_head else self._callers.idle).start(self)

    def abandoned(self, exchange: Exchange) -> None:
        """Nobody works on the exchange any more; if it has no answer, it gets none."""
        if not exchange.ended:
            self.cut()

    # What whoever owns the connections calls.

    def retire(self) -> None:
        """Closes the connection if it carries no call; otherwise after the calls that it carries."""
        if self._current is None and not self._in_head and self not in self._callers.heads:
            self.close()

    def miss_head(self) -> None:
        """A head has not come in time."""
        if self._in_head:
            self._break(HeadTooSlow(self._callers.limits.head_timeout_s))
        else:
            self.close()

    def stall(self) -> None:
        """The caller had his time to read: he loses his connection, unless he took up a fair part of what waits."""
        if self._transport is not None and self._transport.get_write_buffer_size() <= self._unread_bytes - FAIR_BYTES:
            self._expect_reading()
        else:
            self._stalled = True
            self.cut()

    def close(self) -> None:
        """Closes when everything is sent."""
        if self._transport is not None and not self._closing:
            self._closing = True
            self._expect_reading()
            self._transport.close()

    def cut(self) -> None:
        """Resets the connection: nothing that is still to be sent keeps it open."""
        if self._transport is not None:
            self._closing = True
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._transport.abort()

    @property
    def socket(self) -> socket.socket:
        assert self._transport is not None
        found: socket.socket = self._transport.get_extra_info("socket")
        return found

    # Reading.

    def _stop_reading(self) -> None:
        if self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _reads(self) -> bool:
        """Whether what comes can still become a call."""
        return self._fault is None and not self._closing

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if self._incoming is None and self._current is not None and not self._current.head.keep_alive:
                self._drop(len(data))  # It said itself that nothing would follow.
            else:
                self._break(self._fault or NotHttp())

    def _head(self) -> Head:
        parser = self._parser
        method = parser.get_method()
        self._upgrade = parser.should_upgrade()
        if self._upgrade and method == b"CONNECT":
            raise NotHttp("this is no proxy")
        return read_head(
            method, self._target, self._pairs, parser.get_http_version(), keep_alive=parser.should_keep_alive()
        )

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Goes on in HTTP/1.1, as is our right (RFC 9110, 7.8): what follows the head is its body, and then a head.

        The parser takes it for the other protocol, so another parser is told how the body is framed.
        """
        self._upgrade = False
        exchange = self._incoming
        self._parser = httptools.HttpRequestParser(self)
        if exchange is None or self._fault is not None:
            return
        headers = exchange.head.headers
        framing = b"".join(
            b"%b: %b\r\n" % (name, headers[name])
            for name in (b"content-length", b"transfer-encoding")
            if name in headers
        )
        self._splicing = True
        self._parse(b"POST / HTTP/1.1\r\n%b\r\n" % framing + rest)

    def _refuse(self, error: GatewayError) -> None:
        """Stops the parser, from inside of one of its callbacks."""
        self._fault = error
        raise ValueError(str(error))

    def _break(self, error: GatewayError) -> None:
        """Nothing that follows on this connection can be read. Its calls are answered, and then this."""
        self._fault = error
        self._callers.heads.stop(self)
        if self._incoming is not None and self._incoming is not self._current:
            # Its turn has not come, and its body never will.
            assert self._waiting is not None
            self._waiting.remove(self._incoming)
        elif self._incoming is not None:
            self._incoming.fail(error)
        if self._current is None:
            self._last_words(error)

    def _drop(self, dropped_bytes: int) -> None:
        self._dropped_bytes += dropped_bytes
        if self._dropped_bytes > LINGER_BYTES:
            self.cut()

    def _queue(self, exchange: Exchange) -> None:
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(exchange)
        if len(self._waiting) > MAX_PIPELINED:
            self.cut()
            raise ValueError("too many calls ahead")

    # Answering.

    def _expect_reading(self) -> None:
        if self._transport is not None:
            self._unread_bytes = self._transport.get_write_buffer_size()
            self._callers.stalls.start(self)

    def _serve(self, exchange: Exchange) -> None:
        self._current = exchange
        if self._full:
            exchange.fill()
        self._callers.serve(self, exchange)

    def _last_words(self, error: GatewayError) -> None:
        """Answers what never became a call, and ends the connection."""
        if self._transport is not None and not self._closing:
            self._callers.census.head_refused(error)
            self._transport.write(rendering.last_words(error, self._callers.new_id()))
            self._linger()

    def _linger(self) -> None:
        """Sends what there is to send and the end, then drops what comes until the caller closes, for a while."""
        if self._half_closed:
            self.close()
        elif self._transport is not None and not self._closing:
            self._closing = True
            self._callers.lingering.start(self)
            self._transport.write_eof()
            self.let_on()

    def _look(self, pause_s: float) -> None:
        self._look_timer = asyncio.get_running_loop().call_later(pause_s, self._look_again, pause_s)

    def _look_again(self, pause_s: float) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._transport.abort()
        else:
            self._look(min(2 * pause_s, LOOKS_S[1]))

    def __repr__(self) -> str:
        what: Any = self._current or ("idle" if self._transport is not None else "closed")
        return f"<CallerConnection {what}>"
