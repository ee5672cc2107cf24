"""gateway/edge/connection.py: whatever bytes come, in whatever pieces, a connection makes of them calls, or ends."""

import asyncio
import re
import tracemalloc
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.edge import rendering
from gateway.edge.callers import FIRST_CALL_S, LINGER_S
from gateway.edge.connection import (
    COMMENT,
    FAIR_BYTES,
    INTERIM,
    LINGER_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_TARGET_BYTES,
    RESET,
)
from gateway.edge.exchange import CONTINUE, UNASKED_BYTES, Exchange
from gateway.errors import CallerLeft, GatewayError, SlowReader
from tests.unit.by_hand import LIMITS, App, Caller, Listener
from tests.unit.splitting import choice, cuts, one_by_one, pieces, thorough
from tests.unit.strict_http import Seen, calls_in

GET = b"GET / HTTP/1.1\r\nhost: g\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
UPGRADE = b"upgrade: h2c\r\nconnection: upgrade\r\n"
BODY_LIMIT_BYTES = 2**20
BODY_TIMEOUT_S = 20.0
# By now whatever has a deadline is over.
AGES_S = 200.0


def post(body: bytes, lines: bytes = b"", sent: int | None = None) -> bytes:
    """A call with a body, of which only so much is sent."""
    return b"POST / HTTP/1.1\r\nhost: g\r\n%bcontent-length: %d\r\n\r\n%b" % (lines, len(body), body[:sent])


def chunked(*chunks: bytes, lines: bytes = b"", end: bytes = b"0\r\n\r\n") -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"POST / HTTP/1.1\r\nhost: g\r\n%btransfer-encoding: chunked\r\n\r\n%b%b" % (lines, framed, end)


# Who answers.


def surface(app: App) -> App:
    """An app as the gateway's own: what it raises is answered, where there is somebody left to be answered."""

    async def answered(exchange: Exchange) -> None:
        try:
            await app(exchange)
        except (CallerLeft, SlowReader):
            return
        except GatewayError as error:
            rendering.tell(exchange, error, b"")

    return answered


async def echoing(exchange: Exchange) -> None:
    exchange.whole(200, b"", await exchange.body(BODY_LIMIT_BYTES, BODY_TIMEOUT_S))


async def streaming(exchange: Exchange) -> None:
    body = await exchange.body(BODY_LIMIT_BYTES, BODY_TIMEOUT_S)
    exchange.begin(200, b"")
    for part in (body[:3], body[3:]):
        exchange.write(part)
        await exchange.room()
    exchange.end(b"!")


async def refusing(exchange: Exchange) -> None:
    exchange.whole(401, b"", b"no")


async def giving_up(exchange: Exchange) -> None:
    await exchange.body(BODY_LIMIT_BYTES, BODY_TIMEOUT_S)


APPS = (echoing, streaming, refusing, giving_up)


