"""The server side of HTTP/1.1 as a raw asyncio.Protocol, and a process that serves until its parent lets go.

What a message means is left to whoever inherits `Connection`: the mock engine, the trace sink and the
pass-through. None of them meets a caller that it has to fear; there are no deadlines and no caps here.
"""

import asyncio
import gc
import os
import resource
import stat
import sys
from collections.abc import Callable, Mapping
from typing import cast

import httptools
import uvloop

BACKLOG = 4096
HOST = "127.0.0.1"


def reply(status: bytes, body: bytes = b"", content_type: bytes = b"application/json") -> bytes:
    """A whole reply, e.g. for `200 OK`."""
    head = b"HTTP/1.1 %b\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: %b\r\n\r\n"
    return head % (status, len(body), content_type) + body


class Connection(asyncio.Protocol):
    """Reads messages one at a time; `message` is called for each that is whole."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self._body: list[bytes] = []

    def message(self, body: bytes) -> None:
        """A message is whole; its target is `self.url`."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(reply(b"400 Bad Request"))
            self.transport.close()

    def on_message_begin(self) -> None:
        self.url = b""
        self._body = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.message(self._body[0] if len(self._body) == 1 else b"".join(self._body))


def serve(ports: Mapping[int, Callable[[], asyncio.Protocol]]) -> None:
    """Serves on these ports of loopback until standard input ends; says `ready` when it listens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_serve(ports))


async def _serve(ports: Mapping[int, Callable[[], asyncio.Protocol]]) -> None:
    loop = asyncio.get_running_loop()
    for port, connection in ports.items():
        await loop.create_server(connection, HOST, port, backlog=BACKLOG)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    # Nothing here is made of cycles, and a collection would show as a delay of whatever is measured.
    gc.freeze()
    gc.disable()
    await ended(sys.stdin.fileno())


async def ended(descriptor: int) -> None:
    """Waits until the parent closes its end of a pipe, as a parent that was killed does too; else for ever."""
    over = asyncio.Event()
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        asyncio.get_running_loop().add_reader(descriptor, over.set)
    await over.wait()
