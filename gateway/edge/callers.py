"""Callers' connections: uvicorn's HTTP/1.1 protocol, and the limits that it leaves to somebody else.

Decides when a connection has gone on for too long: a head that does not end, a body that goes on after it was
answered, a reader who does not read. What a call says and what is answered is the routes' business.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.edge import rendering
from gateway.errors import (
    CallerLeft,
    GatewayError,
    HeadTooLarge,
    HeadTooSlow,
    NotHttp,
    SlowReader,
    TooManyConnections,
)

EXTENSION: Final = "pagegate.caller"
"""Where an exchange's scope holds the connection that it came on."""

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
# What still comes of a body after it was answered is read and dropped: a connection that is closed with unread
# bytes is reset, and a reset takes the answer back out of the caller's hands (RFC 9112, 9.6).
LINGER_S = 5.0
LINGER_BYTES = 64 * 2**20
# How long a connection that was just made is left open when the listener closes: its call is on the way.
FIRST_CALL_S = 0.5
MAX_PIPELINED = 8
# Between looks at whether a caller who has closed his sending side is still there.
LOOKS_S = (0.002, 1.0)
RESET = struct.pack("ii", 1, 0)

NewId = Callable[[], str]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How long callers may take, in seconds, and how many connections there may be."""

    head_timeout_s: float
    slow_reader_s: float
    keep_alive_s: float
    connections: int


class Callers:
    """The connections of one listener; `<Callers 3 connections>`."""

    def __init__(self, app: Any, limits: ConnectionLimits, new_id: NewId) -> None:
        self.limits = limits
        self.new_id = new_id
        self.retiring = False
        self._state = ServerState()
        self._none = asyncio.Event()
        self._config = uvicorn.Config(
            app,
            http=CallerConnection,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            # uvicorn hands it on to the event loop as it is.
            timeout_keep_alive=cast(int, limits.keep_alive_s),
            limit_concurrency=limits.connections,
        )
        self._config.load()

    def connection(self) -> "CallerConnection":
        """A protocol for a connection that was accepted."""
        return CallerConnection(self, self._config, self._state)

    def lost(self) -> None:
        if not self._state.connections:
            self._none.set()

    def retire(self) -> None:
        """Every reply from now on is the last one on its connection, and says so."""
        self.retiring = True

    def close(self) -> None:
        """Closes connections: those without a call now, the others after their reply."""
        self.retire()
        for connection in tuple(self._state.connections):
            connection.shutdown()

    async def left(self, within_s: float) -> None:
        """Waits until no connection is open and no exchange runs; cuts off what is left after `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                await self._until_none()
        except TimeoutError:
            for connection in tuple(self._state.connections):
                cast(CallerConnection, connection).cut()
            await self._until_none()

    async def _until_none(self) -> None:
        while self._state.connections:
            self._none.clear()
            await self._none.wait()
        if self._state.tasks:
            await asyncio.wait(tuple(self._state.tasks))

    def __repr__(self) -> str:
        return f"<Callers {len(self._state.connections)} connections>"


class Closing:
    """A transport as uvicorn sees it: closing it means to let the caller read the answer first."""

    __slots__ = ("_close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, is_closing: Callable[[], bool], close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = is_closing
        self._close = close

    def close(self) -> None:
        self._close()


class CallerConnection(HttpToolsProtocol):
    """One caller's connection. A subclass, because uvicorn offers no other way to see its transport."""

    def __init__(self, callers: Callers, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config, state, app_state={}, _loop=asyncio.get_running_loop())
        self._callers = callers
        self._limits = callers.limits
        self._raw: asyncio.Transport | None = None
        self._running: RequestResponseCycle | None = None
        self._head_bytes = 0
        self._head_begun = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._lingered_bytes = 0
        self._stalled = False
        self._gone = False

    def departure(self) -> GatewayError | None:
        """Why the caller is not there any more; None while he is."""
        if not self._gone:
            return None
        return SlowReader(self._limits.slow_reader_s) if self._stalled else CallerLeft()

    def cut(self) -> None:
        """Resets the connection: nothing that is still to be sent keeps it open."""
        if self._raw is not None:
            self._raw.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._raw.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # As uvicorn has it.
        super().connection_made(transport)
        self._raw = transport
        self.transport = cast(asyncio.Transport, Closing(transport, self._is_closing, self._close))
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._linger_timer is not None:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > LINGER_BYTES:
                self.cut()
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_closing():
            return
        if self._head_begun and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(MAX_HEAD_BYTES))
        elif self._head_timer is None and not self._in_call():
            self._expect_head()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's never keeps a connection open.
        """A caller who has sent his call may close his side and read on; whether he does, only a write can tell."""
        cycle = self._running
        if cycle is None or cycle.response_complete or cycle.more_body or self.pipeline or self._is_closing():
            return False
        if cycle.scope["http_version"] == "1.0" or (cycle.response_started and not cycle.chunked_encoding):
            return False
        cycle.keep_alive = False
        # Both are without meaning to who still reads: an interim answer, a comment between two events.
        self.transport.write(b"2\r\n:\n\r\n" if cycle.response_started else b"HTTP/1.1 102 Processing\r\n\r\n")
        self._look(LOOKS_S[0])
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self._limits.slow_reader_s, self._stall)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._raw = None
        for timer in (self._head_timer, self._stall_timer, self._look_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            # uvicorn tells the call that was read last, which is another one where calls were pipelined.
            self._running.disconnected = True
            self._running.message_event.set()
        self._callers.lost()

    # What the parser calls.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_begun = True
        self._head_bytes = 0
        self.scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]  # The key is ours.

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_begun:
            return  # A trailer of a chunked body. It must not pass for a header (RFC 9110, 6.5.1).
        if len(self.headers) >= MAX_HEADERS:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise ValueError("neither HTTP/1.0 nor HTTP/1.1")
        if self.parser.should_upgrade():
            # The parser would take the body for the other protocol, or worse, for the next call.
            raise ValueError("an upgrade to another protocol")
        self._head_begun = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.cut()
        elif self.pipeline:
            # uvicorn stops to read here, but only who reads sees a caller leave.
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.pipeline and self.flow.read_paused:
            self.cut()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HeadTooLarge(MAX_HEAD_BYTES) if len(self.headers or ()) >= MAX_HEADERS else NotHttp())

    # What uvicorn does for each call.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._callers.retiring:
            cycle.keep_alive = False
        self._running = cycle
        if app is not self.app:
            app = self._too_many
        super()._start_asgi_task(cycle, app)

    async def _too_many(self, scope: Any, receive: Any, send: Any) -> None:
        await rendering.Response(send, self._callers.new_id(), lambda: True).error(TooManyConnections(), {})

    def shutdown(self) -> None:
        """Closes the connection: now, after the reply under way, or after the first call, which is on its way."""
        if self.cycle is None and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = self.loop.call_later(FIRST_CALL_S, self._miss_head)
        else:
            super().shutdown()

    # Ours.

    def _in_call(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._miss_head)

    def _miss_head(self) -> None:
        self._head_timer = None
        if self._head_begun:
            self._refuse(HeadTooSlow(self._limits.head_timeout_s))
        elif self._raw is not None:
            self._raw.close()

    def _refuse(self, error: GatewayError) -> None:
        """Answers what never became a call; where another call is still being answered, there is no place to."""
        self._head_begun = False
        if self._in_call():
            self.cut()
        elif self._raw is not None and not self._is_closing():
            self._raw.write(rendering.last_words(error, self._callers.new_id()))
            self._linger()

    def _stall(self) -> None:
        self._stalled = True
        self.cut()

    def _look(self, pause_s: float) -> None:
        self._look_timer = self.loop.call_later(pause_s, self._look_again, pause_s)

    def _look_again(self, pause_s: float) -> None:
        if self._raw is None or self._raw.is_closing():
            return
        if self._raw.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._raw.abort()
        else:
            self._look(min(2 * pause_s, LOOKS_S[1]))

    def _is_closing(self) -> bool:
        return self._raw is None or self._linger_timer is not None or self._raw.is_closing()

    def _close(self) -> None:
        if self._is_closing() or self._raw is None:
            return
        cycle: RequestResponseCycle | None = self.cycle  # None until a head is complete, whatever its type says.
        if cycle is not None and cycle.more_body:
            self._linger()
        else:
            self._raw.close()

    def _linger(self) -> None:
        """Sends what there is to send and the end, then drops what comes until the caller closes, for a while."""
        assert self._raw is not None
        self._linger_timer = self.loop.call_later(LINGER_S, self.cut)
        self.flow.resume_reading()
        self._raw.write_eof()
