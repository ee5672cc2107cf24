"""gateway/http1.py: what an engine may send, in any pieces, and what it must not get away with."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from gateway.http1 import (
    FAREWELL_S,
    HIGH_WATER_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    Address,
    Broken,
    Connection,
    Connections,
    Head,
    reason_of,
)
from tests.unit.by_hand import HandLoop
from tests.unit.splitting import choice, cuts, one_by_one, pieces, thorough
from tests.vllm_wire import recorded

CALL = b"POST /v1/chat/completions HTTP/1.1\r\nhost: engine\r\ncontent-length: 2\r\n\r\n{}"
LONG_S = 5.0
T = TypeVar("T")


# The protocol alone, without sockets: it is fed bytes and asked what it made of them.


@dataclass
class Wire:
    """A transport that remembers what was done to it."""

    sent: bytes = b""
    closed: bool = False
    paused: bool = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Waiting(Exception):
    """The connection waits for more bytes."""


@dataclass
class Answer:
    """What a connection made of an answer: its head, its body as far as it came, and how it ended."""

    head: Head | None
    body: bytes
    error: Broken | None
    complete: bool
    reusable: bool


@dataclass
class Fed:
    """A connection in an exchange, fed by hand."""

    wire: Wire = field(default_factory=Wire)
    lost: int = 0
    loop: HandLoop = field(default_factory=HandLoop)

    def __post_init__(self) -> None:
        self.connection = Connection(self.loop, self._lost)
        self.connection.connection_made(cast(asyncio.Transport, self.wire))
        self.connection.send(CALL)

    def _lost(self, connection: Connection) -> None:
        self.lost += 1

    def feed(self, parts: list[bytes]) -> "Fed":
        for part in parts:
            if not self.wire.closed:
                self.connection.data_received(part)
        return self

    def end(self, error: Exception | None = None) -> "Fed":
        """The transport tells that it is gone, as it does once, whoever closed it."""
        self.connection.connection_lost(error)
        return self

    def answer(self) -> Answer:
        """Everything that can be read without waiting."""
        head, body, error, complete = None, b"", None, False
        try:
            head = at_once(self.connection.head())
            while part := at_once(self.connection.read()):
                body += part
            complete = True
        except Broken as broken:
            error = broken
        except Waiting:
            pass
        return Answer(head, body, error, complete, self.connection.reusable)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that need not wait; Waiting if it would."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    coroutine.close()
    raise Waiting


OK = b"HTTP/1.1 200 OK\r\n"

COMPLETE = {
    "length": (OK + b"content-length: 5\r\n\r\nhello", b"hello"),
    "no body": (OK + b"content-length: 0\r\n\r\n", b""),
    "chunks": (OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
    "chunks with all there is": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n05;name=value\r\nhello\r\n000\r\nTrailer: x\r\n\r\n",
        b"hello",
    ),
    "interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        + OK
        + b"content-length: 5\r\n\r\nhello",
        b"hello",
    ),
    "an error": (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy", b"busy"),
    "without a reason": (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", b"ok"),
    "odd letters": (OK + b"CoNtEnT-LeNgTh:  5 \r\nX-Odd: \xff\x80\r\nX-Empty:\r\n\r\nhello", b"hello"),
}


@thorough
@given(choice(*COMPLETE.values()), cuts())
def test_any_split_of_an_answer_gives_the_same(answer: tuple[bytes, bytes], cut: list[int]) -> None:
    """Head, body and end do not depend on what came in one read; the connection can be used again."""
    stream, body = answer
    whole = Fed().feed([stream]).answer()
    assert (whole.body, whole.complete, whole.reusable, whole.error) == (body, True, True, None)
    for parts in (pieces(stream, cut), one_by_one(stream)):
        assert Fed().feed(parts).answer() == whole


@pytest.mark.parametrize("name", ["stream", "chat", "overflow", "models", "connection_close"])
def test_recorded_answers_of_a_real_engine(name: str) -> None:
    """Split at every place."""
    stream = recorded(name).reply
    whole = Fed().feed([stream]).answer()
    assert whole.complete
    assert whole.reusable is (name != "connection_close")
    for at in range(1, len(stream), 7):
        assert Fed().feed([stream[:at], stream[at:]]).answer() == whole


def test_the_heads_names_are_in_lower_case() -> None:
    """So that nobody has to look twice."""
    head = Fed().feed([OK + b"Content-Type: text/event-stream\r\nX: 1\r\nContent-Length: 0\r\n\r\n"]).answer().head
    assert head == Head(200, {b"content-type": b"text/event-stream", b"x": b"1", b"content-length": b"0"})


BROKEN = {
    "not HTTP": b"\x00\x01\x02 garbage\r\n\r\n",
    "an older protocol": b"<html>hello</html>",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a call": b"GET / HTTP/1.1\r\n\r\n",
    "status of five digits": b"HTTP/1.1 99999 OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status 0": b"HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n",
    "status 99": b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
    "a status that is none": b"HTTP/1.1 abc OK\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "length and chunks": OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "a length with a sign": OK + b"content-length: +5\r\n\r\nhello",
    "a negative length": OK + b"content-length: -5\r\n\r\nhello",
    "a length of words": OK + b"content-length: five\r\n\r\nhello",
    "a length beyond counting": OK + b"content-length: 99999999999999999999999\r\n\r\nhello",
    "a chunk of no size": OK + b"transfer-encoding: chunked\r\n\r\nhello\r\n",
    "a chunk of a negative size": OK + b"transfer-encoding: chunked\r\n\r\n-1\r\nhello\r\n",
    "a chunk beyond counting": OK + b"transfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nhello\r\n",
    "a chunk that goes on": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhello\r\n",
    "a space before the colon": OK + b"content-length : 5\r\n\r\nhello",
    "a header without a name": OK + b": x\r\ncontent-length: 5\r\n\r\nhello",
    "too many headers": OK + b"".join(b"x%d: y\r\n" % number for number in range(MAX_HEADERS + 1)) + b"\r\n",
    "a header too large": OK + b"x: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "headers too large": OK + (b"x: " + b"y" * 1000 + b"\r\n") * 100 + b"\r\n",
    "a trailer too large": OK + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "interim answers without end": b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n" * 50_000,
}


@pytest.mark.parametrize("stream", [pytest.param(stream, id=name) for name, stream in BROKEN.items()])
def test_what_is_no_answer_breaks_the_exchange(stream: bytes) -> None:
    """It is never taken for success, and the connection is closed at once."""
    for parts in ([stream], [stream[at : at + 1000] for at in range(0, len(stream), 1000)]):
        fed = Fed().feed(parts).end()
        answer = fed.answer()
        assert answer.error is not None
        assert not answer.complete
        assert not answer.reusable
        assert not answer.error.silent
        assert not answer.error.refused
        assert fed.wire.closed
        assert fed.lost == 1


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"HTTP/1.1 200 O", id="a reason"),
        pytest.param(OK + b"x", id="a header's name"),
        pytest.param(OK + b"x: ", id="a header's value"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n5;", id="a chunk's extension"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n0\r\nx", id="a trailer's name"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n0\r\nx: ", id="a trailer's value"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;", id="an extension in the middle"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000, 60_000])
def test_nothing_goes_on_for_ever(begun: bytes, size: int) -> None:
    """What has no end is stopped, before it takes memory, whether it comes in drops or in floods."""
    fed = Fed().feed([begun])
    received = 0
    while not fed.wire.closed:
        fed.connection.data_received(b"y" * size)
        received += size
        assert received <= MAX_HEAD_BYTES + 2 * size
    assert fed.end().answer().error is not None


@pytest.mark.parametrize(
    ("stream", "more"),
    [
        pytest.param(COMPLETE["length"][0], b"x", id="a byte"),
        pytest.param(COMPLETE["length"][0], b"HTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\nevil", id="an answer"),
        pytest.param(COMPLETE["chunks"][0], OK + b"content-length: 4\r\n\r\nevil", id="an answer after chunks"),
        pytest.param(OK + b"content-length: 0\r\n\r\n", b"hello", id="a body that was not announced"),
        pytest.param(OK + b"content-length: 5\r\nconnection: close\r\n\r\nhello", b"evil", id="after the last answer"),
    ],
)
def test_bytes_after_the_end_are_nobodys(stream: bytes, more: bytes) -> None:
    """They neither join this answer nor become the next one's: the connection is not used again."""
    for parts in ([stream + more], [stream, more], one_by_one(stream + more)):
        fed = Fed().feed(parts)
        answer = fed.answer()
        assert answer.head is not None
        assert answer.head.status == 200
        assert answer.body in (b"hello", b"")
        assert answer.complete
        assert not answer.reusable
        assert fed.wire.closed


