"""A client for Redis: one connection on which all calls' commands travel together, and whether it can be relied on.

Commands are written once a turn of the event loop and answered in their order, so nobody ever gets another's reply,
however many stop waiting (as CVE-2023-28858 let happen). Owns reconnecting, and the judgement that Redis is away: it
cannot be reached, does not answer in time, or refuses to work. What to do then is its user's business.
"""

import asyncio
import hashlib
import os
import random
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from gateway.deadlines import Deadlines
from gateway.settings import RedisSettings, SettingsError

# A connection, with what is said on it first, takes no longer.
CONNECT_S = 2.0
# A connection on which nothing was heard for so long while we asked is given up.
SILENT_S = 3.0
# Commands whose replies are outstanding; with more of them Redis is as good as away.
MOST_WAITING = 20_000
PROBE_KEPT_MS = 60_000

Reply = Any
Told = Callable[[str | None], None]

REASONS = {
    "AUTH": "it wants a password, or has none",
    "BUSY": "it is busy with a script",
    "CLUSTERDOWN": "its cluster is down",
    "LOADING": "it is loading its data",
    "MASTERDOWN": "its master is down",
    "MISCONF": "it cannot write to its disk",
    "MOVED": "another node of its cluster holds the keys",
    "NOAUTH": "it wants a password",
    "NOPERM": "our user may not do this there",
    "NOREPLICAS": "it has too few replicas",
    "OOM": "its memory is full",
    "READONLY": "it is a replica",
    "WRONGPASS": "wrong user or password",
}
# An error begins with its code; one that a script met has it in its middle.
CODE = re.compile(rf"(?:^|: -)({'|'.join(REASONS)})\b")


class Away(Exception):
    """There is no reply, or none that is of use; the message says why. Whether the command was executed is unknown."""


class Script(NamedTuple):
    """A Lua script. A command that runs it begins with `by_hash`; where Redis does not know it yet, `by_text`."""

    load: bytes
    by_hash: bytes
    by_text: bytes

    @classmethod
    def of(cls, text: str) -> "Script":
        digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        return cls(command("SCRIPT", "LOAD", text), words("EVALSHA", digest), words("EVAL", text))


def words(*parts: object) -> bytes:
    """Words of a command as Redis reads them."""
    encoded = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in encoded])


def command(*parts: object) -> bytes:
    return b"*%d\r\n" % len(parts) + words(*parts)


class Place(NamedTuple):
    """Where Redis is, and who we are there. Prints itself without the password."""

    host: str
    port: int
    path: str
    tls: bool
    user: str
    password: str
    database: int

    @classmethod
    def of(cls, url: str) -> "Place":
        """Raises SettingsError, which does not repeat the URL."""
        try:
            parts = urlsplit(url)
            socket_file = parts.scheme == "unix"
            number = parse_qs(parts.query).get("db", ["0"])[0] if socket_file else parts.path.strip("/") or "0"
            place = cls(
                "" if socket_file else parts.hostname or "127.0.0.1",
                0 if socket_file else parts.port or 6379,
                unquote(parts.path) if socket_file else "",
                parts.scheme == "rediss",
                unquote(parts.username or ""),
                unquote(parts.password or ""),
                int(number),
            )
        except ValueError:
            place = None
        if place is None or place.database < 0 or (socket_file and not place.path.startswith("/")):
            problem = "must be redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss://..., or unix:///PATH[?db=DB]"
            raise SettingsError("redis.url", [problem]) from None
        return place

    def greeting(self) -> list[bytes]:
        """What a new connection begins with."""
        said = []
        if self.password:
            said.append(command("AUTH", *filter(None, (self.user, self.password))))
        if self.database:
            said.append(command("SELECT", self.database))
        return said

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")

    def __repr__(self) -> str:
        return f"<Place {self}>"


class _Asked:
    """A command under way. `waiter` is who wants its reply; one that he does not wait for any more goes to `late`."""

    __slots__ = ("answered", "late", "message", "script", "waiter")

    def __init__(
        self,
        message: bytes,
        script: Script | None = None,
        waiter: "asyncio.Future[Reply] | None" = None,
        late: Callable[[Reply], None] | None = None,
    ) -> None:
        self.message = message
        self.script = script
        self.waiter = waiter
        self.late = late
        self.answered = False

    @property
    def forsaken(self) -> bool:
        """Whether somebody wanted the reply, and does not any more."""
        return self.waiter is not None and self.waiter.done()

    def fail(self, reason: str) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(Away(reason))


class _Listener(Protocol):
    """Whom a connection tells what happens to it."""

    def sent(self, outbox: Iterable[_Asked]) -> None: ...
    def taken(self, connection: "_Connection", asked: _Asked, reply: Reply) -> None: ...
    def parted(self, connection: "_Connection") -> None: ...


