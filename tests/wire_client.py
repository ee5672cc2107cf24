"""A raw-socket HTTP/1.1 client for tests: it sends what it is told and keeps every byte that comes back.

It owns one connection. Nothing is read until a method asks for it, so a test that does not read is a reader
that has stopped; nothing is repaired, so a reply cut short is visible as one. What a reply means is left to
the test.
"""

import asyncio
import json as jsonlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

Headers = Mapping[str, str] | Sequence[tuple[str, str]]
Ending = Literal["complete", "fin", "reset"]

_PATIENCE_S = 5.0
_BODILESS = (204, 304)
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")


class BadFraming(Exception):
    """The peer sent bytes that are not HTTP/1.1 where they stand."""


class Head:
    """A status line and headers; `headers` are the raw pairs in order, as they were spelled."""

    def __init__(self, raw: bytes) -> None:
        first, *lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
        version, _, rest = first.partition(b" ")
        code, _, reason = rest.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not code.isdigit():
            raise BadFraming(f"status line {first!r}")
        self.raw = raw
        self.status = int(code)
        self.reason = reason.decode("latin-1")
        self.headers = tuple(_pair(line) for line in lines)

    def header(self, name: str) -> str | None:
        """The first header of that name, in any spelling."""
        return next(iter(self.headers_named(name)), None)

    def headers_named(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


def _pair(line: bytes) -> tuple[str, str]:
    name, colon, value = line.decode("latin-1").partition(":")
    if not colon or name != name.strip():
        raise BadFraming(f"header line {line!r}")
    return name, value.strip(" \t")


class Body:
    """The framing of one body, fed with bytes as they come: `data` is their content, `done` says it ended."""

    def __init__(self, head: Head) -> None:
        self.data = bytearray()
        self.raw = bytearray()
        self.chunks: list[bytes] = []
        self.chunked = head.header("transfer-encoding") == "chunked"
        length = head.header("content-length")
        self._left = None
        if not self.chunked and (length or head.status in _BODILESS):
            self._left = int(length or 0)
        self._buffer = bytearray()
        self.done = self._left == 0
        self.terminated = False

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to the body, return what comes after it."""
        self._buffer += data
        if self.chunked:
            while not self.done and self._take_chunk():
                pass
        else:
            self._take(len(self._buffer) if self._left is None else min(self._left, len(self._buffer)))
        after = bytes(self._buffer) if self.done else b""
        self.raw += data[: len(data) - len(after)]
        return after

    def _take(self, size: int) -> None:
        self.data += self._buffer[:size]
        del self._buffer[:size]
        if self._left is not None:
            self._left -= size
            self.done = self._left == 0

    def _take_chunk(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        line = self._buffer[:end]
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise BadFraming(f"chunk size {bytes(line)!r}") from None
        start, stop = end + 2, end + 2 + size
        if len(self._buffer) < stop + 2:
            return False
        if self._buffer[stop : stop + 2] != b"\r\n":
            raise BadFraming(f"chunk of {size} bytes ends in {bytes(self._buffer[stop : stop + 2])!r}")
        if size:
            self.chunks.append(bytes(self._buffer[start:stop]))
            self.data += self._buffer[start:stop]
        else:
            self.done = self.terminated = True
        del self._buffer[: stop + 2]
        return True


class WireReply:
    """A reply that was read to its end, however it ended."""

    def __init__(self, head: Head, body: Body, ending: Ending) -> None:
        self.status = head.status
        self.headers = head.headers
        self.header = head.header
        self.headers_named = head.headers_named
        self.head = head
        self.body = bytes(body.data)
        self.raw = head.raw + bytes(body.raw)
        self.ending = ending

    @property
    def complete(self) -> bool:
        """The framing came to its end."""
        return self.ending == "complete"

    @property
    def json(self) -> Any:
        return jsonlib.loads(self.body)

    def __repr__(self) -> str:
        return f"<WireReply {self.status}, {len(self.body)} bytes, {self.ending}>"


def message(
    method: str,
    path: str,
    *,
    json: Any = None,
    body: bytes = b"",
    headers: Headers = (),
    host: str = "gateway",
) -> bytes:
    """A call's bytes. Host, content type and content length are added unless the headers say otherwise."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    given = {name.lower() for name, _ in pairs}
    content = jsonlib.dumps(json).encode() if json is not None else body
    added = [("Host", host)]
    if json is not None:
        added.append(("Content-Type", "application/json"))
    if (content or method == "POST") and "transfer-encoding" not in given:
        added.append(("Content-Length", str(len(content))))
    lines = [(name, value) for name, value in added if name.lower() not in given] + pairs
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + content


def payload(event: bytes) -> Any:
    """The JSON in an event's data lines; a text such as `[DONE]` as it is, None for a comment."""
    fields = [line.partition(b":") for line in event.splitlines()]
    data = b"\n".join(value.removeprefix(b" ") for name, _, value in fields if name == b"data")
    try:
        return jsonlib.loads(data) if data else None
    except ValueError:
        return data.decode()


class WireClient:
    """One connection: `async with WireClient(url) as client`. Every wait ends after `within_s`."""

    def __init__(
        self,
        url: str,
        *,
        receive_buffer_bytes: int | None = None,
        source: str = "127.0.0.1",
        within_s: float = _PATIENCE_S,
    ) -> None:
        """A stopped reader is felt early with a small receive buffer; `source` is its own address."""
        self._address = (urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 80)
        self._within_s = within_s
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if receive_buffer_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._source = source
        self._unread = b""
        self.interim: list[Head] = []
        self.arrivals: list[tuple[float, bytes]] = []
        self.ending: Literal["fin", "reset"] | None = None

    async def __aenter__(self) -> Self:
        try:
            self._socket.bind((self._source, 0))
            async with asyncio.timeout(self._within_s):
                await asyncio.get_running_loop().sock_connect(self._socket, self._address)
        except BaseException:
            self._socket.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    async def get(self, path: str, headers: Headers = ()) -> WireReply:
        await self.send("GET", path, headers=headers)
        return await self.reply()

    async def post(self, path: str, json: Any = None, *, body: bytes = b"", headers: Headers = ()) -> WireReply:
        await self.send("POST", path, json=json, body=body, headers=headers)
        return await self.reply()

    @asynccontextmanager
    async def stream(
        self, path: str, json: Any = None, *, body: bytes = b"", headers: Headers = ()
    ) -> AsyncIterator["WireStream"]:
        """Send a call and read no further than the head; leaving the block before the end leaves the call."""
        await self.send("POST", path, json=json, body=body, headers=headers)
        stream = WireStream(self, await self.head())
        yield stream
        if not stream.finished:
            self.leave()

    async def send(self, method: str, path: str, *, json: Any = None, body: bytes = b"", headers: Headers = ()) -> None:
        """Send a whole call and read nothing."""
        host = "{}:{}".format(*self._address)
        await self.send_raw(message(method, path, json=json, body=body, headers=headers, host=host))

    async def send_raw(self, data: bytes) -> None:
        async with asyncio.timeout(self._within_s):
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def half_close(self) -> None:
        """Say that nothing more will be sent; replies can still be read."""
        self._socket.shutdown(socket.SHUT_WR)

    def leave(self, how: Literal["fin", "reset"] = "fin") -> None:
        """Close the connection, politely or with a reset."""
        if how == "reset":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def head(self) -> Head:
        """The next final head; heads of 1xx before it are kept in `interim`."""
        while True:
            raw, end, rest = self._unread.partition(b"\r\n\r\n")
            if not end:
                if not (data := await self._receive()):
                    raise ConnectionError(f"{self.ending} after {self._unread!r} and before a whole head")
                self._unread += data
                continue
            self._unread = rest
            head = Head(raw + end)
            if head.status >= 200:
                return head
            self.interim.append(head)

    async def reply(self) -> WireReply:
        """Read one whole reply; how it ended is in `ending`."""
        stream = WireStream(self, await self.head())
        while await stream.read():
            pass
        return stream.so_far()

    async def read(self) -> bytes:
        """Whatever comes next; empty when the peer has closed (`ending` says how)."""
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        return await self._receive()

    async def _receive(self) -> bytes:
        try:
            async with asyncio.timeout(self._within_s):
                data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
        except ConnectionResetError:
            self.ending = "reset"
            return b""
        if not data:
            self.ending = "fin"
            return b""
        self.arrivals.append((asyncio.get_running_loop().time(), data))
        return data

    async def read_to_end(self) -> bytes:
        """Everything until the peer closes."""
        data = b""
        while more := await self.read():
            data += more
        return data

    def put_back(self, data: bytes) -> None:
        """These bytes belong to the next reply."""
        self._unread = data + self._unread


class WireStream:
    """A reply that is read piece by piece."""

    def __init__(self, client: WireClient, head: Head) -> None:
        self._client = client
        self._body = Body(head)
        self._told = 0
        self.head = head
        self.status = head.status
        self.header = head.header

    @property
    def raw(self) -> bytes:
        """Every byte after the head so far, chunk framing included."""
        return bytes(self._body.raw)

    @property
    def chunks(self) -> list[bytes]:
        """The HTTP chunks so far, as the sender cut them."""
        return self._body.chunks

    @property
    def terminated(self) -> bool:
        """The terminating 0-chunk came."""
        return self._body.terminated

    @property
    def finished(self) -> bool:
        """Nothing more can come."""
        return self._body.done or self._client.ending is not None

    @property
    def ending(self) -> Ending | None:
        """How it ended; a body without length or chunks that ends as it should ends in `fin`."""
        return "complete" if self._body.done else self._client.ending

    async def read(self) -> bool:
        """Read once; False when nothing more can come."""
        if self._body.done:
            return False
        data = await self._client.read()
        self._client.put_back(self._body.feed(data))
        return bool(data)

    async def event(self) -> bytes:
        """The next event with its blank line, byte for byte; empty at the end (see `unfinished`)."""
        while True:
            text = self._body.data
            end = _BLANK_LINE.search(text, self._told)
            half_read = end and end.end() == len(text) and text.endswith(b"\r") and not self.finished
            if end and not half_read:
                start, self._told = self._told, end.end()
                return bytes(text[start : self._told])
            if not await self.read():
                return b""

    async def events(self) -> list[bytes]:
        """All events from here to the end."""
        events = []
        while event := await self.event():
            events.append(event)
        return events

    @property
    def unfinished(self) -> bytes:
        """What came after the last whole event that was read."""
        return bytes(self._body.data[self._told :])

    def leave(self, how: Literal["fin", "reset"] = "fin") -> None:
        """Close the connection under the stream."""
        self._client.leave(how)

    def so_far(self) -> WireReply:
        """The reply as far as it was read."""
        return WireReply(self.head, self._body, self.ending or "fin")