class Held:
    """An app that looks at nothing, and answers when it is told to: the oldest exchange first."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Exchange, asyncio.Event]] = []
        self.left: list[GatewayError] = []

    async def __call__(self, exchange: Exchange) -> None:
        exchange.when_departed(self.left.append)
        go = asyncio.Event()
        self.waiting.append((exchange, go))
        await go.wait()
        if not exchange.started:
            exchange.whole(200, b"", b"done")

    @property
    def exchange(self) -> Exchange:
        """The one that is being answered."""
        return self.waiting[0][0]

    def release(self, caller: Caller) -> None:
        """Answers the oldest one, or lets an answer go that was begun by hand."""
        _, go = self.waiting.pop(0)
        go.set()
        caller.loop.turn()

    def begin(self, caller: Caller, data: bytes) -> None:
        """Begins a stream."""
        with caller.loop.running():
            self.exchange.begin(200, b"")
            self.exchange.write(data)

    def write(self, caller: Caller, data: bytes) -> None:
        with caller.loop.running():
            self.exchange.write(data)

    def end(self, caller: Caller, data: bytes) -> None:
        """Ends a stream that was begun by hand."""
        with caller.loop.running():
            self.exchange.end(data)
        self.release(caller)


def caller_of(app: App = echoing) -> Caller:
    return Listener(surface(app)).accept()


class Reply(NamedTuple):
    status: int
    closes: bool
    body: bytes


def replies(caller: Caller) -> list[Reply]:
    """All that was answered, as a caller reads it, who knows what he asked for; interim answers are left out."""
    rest, found = caller.wire.sent, list[Reply]()
    while rest:
        head, end, rest = rest.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.1 (\d{3}) [A-Z][\x20-\x7e]+(?:\r\n|\Z)", head)
        assert status, f"no answer: {head!r}"
        assert end
        if status[1].startswith(b"1"):
            continue
        asked = caller.listener.exchanges[len(found)] if len(found) < len(caller.listener.exchanges) else None
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        body = b""
        if asked is not None and asked.head.method == "HEAD":
            pass
        elif length:
            assert len(rest) >= int(length[1])
            body, rest = rest[: int(length[1])], rest[int(length[1]) :]
        elif b"\r\ntransfer-encoding: chunked" in head:
            while (size := int(rest.partition(b"\r\n")[0], 16)) > 0:
                chunk, rest = rest.partition(b"\r\n")[2][:size], rest.partition(b"\r\n")[2][size + 2 :]
                body += chunk
            assert rest.startswith(b"0\r\n\r\n")
            rest = rest[5:]
        else:
            body, rest = rest, b""
        found.append(Reply(int(status[1]), b"\r\nconnection: close" in head, body))
    return found


def over(caller: Caller) -> None:
    """The connection is gone, and nothing is left of it: no deadline, no timer, no task; nor did anything go wrong."""
    listener = caller.listener
    assert caller.wire.lost
    assert listener.deadlines == ""
    assert repr(listener.callers) == "<Callers 0 connections, 0 exchanges>"
    assert listener.census.connections == 0
    assert repr(caller.connection) == "<CallerConnection closed>" or caller.connection._current is not None
    listener.loop.do(listener.callers.gone(1.0))
    assert listener.loop.timers == []
    assert listener.loop.errors == []


# Any split of what is right.


@dataclass(frozen=True)
class Sent:
    """A call as it goes over the wire, and what is to be seen of it."""

    method: str
    path: str
    framing: str
    body: bytes
    cut: list[int]
    upgrade: bool
    expects: bool
    trailer: bytes
    blank: bytes

    @property
    def seen(self) -> tuple[str, str, bytes]:
        return self.method, self.path, b"" if self.framing == "none" else self.body

    @property
    def message(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1".encode(), b"Host: g", b"X-Odd: \t\xff  "]
        if self.upgrade:
            lines += [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"]
        if self.expects:
            lines.append(b"Expect: 100-continue")
        body = b""
        if self.framing == "length":
            lines.append(b"Content-Length: %d \t" % len(self.body))
            body = self.body
        elif self.framing == "chunks":
            lines.append(b"Transfer-Encoding: chunked")
            chunks = [b"%X;a=b\r\n%b\r\n" % (len(chunk), chunk) for chunk in pieces(self.body, self.cut) if chunk]
            body = b"".join(chunks) + b"00\r\n" + self.trailer + b"\r\n"
        return self.blank + b"\r\n".join([*lines, b"", body])


SENT = st.builds(
    Sent,
    method=choice("GET", "POST", "HEAD", "DELETE", "OPTIONS"),
    path=choice("/", "/v1/models", "/a/b"),
    framing=choice("none", "length", "chunks"),
    # Bodies that look like what follows a body.
    body=st.binary(max_size=40) | choice(GET, b"0\r\n\r\n", b"\r\n\r\n" + GET, b"POST "),
    cut=cuts(3),
    upgrade=st.booleans(),
    expects=st.booleans(),
    trailer=choice(b"", b"", b"Authorization: Bearer x\r\n", b"Host: h\r\nX-Odd: y\r\n"),
    blank=choice(b"", b"", b"\r\n", b"\n\r\n"),
)


def echoed(calls: list[Sent]) -> re.Pattern[bytes]:
    """What an echo answers: a caller who waits to be asked is asked, if he has to be, before his own answer."""
    answers = b""
    for number, call in enumerate(calls, 1):
        body = call.seen[2]
        head = b"HTTP/1.1 200 OK\r\nx-request-id: id-%d\r\ncache-control: no-store\r\n" % number
        answer = head + b"content-length: %d\r\n\r\n%b" % (len(body), b"" if call.method == "HEAD" else body)
        answers += (b"(?:%b)?" % re.escape(CONTINUE) if call.expects else b"") + re.escape(answer)
    return re.compile(answers)


@thorough
@given(st.lists(SENT, min_size=1, max_size=MAX_PIPELINED), cuts(), st.booleans())
def test_any_split_of_calls_is_seen_and_answered_the_same(calls: list[Sent], cut: list[int], turning: bool) -> None:
    """With bodies of all framings, with upgrades that are ignored, with trailers; in order, and none twice."""
    data = b"".join(call.message for call in calls)
    for parts in (pieces(data, cut), one_by_one(data) if len(data) < 700 else [data]):
        caller = caller_of()
        caller.send(*parts, turning=turning)
        caller.loop.turn()
        seen = [(exchange.head.method, exchange.head.path) for exchange in caller.listener.exchanges]
        assert seen == [call.seen[:2] for call in calls]
        assert echoed(calls).fullmatch(caller.wire.sent)
        assert caller.listener.deadlines == "1 idle"
        assert all(b"authorization" not in exchange.head.headers for exchange in caller.listener.exchanges)
        assert all(exchange.head.header(b"x-odd") == "ÿ" for exchange in caller.listener.exchanges)
        caller.leave()
        over(caller)


@pytest.mark.parametrize("app", [streaming, refusing])
@pytest.mark.parametrize("together", [True, False])
def test_other_ways_to_answer_keep_the_order_too(app: App, together: bool) -> None:
    """A stream ends before the next answer begins; who is not heard out is the last one."""
    caller, data = caller_of(app), GET + post(b"hello") + chunked(b"wor", b"ld")
    caller.send(*([data] if together else one_by_one(data)))
    if app is streaming:
        assert [reply.body for reply in replies(caller)] == [b"!", b"hello!", b"world!"]
    elif together:
        assert [reply.status for reply in replies(caller)] == [401] * 3
    else:
        assert [(reply.status, reply.closes) for reply in replies(caller)] == [(401, False), (401, True)]
    caller.leave()
    over(caller)


# Any bytes.

CORPUS = (
    GET,
    CLOSING,
    OLD,
    post(b"hello"),
    chunked(b"hel", b"lo"),
    chunked(b"hello", end=b"0\r\nX: y\r\n\r\n"),
    post(GET, lines=UPGRADE),
    chunked(GET, lines=UPGRADE),
    post(b"hello", lines=b"expect: 100-continue\r\n"),
    b"HEAD http://other/a?b HTTP/1.1\r\nHost: g:80\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT evil:80 HTTP/1.1\r\nhost: g\r\n\r\n",
    b"GET / HTTP/0.9\r\nhost: g\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    # What is meant to be read in two ways.
    b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\nG" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding\t: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\ncontent-length: 30\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 0, 30\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length: +5\r\n\r\nhello" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 0x5\r\n\r\nhello" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 99999999999999999999\r\n\r\nhello" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\nx: y\r\n content-length: 5\r\n\r\nhello" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length : 5\r\n\r\nhello" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ncontent\x00-length: 5\r\n\r\nhello" + GET,
    b"POST / HTTP/1.1\nhost: g\ncontent-length: 5\n\nhello" + GET,
    b"POST / HTTP/1.1\r\nhost: g\rcontent-length: 5\r\n\r\nhello" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n5;\n0\r\nhello\r\n0\r\n\r\n" + GET,
    b'POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n5;a="b\r\n"\r\nhello\r\n0\r\n\r\n' + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloxx0\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n00000000000000005\r\nhello\r\n0\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n" + GET,
    b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
    b"POST / HTTP/1.1\r\nhost: g\r\nhost: h\r\ncontent-length: 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: g\r\n\r\n\r\n\r\n" + GET,
)
MORSELS = (
    *(b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b";", b",", b"-", b"0", b"\xff", b"\r\n\r\n"),
    *(b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n", b"0\r\n\r\n", GET),
    *(UPGRADE, b"expect: 100-continue\r\n", b"host: h\r\n", b"connection: keep-alive\r\n", b"HTTP/1.0", b"x" * 100),
)
MUTATION = st.tuples(
    choice("insert", "line", "delete", "flip", "double", "truncate", "move"),
    st.integers(0, 2**16),
    st.integers(0, 2**16),
    choice(*MORSELS),
)


def mutated(data: bytes, deeds: list[tuple[str, int, int, bytes]]) -> bytes:
    for deed, one, other, morsel in deeds:
        start, end = sorted((one % (len(data) + 1), other % (len(data) + 1)))
        near = min(end, start + 1 + other % 4)
        if deed == "insert":
            data = data[:start] + morsel + data[start:]
        elif deed == "line":
            ends = [match.end() for match in re.finditer(b"\r\n", data)] or [0]
            start = ends[one % len(ends)]
            data = data[:start] + morsel + data[start:]
        elif deed == "delete":
            data = data[:start] + data[near:]
        elif deed == "flip":
            data = data[:start] + bytes(byte ^ (1 << other % 8) for byte in data[start:near]) + data[near:]
        elif deed == "double":
            data = data[:end] + data[start:end] + data[end:]
        elif deed == "truncate":
            data = data[:end]
        else:
            data = data[:start] + data[near:end] + data[start:near] + data[end:]
    return data


HOSTILE = st.builds(
    lambda messages, deeds: mutated(b"".join(messages), deeds),
    st.lists(choice(*CORPUS), min_size=1, max_size=3),
    st.lists(MUTATION, max_size=5),
)


class Recording:
    """An app that answers as another one does, and remembers the bodies that came to their end."""

    def __init__(self, app: App) -> None:
        self.bodies: dict[Exchange, bytes] = {}
        self._app = app

    async def __call__(self, exchange: Exchange) -> None:
        if self._app in (echoing, streaming):
            self.bodies[exchange] = body = await exchange.body(BODY_LIMIT_BYTES, BODY_TIMEOUT_S)
            # Once more for the app, which reads it again.
            exchange._body = body
        await self._app(exchange)


def agree(exchange: Exchange, body: bytes | None, seen: Seen) -> None:
    """What we took for a call is the same call to a strict reader."""
    head = exchange.head
    assert head.method.encode() == seen.method
    assert head.headers == dict(seen.fields)
    assert head.path.encode() in seen.target
    if body is not None:
        assert seen.complete
        assert body == seen.body
    else:
        assert seen.body.startswith(bytes(exchange._body))
        assert exchange.unread or seen.complete


@thorough
@given(HOSTILE, cuts(6), choice(*APPS), choice("silence", "fin", "reset", "half", "stall"), st.booleans())
def test_no_bytes_are_too_hostile(data: bytes, cut: list[int], app: App, ending: str, turning: bool) -> None:
    """Each is answered, cut or still open and waited for; nothing is raised, and no call is seen that is none."""
    recording = Recording(app)
    caller = caller_of(recording)
    caller.wire.reads = ending != "stall"
    caller.send(*pieces(data, cut), turning=turning)
    caller.loop.turn()
    listener = caller.listener
    strict = calls_in(data)
    assert len(listener.exchanges) <= len(strict)
    for exchange, seen in zip(listener.exchanges, strict, strict=False):
        agree(exchange, recording.bodies.get(exchange), seen)
    # Whoever is still there is waited for, and not for ever.
    under_way = [exchange for exchange in listener.exchanges if not exchange.ended]
    assert caller.wire.lost or under_way or listener.deadlines
    if ending == "half" and not caller.wire.closing:
        caller.half_close()
    elif ending in ("fin", "reset"):
        caller.leave(ConnectionResetError() if ending == "reset" else None)
    caller.loop.pass_time(AGES_S)
    over(caller)
    told = replies(caller)
    answered = sum(exchange.ended and exchange.departed is None for exchange in listener.exchanges)
    assert len(told) <= answered + len(listener.census.refused)
    assert len(listener.census.refused) <= 1
    assert all(not reply.closes for reply in told[:-1]), "nothing follows on an answer that was the last one"


@pytest.mark.parametrize("data", CORPUS)
@pytest.mark.parametrize("behind", [b"", GET])
def test_a_strict_reader_sees_what_we_see(data: bytes, behind: bytes) -> None:
    """Byte by byte and at once: the calls of each of these are those that may be seen, and no other."""
    for parts in ([data + behind], one_by_one(data + behind)):
        recording = Recording(echoing)
        caller = caller_of(recording).send(*parts)
        strict = calls_in(data + behind)
        assert len(caller.listener.exchanges) <= len(strict)
        for exchange, seen in zip(caller.listener.exchanges, strict, strict=False):
            agree(exchange, recording.bodies.get(exchange), seen)
        caller.leave()
        over(caller)


# Nothing goes on for ever.

POST = b"POST / HTTP/1.1\r\nhost: g\r\n"
ENDLESS = {
    "empty lines": (b"", b"\r\n"),
    "line ends": (b"", b"\n"),
    "a target": (b"GET /", b"y"),
    "a query": (b"GET /?", b"y"),
    "spaces": (b"GET ", b" "),
    "a header's name": (b"GET / HTTP/1.1\r\n", b"y"),
    "spaces before a value": (b"GET / HTTP/1.1\r\nx:", b" "),
    "a header's value": (b"GET / HTTP/1.1\r\nx: ", b"y"),
    "headers": (b"GET / HTTP/1.1\r\n", b"x: y\r\n"),
    "long headers": (b"GET / HTTP/1.1\r\n", b"x: " + b"y" * 1000 + b"\r\n"),
    "a chunk's size": (POST + b"transfer-encoding: chunked\r\n\r\n", b"0"),
    "a chunk's extension": (POST + b"transfer-encoding: chunked\r\n\r\n5;", b"y"),
    "an extension's value": (POST + b"transfer-encoding: chunked\r\n\r\n5;a=", b"y"),
    "a trailer's name": (POST + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"y"),
    "a trailer's value": (POST + b"transfer-encoding: chunked\r\n\r\n0\r\nx: ", b"y"),
    "trailers": (POST + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n"),
    "a trailer behind an upgrade": (POST + UPGRADE + b"transfer-encoding: chunked\r\n\r\n0\r\nx: ", b"y"),
    "a body": (POST + b"content-length: 100000000000\r\n\r\n", b"y"),
    "chunks": (POST + b"transfer-encoding: chunked\r\n\r\n", b"1\r\ny\r\n"),
    "calls": (b"", GET),
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("size", [100, 60_000])
@pytest.mark.parametrize("before", [b"", GET])
def test_nothing_is_read_for_ever(name: str, size: int, before: bytes) -> None:
    """In drops or in floods, first or behind a call that is under way: reading ends before it takes memory."""
    app = Held()
    caller = caller_of(app).send(before + ENDLESS[name][0])
    more = ENDLESS[name][1] * max(1, size // len(ENDLESS[name][1]))
    received = 0
    tracemalloc.start()
    while caller.connection._reads() and not caller.wire.paused:
        caller.send(more, turning=False)
        received += len(more)
        assert received <= 7 * (MAX_HEAD_BYTES + len(more))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 5 * MAX_HEAD_BYTES + 8 * len(more)
    caller.loop.turn()
    while app.waiting:
        app.release(caller)
    caller.loop.pass_time(AGES_S)
    over(caller)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(b"GET /" + b"y" * (MAX_TARGET_BYTES - 1) + b" HTTP/1.1\r\nhost: g\r\n\r\n", 200, id="target"),
        pytest.param(b"GET /" + b"y" * MAX_TARGET_BYTES + b" HTTP/1.1\r\nhost: g\r\n\r\n", 414, id="target, one more"),
        pytest.param(GET[:-2] + b"x: y\r\n" * (MAX_HEADERS - 1) + b"\r\n", 200, id="headers"),
        pytest.param(GET[:-2] + b"x: y\r\n" * MAX_HEADERS + b"\r\n", 431, id="headers, one more"),
        pytest.param(GET[:-2] + b"x: " + b"y" * (MAX_HEAD_BYTES - 6) + b"\r\n\r\n", 200, id="bytes"),
        pytest.param(GET[:-2] + b"x: " + b"y" * (MAX_HEAD_BYTES - 5) + b"\r\n\r\n", 431, id="bytes, one more"),
        pytest.param(post(b"hi", lines=UPGRADE + b"x: y\r\n" * (MAX_HEADERS - 4)), 200, id="headers of an upgrade"),
        pytest.param(post(b"hi", lines=UPGRADE + b"x: " + b"y" * (MAX_HEAD_BYTES - 48) + b"\r\n"), 200, id="its bytes"),
        pytest.param(post(b"hi", lines=UPGRADE + b"x: " + b"y" * (MAX_HEAD_BYTES - 47) + b"\r\n"), 431, id="one more"),
        pytest.param(post(b"hi", lines=UPGRADE + b"x: y\r\n" * (MAX_HEADERS - 3)), 431, id="of an upgrade, one more"),
    ],
)
def test_how_much_a_head_may_hold(head: bytes, status: int) -> None:
    """To the byte and to the header; the head after it may hold as much."""
    caller = caller_of().send(head)
    assert replies(caller)[0].status == status
    if status == 200:
        caller.send(head)
        assert [reply.status for reply in replies(caller)] == [200, 200]
    else:
        assert [reply.closes for reply in replies(caller)] == [True]
        assert caller.listener.deadlines == "1 lingering"


@pytest.mark.parametrize("target", [b"evil:80", b"/", b"http://evil/", b"*"])
def test_nobody_is_connected_to_anybody(target: bytes) -> None:
    """This is no proxy; what follows is nobody's call either."""
    caller = caller_of().send(b"CONNECT " + target + b" HTTP/1.1\r\nhost: g\r\n\r\n" + GET)
    assert [reply[:2] for reply in replies(caller)] == [(400, True)]
    assert caller.listener.exchanges == []