@pytest.mark.parametrize(
    ("stream", "error", "complete"),
    [
        pytest.param(OK + b"\r\nhello", None, True, id="an answer without length ends with its connection"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\nhello", None, True, id="an old one too"),
        pytest.param(OK + b"\r\nhello", ConnectionResetError(), False, id="but not with a reset"),
        pytest.param(OK + b"content-length: 6\r\n\r\nhello", None, False, id="a length that was not reached"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", None, False, id="no last chunk"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", None, False, id="no last line"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n6\r\nhello", None, False, id="half a chunk"),
        pytest.param(OK + b"transfer-encoding: gzip\r\n\r\nhello", None, False, id="an encoding nobody asked for"),
    ],
)
def test_where_an_answer_ends_when_its_connection_does(stream: bytes, error: Exception | None, complete: bool) -> None:
    """A clean end is only what HTTP says is one; what came before it is still there to be read."""
    answer = Fed().feed([stream]).end(error).answer()
    assert answer.body == b"hello"
    assert answer.complete is complete
    assert (answer.error is None) is complete
    assert not answer.reusable


def test_an_answer_that_we_cut_off_ourselves_is_not_complete() -> None:
    """Also where the end of the connection would be its end."""
    fed = Fed().feed([OK + b"\r\nhel"])
    fed.connection.abort()
    answer = fed.end().answer()
    assert answer.body == b"hel"
    assert answer.error is not None


@pytest.mark.parametrize(
    ("stream", "reusable"),
    [
        pytest.param(OK + b"content-length: 0\r\nconnection: close\r\n\r\n", False, id="the engine closes"),
        pytest.param(OK + b"content-length: 0\r\nconnection: keep-alive\r\n\r\n", True, id="the engine keeps"),
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", False, id="an old one closes"),
        pytest.param(
            b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n", True, id="unless it says"
        ),
        pytest.param(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", True, id="nothing to tell"),
    ],
)
def test_when_a_connection_can_be_used_again(stream: bytes, reusable: bool) -> None:
    """When the exchange is complete and both sides keep it."""
    answer = Fed().feed([stream]).answer()
    assert answer.complete
    assert answer.reusable is reusable


def test_bytes_before_any_exchange_close_the_connection() -> None:
    """An engine has nothing to say unasked."""
    connection = Connection(HandLoop(), lambda _: None)
    connection.connection_made(cast(asyncio.Transport, wire := Wire()))
    connection.data_received(COMPLETE["length"][0])
    assert wire.closed
    assert not connection.reusable


def test_an_exchange_begins_with_nothing_of_the_one_before() -> None:
    """No header, no body and no end is left over, whether it was read or not."""
    fed = Fed().feed([OK + b"x-old: 1\r\ncontent-length: 3\r\n\r\nold"])
    fed.connection.send(CALL)
    assert fed.answer() == Answer(None, b"", None, complete=False, reusable=False)
    fed.feed([COMPLETE["length"][0]])
    assert fed.answer() == Answer(Head(200, {b"content-length": b"5"}), b"hello", None, complete=True, reusable=True)
    assert fed.wire.sent == CALL * 2
    assert fed.connection.exchanges == 2


def test_a_fast_sender_is_held_back_by_a_slow_reader() -> None:
    """A little more than the high water mark is held, however much there is; and reading lets it go on."""
    fed = Fed().feed([OK + b"content-length: 10000000\r\n\r\n"])
    fed.feed([b"x" * 1000] * (HIGH_WATER_BYTES // 1000))
    assert not fed.wire.paused
    fed.feed([b"x" * 1000])
    assert fed.wire.paused
    assert len(at_once(fed.connection.read())) > HIGH_WATER_BYTES
    assert not fed.wire.paused


def test_an_answer_that_nobody_reads_is_dropped_as_it_comes() -> None:
    """And its end is told, once."""
    fed, told = Fed(), list[bool]()
    fed.feed([OK + b"content-length: 1000005\r\n\r\n", b"x" * (HIGH_WATER_BYTES + 1)])
    assert fed.wire.paused
    fed.connection.when_complete(lambda: told.append(fed.connection.reusable))
    assert not fed.wire.paused
    fed.feed([b"x" * (1_000_000 - HIGH_WATER_BYTES - 1)])
    assert (told, fed.wire.paused) == ([], False)
    fed.feed([b"hello"])
    assert told == [True]


# On sockets, in both event loops that the gateway may run in.


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The loop that we run in, and the one that others may."""
    return "asyncio", {"loop_factory": uvloop.new_event_loop} if request.param == "uvloop" else {}


@dataclass
class Served:
    """A server on a loopback socket that does what it is told with each connection; counts them."""

    address: Address
    connections: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)


Conduct = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def engine(conduct: Conduct) -> AsyncIterator[Served]:
    served = Served(Address("127.0.0.1", 0))

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        try:
            await conduct(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            served.ended.set()

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    served.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    async with server:
        yield served


def answering(*parts: bytes, times: int = 1_000_000) -> Conduct:
    """Answers calls with these parts, each written on its own, until the caller leaves or often enough."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(times):
            await reader.readexactly(len(CALL))
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)

    return conduct


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def soon(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns; an error of its own where it does not come to an end."""
    async with asyncio.timeout(LONG_S) as limit:
        try:
            return await coroutine
        except asyncio.CancelledError:
            assert limit.when() is None or not limit.expired(), "nothing came"
            raise


async def whole(connection: Connection) -> bytes:
    body = b""
    await connection.head()
    while part := await connection.read():
        body += part
    return body


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until the condition holds."""
    async with asyncio.timeout(LONG_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


def connections(connect_timeout_s: float = LONG_S, idle_s: float = LONG_S) -> Connections:
    return Connections(connect_timeout_s, idle_s)


@pytest.mark.anyio
@pytest.mark.parametrize("name", COMPLETE)
async def test_answers_over_a_socket_in_all_pieces(name: str) -> None:
    """Byte by byte and split in two at every place, one after the other on the same connection."""
    stream, body = COMPLETE[name]
    splits = [one_by_one(stream), *([stream[:at], stream[at:]] for at in range(1, len(stream), 5))]

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for parts in splits:
            await answering(*parts, times=1)(reader, writer)

    async with engine(conduct) as served, connections() as pool:
        for _ in splits:
            connection = await pool.acquire(served.address)
            connection.send(CALL)
            assert await whole(connection) == body
            pool.release(connection, served.address)
        assert served.connections == 1
        assert repr(pool) == "<Connections 1 open, 1 idle>"
    assert repr(pool) == "<Connections 0 open, 0 idle>"


@pytest.mark.anyio
async def test_a_connection_is_shared_by_calls_one_after_the_other_and_never_at_once() -> None:
    """Two at a time need two; a third call takes the one that was used last."""
    async with engine(answering(COMPLETE["length"][0])) as served, connections() as pool:
        first, second = await pool.acquire(served.address), await pool.acquire(served.address)
        assert first is not second
        for connection in (first, second):
            connection.send(CALL)
            assert await whole(connection) == b"hello"
            pool.release(connection, served.address)
        assert await pool.acquire(served.address) is second
        assert await pool.acquire(served.address, fresh=True) is not first
        assert await pool.acquire(served.address) is first


@pytest.mark.anyio
@pytest.mark.parametrize("half", [False, True])
async def test_a_connection_in_the_middle_of_an_exchange_is_closed_and_not_kept(half: bool) -> None:
    """The engine sees its caller gone, and stops to work for him."""
    begun = (OK + b"content-length: 5\r\n\r\nhe",) if half else ()

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(*begun, times=1)(reader, writer)
        await reader.read()

    async with engine(conduct) as served, connections() as pool:
        connection = await pool.acquire(served.address)
        connection.send(CALL)
        if half:
            assert await connection.read(LONG_S) == b"he"
        pool.release(connection, served.address)
        await asyncio.wait_for(served.ended.wait(), LONG_S)
        assert repr(pool) == "<Connections 0 open, 0 idle>"


@pytest.mark.anyio
async def test_an_engine_that_closes_idle_connections_costs_no_call() -> None:
    """A connection that was closed while it was idle is not used again."""
    async with engine(answering(COMPLETE["length"][0], times=1)) as served, connections() as pool:
        for number in range(1, 4):
            connection = await pool.acquire(served.address)
            connection.send(CALL)
            assert await whole(connection) == b"hello"
            pool.release(connection, served.address)
            await until(lambda: repr(pool) == "<Connections 0 open, 0 idle>")
            assert served.connections == number


@pytest.mark.anyio
async def test_idle_connections_are_closed_after_their_time() -> None:
    """Nobody has to ask for one to have the old ones closed; those in use stay."""
    async with engine(answering(COMPLETE["length"][0])) as served, connections(idle_s=0.05) as pool:
        kept = [await pool.acquire(served.address) for _ in range(3)]
        for connection in kept[:2]:
            connection.send(CALL)
            await whole(connection)
            pool.release(connection, served.address)
        assert repr(pool) == "<Connections 3 open, 2 idle>"
        await until(lambda: kept[0].closed and kept[1].closed)
        assert not kept[2].closed
        assert await pool.acquire(served.address) not in kept


@pytest.mark.anyio
async def test_a_connection_that_is_just_closing_is_not_used_again() -> None:
    """Its end may not have been told yet."""
    async with engine(answering(COMPLETE["length"][0])) as served, connections() as pool:
        connection = await pool.acquire(served.address)
        connection.send(CALL)
        await whole(connection)
        pool.release_at_end(connection, served.address, within_s=LONG_S)
        connection.abort()
        assert await pool.acquire(served.address) is not connection


@pytest.mark.anyio
async def test_an_engine_that_drops_the_call_without_a_word() -> None:
    """Nothing was heard: the exchange is known to be silent, whoever decides what that means."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(CALL))

    async with engine(conduct) as served, connections() as pool:
        connection = await pool.acquire(served.address)
        connection.send(CALL)
        with pytest.raises(Broken) as caught:
            await connection.head(LONG_S)
        assert caught.value.silent
        assert not caught.value.refused
        assert not connection.reusable


@pytest.mark.anyio
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("name", ["length", "chunks"])
async def test_an_engine_that_dies_in_the_middle(name: str, reset: bool) -> None:
    """What came is read, then the exchange is broken; it was not silent."""
    stream, _ = COMPLETE[name]
    cut = stream.index(b"he") + 2

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(stream[:cut], times=1)(reader, writer)
        await go.wait()
        if reset:
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
            writer.transport.abort()

    go = asyncio.Event()
    async with engine(conduct) as served, connections() as pool:
        connection = await pool.acquire(served.address)
        connection.send(CALL)
        assert (await connection.head(LONG_S)).status == 200
        assert await connection.read(LONG_S) == b"he"
        go.set()
        with pytest.raises(Broken) as caught:
            await connection.read(LONG_S)
        assert not caught.value.silent


@pytest.mark.anyio
async def test_a_call_on_a_connection_that_is_gone_is_silent() -> None:
    """Nothing was begun, so it may be sent again elsewhere."""
    async with engine(answering(COMPLETE["length"][0])) as served, connections() as pool:
        connection = await pool.acquire(served.address)
        connection.abort()
        connection.send(CALL)
        with pytest.raises(Broken) as caught:
            await connection.head(LONG_S)
        assert caught.value.silent


@pytest.mark.anyio
async def test_an_engine_that_never_answers_runs_into_the_timeout() -> None:
    """For the head and for the body alike."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(OK + b"content-length: 5\r\n\r\n", times=1)(reader, writer)
        await reader.read()

    async with engine(silent) as mute, engine(conduct) as begun, connections() as pool:
        connection = await pool.acquire(mute.address)
        connection.send(CALL)
        with pytest.raises(TimeoutError):
            await connection.head(0.02)
        connection = await pool.acquire(begun.address)
        connection.send(CALL)
        await connection.head(LONG_S)
        with pytest.raises(TimeoutError):
            await connection.read(0.02)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(OK, id="headers"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n5", id="a chunk's extension"),
    ],
)
async def test_a_trickle_of_bytes_that_say_nothing_renews_no_timeout(begun: bytes) -> None:
    """An engine that sends a byte of a head now and then has not answered."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(begun, times=1)(reader, writer)
        writer.write(b"x: " if begun == OK else b";")
        while not writer.is_closing():
            writer.write(b"y")
            await asyncio.sleep(0.005)

    async with engine(conduct) as served, connections() as pool:
        connection = await pool.acquire(served.address)
        connection.send(CALL)
        async with asyncio.timeout(LONG_S):
            with pytest.raises(TimeoutError):
                await whole(connection, timeout_s=0.05)
        connection.abort()


@pytest.mark.anyio
async def test_a_refused_connection() -> None:
    """Said in words of ours: the address is nobody's business but the operator's."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", closed.getsockname()[1])
        async with connections() as pool:
            with pytest.raises(Broken) as caught:
                await pool.acquire(address)
            assert repr(pool) == "<Connections 0 open, 0 idle>"
    assert caught.value.refused
    assert caught.value.silent
    assert str(caught.value) == "no connection: Connection refused"


@pytest.mark.anyio
async def test_a_host_that_cannot_exist() -> None:
    """As good as refused."""
    async with connections() as pool:
        with pytest.raises(Broken) as caught:
            await pool.acquire(Address("x" * 70 + ".invalid", 80))
    assert caught.value.refused
    assert str(caught.value) == "no connection: unknown host"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(ConnectionRefusedError(111, "Connect call failed ('10.0.0.7', 1)"), "Connection refused", id="no"),
        pytest.param(OSError(113, "Connect call failed ('10.0.0.7', 1)"), "No route to host", id="no route"),
        pytest.param(OSError("Multiple exceptions: ('10.0.0.7', 1)"), "no address answered", id="several addresses"),
        pytest.param(socket.gaierror(-2, "Name or service not known: engine.internal"), "unknown host", id="no name"),
        pytest.param(ssl.SSLCertVerificationError(1, "certificate of engine.internal"), "TLS failed", id="no trust"),
        pytest.param(UnicodeError("label too long"), "unknown host", id="no host's name"),
    ],
)
def test_why_there_is_no_connection_is_told_without_an_address(error: OSError | UnicodeError, reason: str) -> None:
    """The reason reaches callers; asyncio's words would tell them where engines are."""
    assert reason_of(error) == reason


@pytest.mark.anyio
async def test_an_engine_that_speaks_no_tls() -> None:
    """Where the settings say https."""
    async with engine(answering(b"no TLS here")) as served, connections(connect_timeout_s=1) as pool:
        with pytest.raises(Broken) as caught:
            await pool.acquire(Address("127.0.0.1", served.address.port, tls=True))
        assert caught.value.refused
        assert "127.0.0.1" not in str(caught.value)


@pytest.mark.anyio
async def test_an_engine_that_accepts_nothing() -> None:
    """A connection has its time to come about, and is given up then."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        others = []
        for _ in range(8):
            other = socket.socket()
            other.setblocking(False)
            other.connect_ex(full.getsockname())
            others.append(other)
        async with connections(connect_timeout_s=0.05) as pool:
            with pytest.raises(Broken, match="no connection in time") as caught:
                await pool.acquire(Address("127.0.0.1", full.getsockname()[1]))
            assert caught.value.refused
        for other in others:
            other.close()


@pytest.mark.anyio
async def test_a_caller_that_is_cancelled_while_it_waits_leaves_nothing() -> None:
    """Neither a timer nor a waiter; and the connection is not one to use again."""
    async with engine(silent) as served, connections() as pool:
        connection = await pool.acquire(served.address)
        connection.send(CALL)
        waiting = asyncio.create_task(connection.head(LONG_S))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        pool.release(connection, served.address)
        await asyncio.wait_for(served.ended.wait(), LONG_S)
        assert repr(pool) == "<Connections 0 open, 0 idle>"


@pytest.mark.anyio
async def test_whoever_waits_is_told_when_all_connections_close() -> None:
    """A shutdown is no clean end of anything."""

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(OK + b"\r\nhe", times=1)(reader, writer)
        await reader.read()

    async with engine(hold) as served:
        async with connections() as pool:
            connection = await pool.acquire(served.address)
            connection.send(CALL)
            assert await connection.read(LONG_S) == b"he"
            waiting = asyncio.create_task(connection.read(LONG_S))
            await asyncio.sleep(0)
        with pytest.raises(Broken):
            await waiting


@pytest.mark.anyio
async def test_a_fast_engine_before_a_slow_reader_waits_for_it() -> None:
    """The socket holds it back: a gigabyte is not sent into a gateway that does not read."""
    sent = 0

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await answering(OK + b"content-length: 1000000000\r\n\r\n", times=1)(reader, writer)
        while True:
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    async with engine(conduct) as served, connections() as pool:
        connection = await pool.acquire(served.address)
        connection.send(CALL)
        await connection.head(LONG_S)
        before = -1
        async with asyncio.timeout(LONG_S):
            while before != sent:
                before = sent
                await asyncio.sleep(0.05)
        assert sent < 30_000_000
        held = len(await connection.read(LONG_S))
        assert HIGH_WATER_BYTES < held < 3 * HIGH_WATER_BYTES
        received = held
        async with asyncio.timeout(LONG_S):
            while received < 2 * sent and received < 50_000_000:
                received += len(await connection.read(LONG_S))
        pool.release(connection, served.address)


@pytest.mark.anyio
async def test_an_answer_left_behind_is_drained_for_a_moment() -> None:
    """A connection is kept where the rest comes soon, and closed where it does not."""
    go = asyncio.Event()

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await answering(OK + b"content-length: 600005\r\n\r\nhello", times=1)(reader, writer)
            await go.wait()
            writer.write(b"x" * 600_000)
            await writer.drain()

    async with engine(conduct) as served, connections() as pool:
        connection = await pool.acquire(served.address)
        connection.send(CALL)
        assert await connection.read(LONG_S) == b"hello"
        pool.release_at_end(connection, served.address, within_s=LONG_S)
        assert repr(pool) == "<Connections 1 open, 0 idle>"
        go.set()
        await until(lambda: repr(pool) == "<Connections 1 open, 1 idle>")
        go.clear()
        assert await pool.acquire(served.address) is connection
        connection.send(CALL)
        assert await connection.read(LONG_S) == b"hello"
        pool.release_at_end(connection, served.address, within_s=0.01)
        await until(lambda: connection.closed)
        go.set()


def test_an_address_is_read_from_a_url_and_tells_no_key() -> None:
    """Ports have their defaults; a key is for the engine alone."""
    assert Address.of("http://127.0.0.1:9101") == Address("127.0.0.1", 9101)
    assert Address.of("https://engine", "canary-key") == Address("engine", 443, tls=True, api_key="canary-key")
    assert Address.of("http://engine").port == 80
    assert str(Address.of("http://[::1]:9101")) == "[::1]:9101"
    assert "canary-key" not in f"{Address.of('https://engine', 'canary-key')!r} {Address.of('https://engine')}"
