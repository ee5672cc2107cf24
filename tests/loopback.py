"""Loopback HTTP/1.1 servers for tests: a port that opens and closes at will, connections that parse messages.

It owns sockets and framing of what comes in. What is sent back, and when, is left to its user byte for byte
(`tests/engines.py`, `tests/otlp_receiver.py`); there is no framework that would repair a reply.
"""

import asyncio
import gzip
import socket
import struct
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, cast

import httptools

Death = Literal["reset", "fin"]


@dataclass(frozen=True, slots=True)
class Message:
    """One complete HTTP message that came in. `headers` are the raw pairs, in order, as they were spelled."""

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    keep_alive: bool

    def header(self, name: str) -> str | None:
        """The first header of that name, in any spelling."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), None)

    def content(self) -> bytes:
        """The body without its content encoding."""
        match self.header("content-encoding"):
            case "gzip":
                return gzip.decompress(self.body)
            case "deflate":
                return zlib.decompress(self.body)
            case _:
                return self.body


class App(Protocol):
    """What a server does with what comes in. A connection brings one message at a time, the next one after
    `Connection.next_message`, so that replies keep their order.
    """

    def received(self, connection: "Connection", message: Message) -> None: ...
    def malformed(self, connection: "Connection") -> None: ...
    def writable(self, connection: "Connection") -> None: ...
    def lost(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """One accepted connection: messages in, raw bytes out."""

    def __init__(self, app: App, open_connections: "set[Connection]", number: int, facts: "Facts") -> None:
        self._app = app
        self._open = open_connections
        self._facts = facts
        self.number = number
        self._parser = httptools.HttpRequestParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._path: list[bytes] = []
        self._body: list[bytes] = []
        self._pipelined: deque[Message] = deque()
        self._transport: asyncio.Transport | None = None
        self.busy = False
        self.clogged = False

    # The loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self._open.add(self)
        self._facts.changed()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            self._app.malformed(self)
            return
        if not self.busy:
            self.next_message()

    def pause_writing(self) -> None:
        self.clogged = True

    def resume_writing(self) -> None:
        self.clogged = False
        self._app.writable(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._open.discard(self)
        self._app.lost(self)
        self._facts.changed()

    # The parser's side.

    def on_url(self, url: bytes) -> None:
        self._path.append(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        message = Message(
            self._parser.get_method().decode(),
            b"".join(self._path).decode("latin-1"),
            tuple(self._headers),
            b"".join(self._body),
            self._parser.should_keep_alive(),
        )
        self._path, self._headers, self._body = [], [], []
        self._pipelined.append(message)

    # The server's side.

    def next_message(self) -> None:
        """The reply before is out: hand over the message that waited behind it, if one did."""
        self.busy = bool(self._pipelined)
        if self._pipelined:
            self._app.received(self, self._pipelined.popleft())

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self, how: Death = "fin") -> None:
        """End the connection: after what was written (`fin`), or at once with a reset."""
        if self._transport is None:
            return
        if how == "fin":
            self._transport.close()
            return
        linger_not = struct.pack("ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
        self._transport.abort()


class Facts:
    """Waits for facts about an object: whoever changes it says so, nobody polls."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], bool], asyncio.Event]] = []

    def changed(self) -> None:
        for fact, seen in self._waiting:
            if fact():
                seen.set()

    async def until(self, fact: Callable[[], bool], within_s: float, story: Callable[[], str]) -> None:
        """Return as soon as the fact held, however briefly; AssertionError with the story if it never did."""
        if fact():
            return
        entry = (fact, asyncio.Event())
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(within_s):
                await entry[1].wait()
        except TimeoutError:
            raise AssertionError(f"not within {within_s} s: {story()}") from None
        finally:
            self._waiting.remove(entry)


class Loopback:
    """A loopback port and the connections to it.

    A second socket, bound and never listening, keeps the port for the whole lifetime: while nobody listens,
    callers are refused and no other process can take the port.
    """

    def __init__(self, app: App, port: int = 0) -> None:
        self._app = app
        self.port = port
        self.connections: set[Connection] = set()
        self.connections_made = 0
        self.facts = Facts()
        self._placeholder: socket.socket | None = None
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._placeholder = self._bound()
        self.port = self._placeholder.getsockname()[1]
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        for _ in range(3):  # a connection that the loop has accepted and not yet announced is closed too
            await asyncio.sleep(0)
        self.reset()
        await self.facts.until(lambda: not self.connections, 5.0, lambda: f"{self.connections} are open")
        if self._placeholder is not None:
            self._placeholder.close()

    async def listen(self) -> None:
        """Accept connections (again), on the same port."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._accepted, sock=self._bound(), backlog=4096)

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay open."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def reset(self) -> None:
        """Reset every open connection."""
        for connection in tuple(self.connections):
            connection.close("reset")

    def _accepted(self) -> Connection:
        self.connections_made += 1
        return Connection(self._app, self.connections, self.connections_made, self.facts)

    def _bound(self) -> socket.socket:
        # asyncio spares connections Nagle's delay only where the protocol is named.
        bound = socket.socket(proto=socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind(("127.0.0.1", self.port))
        return bound