# What comes ahead.


def test_calls_that_come_ahead_wait_for_their_turn() -> None:
    """One is answered at a time; how many may wait is bounded, and one more loses the connection."""
    app = Held()
    caller = caller_of(app).send(GET * (1 + MAX_PIPELINED))
    assert len(app.waiting) == 1
    for number in range(1 + MAX_PIPELINED):
        assert len(replies(caller)) == number
        app.release(caller)
    assert len(replies(caller)) == 1 + MAX_PIPELINED
    greedy = Held()
    caller = caller_of(greedy).send(GET * (2 + MAX_PIPELINED))
    assert caller.wire.cut
    caller.loop.turn()
    assert [type(error) for error in greedy.left] == [CallerLeft]
    greedy.release(caller)
    over(caller)
    assert caller.wire.sent == b""


@pytest.mark.parametrize("size", [UNASKED_BYTES, UNASKED_BYTES + 1])
def test_a_body_that_comes_ahead_is_bounded(size: int) -> None:
    """Nobody can hold back what is behind a call that is under way, so one that sends too much is cut off."""
    app = Held()
    caller = caller_of(app).send(GET, post(bytes(size)))
    assert caller.wire.cut is (size > UNASKED_BYTES)
    while app.waiting:
        app.release(caller)
    assert len(replies(caller)) == (2 if size <= UNASKED_BYTES else 0)


