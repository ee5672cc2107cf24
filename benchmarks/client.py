"""One connection of the load side: sends a call, checks the reply's framing, hands its bytes to the checks.

A raw asyncio.Protocol on httptools: it must cost less than what it measures. Which call comes next, and what is
counted, is decided in `benchmarks.load`.
"""

import asyncio
from collections import Counter
from typing import Protocol, cast

import httptools

from benchmarks.checks import Durations, StreamCheck, plain_errors
from benchmarks.jobs import Target
from benchmarks.script import CHAT_PATH, Asked, now_us

FRAMING = "broken framing"
STRAY = "bytes nobody asked for"
CUT_OFF = "reply cut off"
CLOSED = "connection closed before a reply"
REFUSALS = (429, 503)


class Letter:
    """The bytes of a kind of call, save its number."""

    __slots__ = ("_after", "_before", "asked")

    def __init__(self, target: Target, asked: Asked) -> None:
        head = [
            f"POST {target.path}{CHAT_PATH} HTTP/1.1",
            f"host: {target.host}:{target.port}",
            "content-type: application/json",
            f"content-length: {len(asked.before) + 8 + len(asked.after)}",
            *(f"{name}: {value}" for name, value in target.headers),
        ]
        self._before = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + asked.before
        self._after = asked.after
        self.asked = asked

    def bytes(self, number: int) -> bytes:
        return self._before + b"%08d" % number + self._after


class Call:
    """A call under way."""

    __slots__ = ("_real", "asked", "at_us", "body", "check", "durations", "number", "status")

    def __init__(self, letter: Letter, number: int, at_us: int, durations: Durations, *, real: bool) -> None:
        """`at_us` is the moment from which its latency counts."""
        self.asked = letter.asked
        self.number = number
        self.at_us = at_us
        self.durations = durations
        self.status = 0
        self.body: list[bytes] = []
        self.check = StreamCheck(self.asked, number, durations, real=real) if self.asked.stream else None
        self._real = real

    @property
    def refused(self) -> bool:
        return self.status in REFUSALS

    def errors(self) -> Counter[str] | None:
        """What was wrong with the reply, now that it is whole."""
        if self.status != 200:
            return Counter([f"status {self.status}"])
        if self.check is not None:
            self.check.end()
            return self.check.errors
        return plain_errors(self.asked, self.number, b"".join(self.body), real=self._real)


class Owner(Protocol):
    """Who is told what became of a call."""

    def over(self, connection: "Connection", call: Call, errors: Counter[str] | None) -> None:
        """A reply is whole, or will not be; `connection.usable` says whether another call can be sent."""

    def stray(self) -> None:
        """Bytes came that belong to no call."""


class Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, owner: Owner) -> None:
        self.call: Call | None = None
        self.usable = False
        self.now_us = 0
        self._owner = owner
        self._read: list[bytes] = []
        # The parser calls it for every chunk: a list's own method costs least.
        self.on_body = self._read.append
        self._parser = httptools.HttpResponseParser(self)
        self._whole = False
        self._keep = True

    def send(self, letter: Letter, call: Call) -> None:
        self.call = call
        self.transport.write(letter.bytes(call.number))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.usable = True

    def data_received(self, data: bytes) -> None:
        self.now_us = now_us()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._broken()
            return
        call = self.call
        if call is None:
            self._read.clear()
            return
        if self._read:
            body = self._read[0] if len(self._read) == 1 else b"".join(self._read)
            self._read.clear()
            if call.check is not None and call.status == 200:
                call.check.feed(body, self.now_us)
            else:
                call.body.append(body)
        if self._whole:
            self._whole = False
            self.call = None
            if not self._keep:
                self.usable = False
                self.transport.close()
            self._owner.over(self, call, call.errors())

    def on_message_begin(self) -> None:
        if self.call is None or self._whole:
            self._owner.stray()

    def on_headers_complete(self) -> None:
        if self.call is not None:
            self.call.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        self._whole = self.call is not None and self.call.status >= 200
        # The parser knows until here only.
        self._keep = self._parser.should_keep_alive()

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        call, self.call = self.call, None
        if call is not None:
            # What was missing when the connection went is told too: a reply that ends early has no end.
            errors = Counter([CUT_OFF if call.status else CLOSED])
            if call.check is not None and call.status == 200:
                errors += call.errors() or Counter()
            self._owner.over(self, call, errors)

    def abandon(self) -> None:
        """Leaves without a word, whatever is under way."""
        self.call = None
        self.usable = False
        self.transport.abort()

    def _broken(self) -> None:
        call, self.call = self.call, None
        self.usable = False
        self.transport.abort()
        if call is not None:
            self._owner.over(self, call, Counter([FRAMING]))
        else:
            self._owner.stray()
