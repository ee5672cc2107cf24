"""A bare pass-through: what any gateway in Python must spend, and the yardstick that ratios are taken against.

asyncio.Protocol and httptools on both sides, uvloop, connections kept; engines in turn. It forwards bytes as it
read them, one write a read, and parses only to know where a message ends. It authenticates, limits, measures and
retries nothing: `python -m benchmarks.passthrough PORT ENGINE_PORT...`
"""

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from typing import cast

import httptools

from benchmarks.serving import HOST, Connection, reply, serve


class Upstream(asyncio.Protocol):
    """A connection to an engine, lent to one caller at a time."""

    transport: asyncio.Transport

    def __init__(self, engine: "EnginePort") -> None:
        self._engine = engine
        self._parser = httptools.HttpResponseParser(self)
        self._complete = False
        self._keep = True
        self.caller: Caller | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        caller = self.caller
        if caller is None:
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()
            return
        caller.transport.write(data)
        if self._complete:
            self._complete = False
            self.caller = None
            caller.served()
            if self._keep:
                self._engine.idle[self] = None
            else:
                self.transport.close()

    def on_message_complete(self) -> None:
        self._complete = True
        # The parser knows until here only.
        self._keep = self._parser.should_keep_alive()

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.idle.pop(self, None)
        caller, self.caller = self.caller, None
        if caller is not None:
            caller.transport.abort()


class EnginePort:
    """An engine, and the connections to it that nobody uses."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: dict[Upstream, None] = {}

    async def connection(self) -> Upstream:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(lambda: Upstream(self), HOST, self.port)
        return upstream


class Caller(Connection):
    """A caller's connection: one call at a time, as HTTP/1.1 clients do."""

    def __init__(self, engines: "cycle[EnginePort]") -> None:
        super().__init__()
        self._engines = engines
        self._upstream: Upstream | None = None
        self._opening: asyncio.Task[None] | None = None
        self._read: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self._read.append(data)
        super().data_received(data)

    def message(self, body: bytes) -> None:
        data, self._read = b"".join(self._read), []
        if self.url == b"/health":
            self.transport.write(reply(b"200 OK"))
            if not self.parser.should_keep_alive():
                self.transport.close()
            return
        engine = next(self._engines)
        if engine.idle:
            self._send(engine.idle.popitem()[0], data)
        else:
            self._opening = asyncio.get_running_loop().create_task(self._open(engine, data))

    async def _open(self, engine: EnginePort, data: bytes) -> None:
        try:
            self._send(await engine.connection(), data)
        except OSError:
            self.transport.write(reply(b"502 Bad Gateway"))
        self._opening = None

    def _send(self, upstream: Upstream, data: bytes) -> None:
        self._upstream = upstream
        upstream.caller = self
        upstream.transport.write(data)

    def served(self) -> None:
        self._upstream = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._upstream is not None:
            self._upstream.caller = None
            self._upstream.transport.abort()

    def pause_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.transport.resume_reading()


def main(words: Sequence[str]) -> None:
    port, *engines = map(int, words)
    serve({port: partial(Caller, cycle([EnginePort(engine) for engine in engines]))})


if __name__ == "__main__":
    main(sys.argv[1:])