def test_what_waits_costs_little_however_it_is_cut() -> None:
    """Bodies in chunks of two bytes, as many as may wait."""
    app = Held()
    caller = caller_of(app).send(GET)
    data = chunked(*[b"xy"] * (UNASKED_BYTES // 2))
    tracemalloc.start()
    for _ in range(MAX_PIPELINED):
        caller.send(*pieces(data, [30_000, 60_000, 90_000]))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not caller.wire.cut
    assert held < 2 * MAX_PIPELINED * UNASKED_BYTES


@pytest.mark.parametrize("app", [echoing, refusing])
def test_a_long_body_in_one_read_leaves_the_connection_reading(app: App) -> None:
    """It was held back before anybody could ask for it: the call after it is read all the same."""
    caller = caller_of(app).send(post(bytes(UNASKED_BYTES + 1)))
    assert not caller.wire.paused
    caller.send(GET)
    assert len(replies(caller)) == 2


def test_a_caller_who_sends_a_long_body_is_seen_to_leave() -> None:
    """While his call is under way; a connection that is not read from would not notice."""
    body, left = b"", list[GatewayError]()

    async def slow(exchange: Exchange) -> None:
        nonlocal body
        body = await exchange.body(BODY_LIMIT_BYTES, BODY_TIMEOUT_S)
        exchange.when_departed(left.append)
        await asyncio.Event().wait()

    caller = caller_of(slow).send(post(bytes(UNASKED_BYTES + 1)))
    assert len(body) == UNASKED_BYTES + 1
    assert not caller.wire.paused


def test_a_body_that_nobody_asked_for_is_held_back_and_then_read() -> None:
    """The sender waits; when it is asked for, all of it comes."""
    app, bodies = asyncio.Event(), list[bytes]()

    async def late(exchange: Exchange) -> None:
        await app.wait()
        bodies.append(await exchange.body(BODY_LIMIT_BYTES, BODY_TIMEOUT_S))
        exchange.whole(200, b"", b"")

    caller, sent = caller_of(late), bytes(3 * UNASKED_BYTES)
    caller.send(post(sent, sent=2 * UNASKED_BYTES))
    assert caller.wire.paused
    app.set()
    caller.loop.turn()
    assert not caller.wire.paused
    caller.send(bytes(UNASKED_BYTES))
    assert bodies == [sent]
    assert replies(caller)[0].status == 200


# The end of a connection.


@pytest.mark.parametrize(
    "garbage", [b"\x00\x00\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nhost: g\r\nexpect: x\r\n\r\n"]
)
def test_what_is_no_call_is_answered_after_the_calls_before_it(garbage: bytes) -> None:
    """Once, and then the connection ends; a call under way is not disturbed."""
    app = Held()
    caller = caller_of(app).send(GET + GET + garbage + GET)
    assert caller.wire.sent == b""
    app.release(caller)
    app.release(caller)
    assert app.waiting == []
    # An answer that has not begun can say itself that nothing follows.
    assert [(reply.status, reply.closes) for reply in replies(caller)] == [(200, False), (200, True)]
    assert caller.wire.ended
    late = caller_of(held := Held()).send(GET)
    held.begin(late, b"x")
    late.send(garbage)
    held.end(late, b"y")
    assert [(reply.status, reply.closes) for reply in replies(late)] == [
        (200, False),
        (417 if b"expect" in garbage else 400, True),
    ]
    assert len(late.listener.census.refused) == 1


@pytest.mark.parametrize("garbage", [b"zz\r\n", b"2\r\nxyz", b"0\r\nx : y\r\n\r\n"])
def test_a_call_ahead_whose_body_cannot_be_read_never_begins(garbage: bytes) -> None:
    """The one before it does, and is answered; then the connection ends."""
    app = Held()
    caller = caller_of(app).send(GET, chunked(b"hello", end=garbage))
    app.begin(caller, b"x")
    caller.send(GET)
    app.end(caller, b"y")
    assert app.waiting == []
    assert replies(caller)[0].body == b"xy"
    assert caller.wire.ended
    assert caller.listener.deadlines == "1 lingering"


@pytest.mark.parametrize("head", [CLOSING, OLD, CLOSING[:-2] + UPGRADE + b"\r\n"])
def test_nothing_is_read_behind_a_call_that_is_the_last_one(head: bytes) -> None:
    """Its caller said so himself: what follows is neither a call nor a fault of it."""
    app = Held()
    caller = caller_of(app).send(head + GET + GET, GET)
    app.release(caller)
    assert app.waiting == []
    assert [(reply.status, reply.closes) for reply in replies(caller)] == [(200, True)]
    caller.loop.turn()
    assert caller.wire.closing


def test_the_rest_of_a_body_that_was_answered_is_dropped_for_a_while() -> None:
    """A connection that was closed with unread bytes would be reset, and the answer lost with it."""
    caller = caller_of(refusing).send(post(bytes(100), sent=10))
    assert replies(caller) == [Reply(401, True, b"no")]
    assert caller.wire.ended
    assert not caller.wire.closing
    assert caller.listener.deadlines == "1 lingering"
    caller.send(bytes(90), GET)
    assert len(replies(caller)) == 1
    caller.loop.pass_time(LINGER_S - 0.1)
    assert not caller.wire.closing
    caller.loop.pass_time(0.2)
    assert caller.wire.cut
    over(caller)


@pytest.mark.parametrize("half", [True, False])
def test_a_caller_who_has_read_his_answer_and_closes_ends_it_at_once(half: bool) -> None:
    """Whether he closes one side or both: what he sends is not waited for any longer."""
    caller = caller_of(refusing).send(post(bytes(100), sent=10))
    if half:
        assert not caller.half_close()
    else:
        caller.leave()
    over(caller)
    assert not caller.wire.cut


def test_a_body_without_end_is_not_dropped_for_ever() -> None:
    """Up to a bound; then the connection is reset."""
    caller = caller_of(refusing).send(post(bytes(100), sent=10))
    caller.connection._dropped_bytes = LINGER_BYTES - 2000
    caller.send(bytes(2000))
    assert not caller.wire.cut
    caller.send(b"x")
    assert caller.wire.cut
    assert caller.wire.socket.lingers == [RESET]
    over(caller)


def test_an_answer_that_is_never_given_ends_the_connection() -> None:
    """Whoever worked on it is gone, so nobody should wait for it; least of all by thinking that it is complete."""
    caller = caller_of(giving_up).send(GET)
    assert caller.wire.sent == b""
    assert caller.wire.cut
    over(caller)

    async def breaking_off(exchange: Exchange) -> None:
        exchange.begin(200, b"")
        exchange.write(b"hello")

    caller = caller_of(breaking_off).send(GET)
    assert not caller.wire.sent.endswith(b"0\r\n\r\n")
    assert caller.wire.cut


# Time.


@pytest.mark.parametrize("before", [b"", GET])
@pytest.mark.parametrize("begun", [b"GET /", b"GET / HTTP/1.1\r\nho", b"GET / HTTP/1.1\r\nhost: g\r\nx: "])
def test_a_head_has_its_time(before: bytes, begun: bytes) -> None:
    """From its beginning to its end: a byte now and then renews nothing."""
    caller = caller_of().send(*[before] if before else [], begun)
    for _ in range(9):
        caller.loop.pass_time(LIMITS.head_timeout_s / 10)
        caller.send(b"e")
    assert len(replies(caller)) == bool(before)
    caller.loop.pass_time(LIMITS.head_timeout_s / 10)
    assert replies(caller)[-1][:2] == (408, True)
    caller.loop.pass_time(LINGER_S)
    over(caller)


@pytest.mark.parametrize("sent", [[], [b"\r\n"], [b"\r\n", b"\n"]])
def test_who_says_nothing_is_left_without_a_word(sent: list[bytes]) -> None:
    """After the time of a head, counted from the connection's beginning."""
    caller = caller_of().send(*sent)
    caller.loop.pass_time(LIMITS.head_timeout_s)
    assert caller.wire.sent == b""
    assert not caller.wire.cut
    over(caller)


def test_an_idle_connection_is_kept_for_its_time() -> None:
    """Counted from the last answer; the time of a head begins with the next byte."""
    caller = caller_of().send(GET)
    caller.loop.pass_time(LIMITS.keep_alive_s - 1)
    assert caller.listener.deadlines == "1 idle"
    caller.send(GET)
    caller.loop.pass_time(LIMITS.keep_alive_s - 1)
    caller.send(GET[:5])
    assert caller.listener.deadlines == "1 heads"
    caller.loop.pass_time(5)
    caller.send(GET[5:])
    assert caller.listener.deadlines == "1 idle"
    caller.loop.pass_time(LIMITS.keep_alive_s)
    assert len(replies(caller)) == 3
    over(caller)


def test_a_call_under_way_has_no_deadline_of_its_connection() -> None:
    """How long a call may take is not decided here; nor has a head that comes ahead a time before its turn."""
    app = Held()
    caller = caller_of(app).send(GET, GET[:5])
    assert caller.listener.deadlines == ""
    caller.loop.pass_time(1000)
    assert not caller.wire.closing
    app.release(caller)
    assert caller.listener.deadlines == "1 heads"
    caller.loop.pass_time(LIMITS.head_timeout_s)
    assert [reply.status for reply in replies(caller)] == [200, 408]


# Slow readers.


def filling(size: int) -> App:
    """Answers `/big` with one document of that size, everything else with a stream that looks for room."""

    async def app(exchange: Exchange) -> None:
        if exchange.head.path == "/big":
            exchange.whole(200, b"", bytes(size))
            return
        exchange.begin(200, b"")
        exchange.write(b"first")
        await exchange.room()
        exchange.end(b"last")

    return app


BIG = b"GET /big HTTP/1.1\r\nhost: g\r\n\r\n"


def test_a_caller_who_reads_nothing_is_cut_off() -> None:
    """After his time, which begins anew each time that he makes room; his call learns why he is gone."""
    app = Held()
    caller = caller_of(app).send(GET)
    caller.wire.reads = False
    app.begin(caller, bytes(100_000))
    assert app.exchange.full
    caller.loop.pass_time(LIMITS.slow_reader_s - 1)
    caller.wire.take()
    assert not app.exchange.full
    caller.loop.pass_time(LIMITS.slow_reader_s)
    app.write(caller, bytes(100_000))
    caller.loop.pass_time(LIMITS.slow_reader_s)
    assert caller.wire.cut
    assert [type(error) for error in app.left] == [SlowReader]
    assert caller.wire.socket.lingers == [RESET]
    app.release(caller)
    over(caller)


def unread(app: App, sent: bytes) -> Caller:
    """A caller who asks, and reads nothing until he is told to."""
    caller = caller_of(app)
    caller.wire.reads = False
    return caller.send(sent)


def test_who_asks_again_first_reads_what_he_asked_for() -> None:
    """Until then the next call is not begun, and no other is read: else all his answers would have to be kept."""
    caller = unread(filling(200_000), BIG + GET + GET)
    assert len(caller.listener.exchanges) == 1
    assert caller.listener.exchanges[0].ended
    assert caller.wire.paused
    caller.wire.take(100_000)
    caller.loop.turn()
    assert len(caller.listener.exchanges) == 1
    caller.wire.take()
    caller.loop.turn()
    assert len(caller.listener.exchanges) == 3
    assert not caller.wire.paused
    assert [len(reply.body) for reply in replies(caller)] == [200_000, 9, 9]
    caller.leave()
    over(caller)


def test_an_answer_that_waits_is_followed_by_an_idle_connection() -> None:
    """Once it is read; how long a connection may be idle is counted from then."""
    caller = unread(filling(200_000), BIG)
    assert caller.listener.deadlines == "1 stalls"
    caller.wire.take()
    caller.loop.turn()
    assert caller.listener.deadlines == "1 idle"
    assert not caller.wire.paused


def test_who_leaves_an_answer_that_waits_has_had_it() -> None:
    """His call was over, as far as it is concerned; what was sent ahead never begins."""
    caller = unread(filling(200_000), BIG + GET)
    caller.leave()
    assert [exchange.departed for exchange in caller.listener.exchanges] == [None]
    over(caller)


def test_who_closes_his_side_before_an_answer_that_waits_can_read_it() -> None:
    """And then the connection is over."""
    caller = unread(filling(200_000), BIG)
    assert caller.half_close()
    caller.loop.pass_time(1)
    assert not caller.wire.closing
    caller.wire.take()
    caller.loop.turn()
    over(caller)
    assert [len(reply.body) for reply in replies(caller)] == [200_000]


def test_a_body_behind_an_answer_that_waits_is_not_cut_short() -> None:
    """A caller who takes up one answer while he sends the next call."""
    bodies = []

    async def app(exchange: Exchange) -> None:
        if exchange.head.path != "/big":
            bodies.append(await exchange.body(BODY_LIMIT_BYTES, BODY_TIMEOUT_S))
        exchange.whole(200, b"", bytes(200_000))

    caller = unread(app, BIG + post(b"hello", sent=3))
    caller.wire.take()
    caller.loop.turn()
    assert bodies == []
    caller.send(b"lo")
    assert bodies == [b"hello"]


@pytest.mark.parametrize(("taken", "kept"), [(FAIR_BYTES, True), (FAIR_BYTES - 1, False), (0, False)])
def test_a_slow_reader_of_a_long_document_has_his_time_for_each_fair_part(taken: int, kept: bool) -> None:
    """It is there already, and costs an engine nothing; but memory, so that not every trickle will do."""
    caller = unread(filling(10**6), BIG)
    for _ in range(5 if kept else 1):
        caller.loop.pass_time(LIMITS.slow_reader_s / 2)
        caller.wire.take(taken)
        caller.loop.pass_time(LIMITS.slow_reader_s / 2)
    assert caller.wire.cut is not kept
    caller.loop.pass_time(AGES_S)
    over(caller)


@pytest.mark.parametrize("left", [0, 1, 100])
def test_a_closing_connection_does_not_wait_for_ever_for_its_reader(left: int) -> None:
    """Also where he reads all but the last bytes, which a transport takes for room."""
    caller = unread(filling(200_000), BIG[:-2] + b"connection: close\r\n\r\n")
    assert not caller.wire.lost
    caller.loop.pass_time(1)
    caller.wire.take(len(caller.wire.sent) - left)
    caller.loop.turn()
    assert caller.wire.lost is (left == 0)
    caller.loop.pass_time(LIMITS.slow_reader_s)
    over(caller)


def test_a_lingering_connection_does_not_wait_for_ever_for_its_reader() -> None:
    """Nor for who goes on sending."""
    caller = caller_of(refusing)
    caller.wire.reads = False
    caller.send(post(bytes(100), sent=10))
    caller.loop.pass_time(LINGER_S)
    assert caller.wire.cut
    over(caller)


# Leaving, and closing one side.


def test_a_caller_who_leaves_is_noticed_by_his_call() -> None:
    """And the calls that he sent ahead never begin."""
    app = Held()
    caller = caller_of(app).send(GET + GET + GET)
    caller.leave()
    assert [type(error) for error in app.left] == [CallerLeft]
    app.release(caller)
    assert app.waiting == []
    over(caller)


@pytest.mark.parametrize(
    ("sent", "told", "served"),
    [
        pytest.param(b"", b"", 0, id="nothing"),
        pytest.param(GET[:9], b"", 0, id="half a head"),
        pytest.param(post(b"hello", sent=2), b"", 0, id="half a body"),
        pytest.param(GET + post(b"hello", sent=2), b"", 0, id="half a body behind a call"),
        pytest.param(GET, INTERIM, 1, id="a call"),
        pytest.param(post(b"hello"), INTERIM, 1, id="a call with a body"),
        pytest.param(GET + post(b"hello"), INTERIM, 2, id="calls ahead"),
        pytest.param(OLD, b"", 1, id="an old caller, who knows no interim answers"),
    ],
)
def test_who_closes_his_side_after_his_call_is_served(sent: bytes, told: bytes, served: int) -> None:
    """Everybody else has left, as far as anybody can tell."""
    app = Held()
    caller = caller_of(app)
    if sent:
        caller.send(sent)
    assert caller.half_close() is (served > 0)
    assert caller.wire.sent == told
    while app.waiting:
        app.release(caller)
    if served:
        assert replies(caller) == [Reply(200, number == served - 1, b"done") for number in range(served)]
    caller.loop.turn()
    over(caller)


def test_who_closes_his_side_in_a_stream_gets_the_rest_and_an_end() -> None:
    """A comment is all that he notices; his connection is of no use after that."""
    app = Held()
    caller = caller_of(app).send(GET)
    app.begin(caller, b"data: 1\n\n")
    assert caller.half_close()
    app.end(caller, b"data: 2\n\n")
    assert replies(caller) == [Reply(200, False, b"data: 1\n\n" + COMMENT + b"data: 2\n\n")]
    caller.loop.turn()
    over(caller)


def test_garbage_before_he_closed_his_side_is_answered_and_not_lingered_over() -> None:
    """There is nothing left to be dropped."""
    app = Held()
    caller = caller_of(app).send(GET)
    app.begin(caller, b"x")
    caller.send(b"\x00\r\n\r\n")
    assert caller.half_close()
    app.end(caller, b"y")
    assert [reply.status for reply in replies(caller)] == [200, 400]
    caller.loop.turn()
    over(caller)


def test_who_closes_his_side_is_looked_after() -> None:
    """Only a write can tell that he left altogether: the reset that comes back is looked for, ever more rarely."""
    app = Held()
    caller = caller_of(app).send(GET)
    caller.half_close()
    caller.loop.pass_time(60)
    assert len(caller.loop.timers) == 1
    assert not caller.wire.closing
    caller.wire.socket.error = 104
    caller.loop.pass_time(1)
    assert caller.wire.lost
    assert [type(error) for error in app.left] == [CallerLeft]
    app.release(caller)
    over(caller)


# The listener closes.


def close(listener: Listener) -> None:
    with listener.loop.running():
        listener.callers.close()
    listener.loop.turn()


def test_a_listener_that_closes_lets_go_who_has_no_call() -> None:
    """At once who has had one; a moment later who has only just come."""
    listener = Listener(surface(echoing))
    silent, headless, idle = [listener.accept() for _ in range(3)]
    headless.send(GET[:5])
    idle.send(GET)
    close(listener)
    assert [caller.wire.lost for caller in (silent, headless, idle)] == [False, False, True]
    listener.loop.pass_time(FIRST_CALL_S)
    assert silent.wire.lost
    assert silent.wire.sent == b""
    assert [reply.status for reply in replies(headless)][-1:] == [408]
    listener.loop.pass_time(LINGER_S)
    for caller in (silent, headless, idle):
        over(caller)


def test_a_listener_that_closes_lets_calls_end() -> None:
    """Those that were sent ahead as well; the last answer on each connection says that it is."""
    app = Held()
    caller = caller_of(app).send(GET + GET)
    close(caller.listener)
    caller.loop.pass_time(1)
    app.release(caller)
    app.release(caller)
    assert [reply.closes for reply in replies(caller)] == [False, True]
    caller.loop.turn()
    over(caller)
    assert not caller.wire.cut


def test_a_stream_that_had_begun_when_the_listener_closed_is_the_last_one() -> None:
    """Its head could not say so; it is over with its end nevertheless."""
    app = Held()
    caller = caller_of(app).send(GET)
    app.begin(caller, b"1")
    close(caller.listener)
    caller.loop.pass_time(1)
    app.end(caller, b"2")
    assert replies(caller) == [Reply(200, False, b"12")]
    caller.loop.turn()
    over(caller)
    assert not caller.wire.cut


def test_a_call_that_was_on_its_way_when_the_listener_closed_is_answered() -> None:
    """And is the last one."""
    caller = caller_of()
    close(caller.listener)
    caller.send(GET)
    assert replies(caller) == [Reply(200, True, b"")]
    caller.loop.pass_time(1)
    over(caller)


def test_connections_beyond_the_limit_are_surplus() -> None:
    """By how many there were when they came; those that were there before go on."""
    listener = Listener(echoing, replace(LIMITS, connections=2))
    one, two, three = [listener.accept() for _ in range(3)]
    assert [caller.connection.surplus for caller in (one, two, three)] == [False, False, True]
    one.leave()
    assert listener.accept().connection.surplus
    two.leave()
    three.leave()
    assert not listener.accept().connection.surplus


def test_connections_print_their_story() -> None:
    """What they carry."""
    app = Held()
    caller = caller_of(app)
    assert repr(caller.connection) == "<CallerConnection idle>"
    caller.send(GET)
    assert repr(caller.connection) == "<CallerConnection <Exchange GET / open>>"
    app.release(caller)
    caller.leave()
    assert repr(caller.connection) == "<CallerConnection closed>"