class _Connection(asyncio.Protocol):
    """Bytes out, replies in, in the order in which they were asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: _Listener) -> None:
        self._loop = loop
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._outbox: list[_Asked] = []
        self._waiting = deque[_Asked]()
        self.heard_s = loop.time()
        self.refused = False
        self.trouble = asyncio.Event()
        self.lost: asyncio.Future[None] = loop.create_future()

    def send(self, asked: _Asked) -> None:
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(asked)

    def _flush(self) -> None:
        """All that was asked for in one turn of the loop, in one write."""
        outbox = [asked for asked in self._outbox if not asked.forsaken]
        self._outbox = []
        self._waiting += outbox
        if self._transport is None:
            self._listener.parted(self)
        elif not self._transport.is_closing():
            self._transport.write(b"".join([asked.message for asked in outbox]))
            self._listener.sent(outbox)

    def fail(self, reason: str) -> None:
        """Nobody waits any more. Replies that still come are taken in their order."""
        for asked in (*self._waiting, *self._outbox):
            asked.fail(reason)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            await self.lost

    def __len__(self) -> int:
        return len(self._waiting) + len(self._outbox)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, they only look like them.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard_s = self._loop.time()
        reader, waiting, taken = self._reader, self._waiting, self._listener.taken
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not Ellipsis:
                taken(self, waiting.popleft(), reply)
        except (hiredis.ProtocolError, IndexError):
            # No RESP, or a reply to nothing: whatever it is, what follows could be taken for another's.
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._listener.parted(self)
        for asked in self._waiting:
            asked.answered = True  # As far as it ever will be: nobody is to wait for that.
        self._waiting.clear()
        self.trouble.set()
        if not self.lost.done():
            self.lost.set_result(None)


class Redis:
    """Use as `async with`. `<Redis 127.0.0.1:6379, 3 waiting>`, `<Redis 127.0.0.1:6379 away: no answer within 20 ms>`.

    Entering waits for the first attempt to connect, whatever comes of it. Raises SettingsError for a wrong URL.
    """

    def __init__(self, settings: RedisSettings, rng: random.Random) -> None:
        assert settings.url is not None
        self._place = Place.of(settings.url.get_secret_value())
        self._settings = settings
        self._rng = rng
        self._probe = command("SET", f"{{{settings.prefix}}}:probe", 1, "PX", PROBE_KEPT_MS)
        self._scripts: list[Script] = []
        self._told: list[Told] = []
        self._patience = Deadlines[_Asked](settings.timeout_s, self._due)
        self._connection: _Connection | None = None
        self._left_s = 0.0
        self.away: str | None = "not connected yet"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._tried = asyncio.Event()
        async with AsyncExitStack() as up:
            up.callback(self._patience.close)
            group = await asyncio.TaskGroup().__aenter__()
            # Without the block's own error, which a group would wrap.
            up.push_async_callback(group.__aexit__, None, None, None)
            up.callback(group.create_task(self._tend()).cancel)
            await self._tried.wait()
            self._down = up.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._down.aclose()

    def watch(self, told: Told) -> Callable[[], None]:
        """Calls `told` when Redis goes away, with the reason, and with None when it is back. The result ends that."""
        self._told.append(told)
        return partial(self._told.remove, told)

    async def load(self, *scripts: Script) -> None:
        """Makes these scripts known to Redis, now and on every new connection: one that is not costs a detour."""
        self._scripts += scripts
        with suppress(Away):
            for script in scripts:
                await self.ask(script.load)

    async def ask(
        self, message: bytes, script: Script | None = None, late: Callable[[Reply], None] | None = None
    ) -> Reply:
        """The reply to a command. Raises Away: at once where it is away, or when it gets so, after `timeout_s` at most.

        A reply that comes when its caller was told Away, or has been cancelled, is given to `late`.
        """
        waiter = self._loop.create_future()
        self._send(_Asked(message, script, waiter, late))
        try:
            return await waiter
        except asyncio.CancelledError:
            # A reply may have come in between the cancellation and now.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None and late is not None:
                late(waiter.result())
            raise

    def tell(self, message: bytes, script: Script | None = None) -> None:
        """Sends a command whose reply says nothing. Raises Away where Redis is away."""
        self._send(_Asked(message, script))

    def _send(self, asked: _Asked) -> None:
        connection = self._connection
        if self.away is not None or connection is None:
            raise Away(self.away)
        if len(connection) >= MOST_WAITING:
            self._leave(f"{MOST_WAITING} commands are waiting")
            raise Away(self.away)
        connection.send(asked)

    # What a connection tells.

    def sent(self, outbox: Iterable[_Asked]) -> None:
        for asked in outbox:
            # Time runs from when a command is under way, so that none of it is ours; a repeated one has no more.
            if asked not in self._patience:
                self._patience.start(asked)

    def taken(self, connection: _Connection, asked: _Asked, reply: Reply) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self._refused(connection, asked, str(reply))
            return
        self._patience.stop(asked)
        asked.answered = True
        if asked.forsaken:
            if asked.late is not None:
                asked.late(reply)
        elif asked.waiter is not None:
            asked.waiter.set_result(reply)

    def parted(self, connection: _Connection) -> None:
        reason = "the connection was lost"
        connection.fail(reason)
        if connection is self._connection:
            self._leave(reason)

    def _refused(self, connection: _Connection, asked: _Asked, error: str) -> None:
        if error.startswith("NOSCRIPT") and asked.script is not None:
            # Not executed, so this once it can be repeated without counting twice.
            asked.message = asked.message.replace(asked.script.by_hash, asked.script.by_text, 1)
            asked.script = None
            connection.send(asked)
            return
        self._patience.stop(asked)
        asked.answered = True
        found = CODE.search(error)
        reason = REASONS[found[1]] if found is not None else "it answered with an error"
        asked.fail(reason)
        connection.refused = True
        self._leave(reason)

    # Time.

    def _due(self, asked: _Asked) -> None:
        """Redis had its time; but it may be we who are late, and the reply lies in our socket.

        By the second turn from here every event loop has looked at its sockets once more.
        """
        self._loop.call_soon(self._loop.call_soon, self._judge, asked)

    def _judge(self, asked: _Asked) -> None:
        if not asked.answered:
            reason = f"no answer within {self._settings.timeout_s * 1000:g} ms"
            asked.fail(reason)
            self._leave(reason)

    # Away, and back.

    def _leave(self, reason: str) -> None:
        was, self.away = self.away, reason
        if self._connection is not None:
            self._connection.fail(reason)
            self._connection.trouble.set()
        if was is None:
            self._left_s = self._loop.time()
            for told in self._told:
                told(reason)

    def _return(self) -> None:
        self.away = None
        for told in self._told:
            told(None)

    async def _tend(self) -> None:
        """Keeps a connection for as long as it is any good, and makes a new one then."""
        failures = 0
        while True:
            connection = _Connection(self._loop, self)
            try:
                try:
                    async with asyncio.timeout(CONNECT_S):
                        await self._connect(connection)
                except (OSError, UnicodeError, Away) as error:
                    self._leave(_reason(error))
                else:
                    failures = 0
                    self._connection = connection
                    self._return()
                    self._tried.set()
                    await self._until_useless(connection)
            finally:
                self._connection = None
                await connection.close()
            self._tried.set()
            await asyncio.sleep(pause_s(failures, self._settings.retry_s, self._rng))
            failures += 1

    async def _connect(self, connection: _Connection) -> None:
        """Connects anew, with a fresh look at where the name leads; ready once a probe was written there."""
        place = self._place
        if place.path:
            await self._loop.create_unix_connection(lambda: connection, place.path)
        else:
            tls = ssl.create_default_context() if place.tls else None
            await self._loop.create_connection(lambda: connection, place.host, place.port, ssl=tls)
        for message in (*place.greeting(), *(script.load for script in self._scripts), self._probe):
            await self._roundtrip(connection, message)

    async def _roundtrip(self, connection: _Connection, message: bytes) -> Reply:
        waiter = self._loop.create_future()
        connection.send(_Asked(message, waiter=waiter))
        return await waiter

    async def _until_useless(self, connection: _Connection) -> None:
        """While Redis is only slow, one probe after another is sent; the first that is answered in time ends that."""
        while True:
            await connection.trouble.wait()
            connection.trouble.clear()
            while self.away is not None:
                # Meanwhile replies that are late may come.
                await asyncio.wait([connection.lost], timeout=self._settings.retry_s)
                silent_s = self._loop.time() - max(connection.heard_s, self._left_s)
                if connection.lost.done() or connection.refused or silent_s > SILENT_S:
                    return
                with suppress(Away):
                    await self._roundtrip(connection, self._probe)
                    self._return()

    def __repr__(self) -> str:
        waiting = len(self._connection) if self._connection is not None else 0
        return f"<Redis {self._place}{f' away: {self.away}' if self.away is not None else f', {waiting} waiting'}>"


def pause_s(failures: int, retry_s: float, rng: random.Random) -> float:
    """Before the next connection: a moment after a loss, about `retry_s` after a failure, never in step."""
    return rng.uniform(0.5, 1) * retry_s if failures else rng.uniform(0, 0.05)


def _reason(error: Exception) -> str:
    """Why no connection came about, without an address or a password."""
    if isinstance(error, Away):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "unknown host"
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "no address answered"
