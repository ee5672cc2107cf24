"""Attacks over a raw socket: calls that two servers would read in two ways, and callers who break off anywhere.

The oracle is the engine behind the gateway. Behind every call that is in doubt stands a second one that is whole: a
server that reads the first one wrongly lets the second one through, or answers what nobody asked.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import pytest

from gateway.edge.exchange import UNASKED_BYTES
from tests import vllm_wire as wire
from tests.engines import ScriptedEngine, ScriptedEngines, scripted
from tests.harness import CHAT, KEY, Harness, bearer, begun, gateway, hello
from tests.wire_client import WireClient, WireReply, message

pytestmark = pytest.mark.anyio

BODY = json.dumps(hello("outer")).encode()
SIZE = len(BODY)
SMUGGLED = message("POST", CHAT, json=hello("smuggled"), headers=bearer())
FIRST_LINE = f"POST {CHAT} HTTP/1.1".encode()
LENGTH = b"content-length: %d" % SIZE
CHUNKED = b"transfer-encoding: chunked"
MIB = 2**20


@pytest.fixture(
    params=[pytest.param(("asyncio", {"use_uvloop": use}), id="uvloop" if use else "asyncio") for use in (False, True)]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The gateway runs on uvloop, and must not depend on it."""
    return request.param


@pytest.fixture
async def engines() -> AsyncIterator[ScriptedEngines]:
    async with scripted("a") as engines:
        yield engines


@pytest.fixture
async def harness(engines: ScriptedEngines) -> AsyncIterator[Harness]:
    async with gateway({"a": engines["a"].url}, server={"body_timeout_s": 0.1}) as harness:
        yield harness


def head(*lines: bytes, first: bytes = FIRST_LINE, end: bytes = b"\r\n") -> bytes:
    """A head with a good key and these lines."""
    usual = [b"host: x", b"content-type: application/json", b"authorization: Bearer " + KEY.encode()]
    return end.join([first, *usual, *lines, b"", b""])


def chunks(*parts: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + last


def said(engine: ScriptedEngine) -> list[str]:
    """What callers had to say, as far as the engine heard of it."""
    return [call.body["messages"][0]["content"] for call in engine.calls]


def is_told(reply: WireReply) -> bool:
    """An error with an OpenAI body, after which the connection ends."""
    keys = set(reply.json.get("error", ())) if reply.complete else set()
    return keys == {"message", "type", "param", "code"} and reply.header("connection") == "close"


async def refused(harness: Harness, engine: ScriptedEngine, raw: bytes) -> str:
    """Sends what must be answered with one error and the end of the connection; what went otherwise."""
    async with WireClient(harness.url) as client:
        await client.send_raw(raw)
        try:
            reply = await client.reply()
            behind = await client.read_to_end()
        except (TimeoutError, ConnectionError) as error:
            return repr(error)
    if not (400 <= reply.status < 500 and is_told(reply)):
        return f"answered {reply}"
    return f"went on with {behind[:40]!r}" if behind else f"let through {said(engine)}" if engine.calls else ""


# What two servers could read in two ways.

TOKENS = (
    b"xchunked",
    b"chunked,",
    b",chunked",
    b"chunked, chunked",
    b"identity",
    b"identity, chunked",
    b"gzip, chunked",
)
ODD = (
    b"chunked, identity",
    b'"chunked"',
    b"chunked;q=1",
    b"\x0bchunked",
    b"chunked\x0c",
    b"chunk\x00ed",
    b"chunked\x00",
    b"",
)
FOLDED = (
    b"chun\r\n ked",
    b"\r\n chunked",
    b"x\r\n chunked",
    b"chunked\r\n\t",
    b"x\nchunked",
    b"x\rchunked",
    b"x\r\r\n chunked",
)
NAMES = (
    b"transfer-encoding ",
    b"transfer-encoding\t",
    b"transfer encoding",
    b"transfer\tencoding",
    b" transfer-encoding",
    b"\ttransfer-encoding",
    b"transfer-encoding\x00",
    b"\x00transfer-encoding",
    b"transfer-encoding\r",
    b"x\ntransfer-encoding",
    b"x: y\ntransfer-encoding",
    b"x: y\rtransfer-encoding",
    b"x: y\r\r\ntransfer-encoding",
    b"\xa0transfer-encoding",
    b"transfer-encoding\xa0",
    b"transf\xe9r-encoding",
    b"(transfer-encoding",
    b"transfer-encoding:",
    b":transfer-encoding",
)
LENGTHS = (
    b"%d, %d" % (SIZE, SIZE),
    b"%d,5" % SIZE,
    b"5, %d" % SIZE,
    b"+%d" % SIZE,
    b"-%d" % SIZE,
    b"0x%x" % SIZE,
    b"%d.0" % SIZE,
    b"%de0" % SIZE,
    b"%d_0" % (SIZE // 10),
    b"%d 0" % (SIZE // 10),
    b"%d;x" % SIZE,
    b"%d\x00" % SIZE,
    b"%d\x0b" % SIZE,
    b"\x0b%d" % SIZE,
    b"5\r\n 0",
    b"\r\n %d" % SIZE,
    b"",
    b"NaN",
    "٦٩".encode(),
    b"9" * 40,
    b"%d" % 2**64,
    b"%d" % (2**64 + SIZE),
)
CHUNK_SIZES = (
    b"0x%x" % SIZE,
    b"+%x" % SIZE,
    b"-%x" % SIZE,
    b"%x " % SIZE,
    b" %x" % SIZE,
    b"\t%x" % SIZE,
    b"%x_" % SIZE,
    b"%x\x00" % SIZE,
    b"%x;" % SIZE,
    b"%x ; a" % SIZE,
    b"%x;\x00" % SIZE,
    b"%x;a\n" % SIZE,
    b"%x;a\rb" % SIZE,
    b'%x;a="b\r\nc"' % SIZE,
    b"%x\r" % SIZE,
    b"",
    b"g",
    b"1%016x" % SIZE,
    b"f" * 17,
)
HEADER_LINES = (
    b"x y: v",
    b"x\ty: v",
    b"x : v",
    b" x: v",
    b"x\x00: v",
    b"x\x80: v",
    b'x": v',
    b"x/: v",
    b"x{: v",
    b"x@: v",
    b"x;: v",
    b": v",
    b"no colon",
    b"x: a\r\n b",
    b"x: a\rb",
    b"x: a\nb",
    b"x: a\x00b",
    b"x: a\x01b",
    b"x: a\x7fb",
    b"x: a\ncontent-length: 5",
    b"x: a\rcontent-length: 5",
    b"content-length : 5",
)
FIRST_LINES = (
    b"",
    b" POST /v1/chat/completions HTTP/1.1",
    b"POST\t/v1/chat/completions\tHTTP/1.1",
    b"POST /v1/chat/completions HTTP/1.1 ",
    b"POST /v1/chat/completions HTTP/1.1 x",
    b"POST /v1/chat/completions HTTP/1.1\x00",
    b"POST /v1/chat/completions HTTP/1.2",
    b"POST /v1/chat/completions HTTP/1.10",
    b"POST /v1/chat/completions HTTP/01.1",
    b"POST /v1/chat/completions HTTP/1,1",
    b"POST /v1/chat/completions HTTP/2.0",
    b"POST /v1/chat/completions HTTP/0.9",
    b"POST /v1/chat/completions http/1.1",
    b"POST /v1/chat/completions HTTPS/1.1",
    b"POST /v1/chat/completions",
    b"POST",
    b"post /v1/chat/completions HTTP/1.1",
    b"GPOST /v1/chat/completions HTTP/1.1",
    b"PO ST /v1/chat/completions HTTP/1.1",
    b"POST\x00 /v1/chat/completions HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"CONNECT evil:80 HTTP/1.1",
    b"POST * HTTP/1.1",
    b"POST evil:80 HTTP/1.1",
    b"POST v1/chat/completions HTTP/1.1",
    b"POST ?/v1/chat/completions HTTP/1.1",
    b"POST @evil/v1/chat/completions HTTP/1.1",
    b"POST http:///v1/chat/completions HTTP/1.1",
    b"POST /v1/chat\x00/completions HTTP/1.1",
    b"POST /v1/chat\x7f/completions HTTP/1.1",
    b"POST /v1/chat\xff/completions HTTP/1.1",
)
SIZED = b"%x\r\n%b" % (SIZE, BODY)
FAMILIES: dict[str, list[bytes]] = {
    "a length and chunks": [head(LENGTH, CHUNKED) + chunks(BODY), head(CHUNKED, LENGTH) + chunks(BODY)],
    "a transfer encoding that is not quite `chunked`": [
        head(*before, b"transfer-encoding: " + value) + chunks(BODY)
        for before in ((), (LENGTH,))
        for value in (*TOKENS, *ODD, *FOLDED)
    ],
    "a name that is not quite Transfer-Encoding": [
        head(*before, name + b": chunked") + chunks(BODY) for before in ((), (LENGTH,)) for name in NAMES
    ],
    "a length that is not quite a number": [head(b"content-length: " + value) + BODY for value in LENGTHS],
    "two lengths": [head(LENGTH, other) + BODY for other in (LENGTH, b"content-length: 5", b"Content-length: 0")],
    "two transfer encodings": [head(CHUNKED, other) + chunks(BODY) for other in (CHUNKED, b"Transfer-encoding: x")],
    "a chunk size that is not quite a number": [
        head(CHUNKED) + size + b"\r\n" + BODY + b"\r\n0\r\n\r\n" for size in CHUNK_SIZES
    ],
    "other ends of lines in a chunked body": [
        head(CHUNKED) + b"%x\n%b\r\n0\r\n\r\n" % (SIZE, BODY),
        head(CHUNKED) + b"%x\r%b\r\n0\r\n\r\n" % (SIZE, BODY),
        head(CHUNKED) + SIZED + b"\n0\r\n\r\n",
        head(CHUNKED) + SIZED + b"\r0\r\n\r\n",
        head(CHUNKED) + SIZED + b"0\r\n\r\n",
        head(CHUNKED) + SIZED + b"xx0\r\n\r\n",
        head(CHUNKED) + SIZED + b"\r\n0\n\n",
        head(CHUNKED) + SIZED + b"\r\n0\r\n\n",
        head(CHUNKED) + SIZED + b"\r\n0\r\n",
        head(CHUNKED) + SIZED + b"\r\n0\r\nx: y\n\r\n",
        head(CHUNKED) + SIZED + b"\r\n0\r\nx y\r\n\r\n",
        head(CHUNKED) + SIZED + b"\r\n0\r\ncontent-length: 5\r\n\r\n",
        head(CHUNKED) + SIZED + b"\r\n0\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
    "another host, or other ends of lines in a head": [
        head(LENGTH, end=b"\n") + BODY,
        head(LENGTH, end=b"\r") + BODY,
        head(LENGTH, end=b"\r\r\n") + BODY,
        head(LENGTH).removesuffix(b"\r\n") + b"\n" + BODY,
        head(LENGTH).removesuffix(b"\r\n") + b"\r" + BODY,
        head(LENGTH, b"host: y") + BODY,
        head(LENGTH).replace(b"\r\n", b"\n", 1) + BODY,
        head(LENGTH).replace(b"\r\n", b"\r\n folded: x\r\n", 1) + BODY,
        b"\x00" + head(LENGTH) + BODY,
    ],
    "a header line that is none": [head(LENGTH, line) + BODY for line in HEADER_LINES],
    "a first line that is none": [head(LENGTH, first=line) + BODY for line in FIRST_LINES],
    "another protocol": [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"*1\r\n$4\r\nPING\r\n",
        b"EHLO x\r\n",
    ],
}


@pytest.mark.parametrize("family", FAMILIES)
async def test_what_could_be_read_in_two_ways_is_refused(
    harness: Harness, engines: ScriptedEngines, family: str
) -> None:
    """One 4xx, then the end: neither the call in doubt nor the one behind it reaches an engine."""
    wrong = {}
    for raw in FAMILIES[family]:
        if trouble := await refused(harness, engines["a"], raw + SMUGGLED):
            wrong[raw] = trouble
            engines["a"].calls.clear()
    assert not wrong


@pytest.mark.parametrize("line", [b"content-type: text/plain", b"authorization: Bearer other"])
async def test_what_is_said_twice_is_refused_and_the_call_behind_it_is_not(
    harness: Harness, engines: ScriptedEngines, line: bytes
) -> None:
    """Where such a call ends is beyond doubt: only who calls, and what, is not."""
    async with WireClient(harness.url) as client:
        await client.send_raw(head(LENGTH, line) + BODY + SMUGGLED)
        assert [(await client.reply()).status for _ in range(2)] == [400, 200]
    assert said(engines["a"]) == ["smuggled"]


async def test_a_chunk_beyond_all_measure_is_waited_for_no_longer_than_a_body(
    harness: Harness, engines: ScriptedEngines
) -> None:
    """16 EiB are promised; what follows is their beginning and no call."""
    assert not await refused(harness, engines["a"], head(CHUNKED) + b"ffffffffffffffff\r\n" + BODY + SMUGGLED)


ALIKE: dict[str, bytes] = {
    "a length": head(LENGTH) + BODY,
    "chunks": head(CHUNKED) + chunks(BODY),
    "chunks of one byte": head(CHUNKED) + chunks(*[BODY[i : i + 1] for i in range(SIZE)]),
    "space around a length": head(b"content-length: \t%d \t" % SIZE) + BODY,
    "space around an encoding": head(b"Transfer-Encoding:\tChunked ") + chunks(BODY),
    "zeros before a length": head(b"content-length: 000%d" % SIZE) + BODY,
    "zeros before a chunk's size": head(CHUNKED) + b"0" * 20 + SIZED + b"\r\n000\r\n\r\n",
    "a chunk's size in capitals": head(CHUNKED) + b"%X\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY),
    "an extension of a chunk": head(CHUNKED) + b'%x;a=b;c="d"\r\n%b\r\n0;e\r\n\r\n' % (SIZE, BODY),
    "a trailer": head(CHUNKED) + chunks(BODY, last=b"0\r\nx: y\r\nauthorization: Bearer x\r\n\r\n"),
    "empty lines before and between": b"\r\n\r\n" + head(LENGTH) + BODY + b"\r\n",
    "a value that is not ASCII": head(LENGTH, b"x: \xe9\xff") + BODY,
    "a path with a query": head(LENGTH, first=f"POST {CHAT}?a=b/../c HTTP/1.1".encode()) + BODY,
    "another authority": head(LENGTH, first=f"POST http://evil:1{CHAT} HTTP/1.1".encode()) + BODY,
    "another authority with a user": head(LENGTH, first=f"POST https://u:p@evil{CHAT} HTTP/1.1".encode()) + BODY,
    "another method in a header": head(LENGTH, b"x-http-method-override: GET", b"x-method-override: PUT") + BODY,
    "a connection that lists what matters": head(LENGTH, b"connection: authorization, content-length, host") + BODY,
    "an upgrade": head(LENGTH, b"connection: upgrade", b"upgrade: h2c") + BODY,
    "an upgrade in chunks": head(CHUNKED, b"connection: upgrade", b"upgrade: websocket") + chunks(BODY),
    "an expectation that is not waited for": head(LENGTH, b"expect: 100-continue") + BODY,
    "proxies on the way": head(LENGTH, b"forwarded: for=x", b"x-forwarded-host: evil", b"x-original-url: /metrics")
    + BODY,
}


@pytest.mark.parametrize("name", ALIKE)
async def test_what_everybody_reads_alike_is_read_alike(harness: Harness, engines: ScriptedEngines, name: str) -> None:
    """The call, then the call behind it: each once, each whole, and the connection goes on."""
    async with WireClient(harness.url) as client:
        await client.send_raw(ALIKE[name] + SMUGGLED)
        replies = [await client.reply() for _ in range(2)]
        assert [(reply.status, reply.complete) for reply in replies] == [(200, True)] * 2
        assert (await client.get("/livez")).json == {"status": "alive"}
    assert said(engines["a"]) == ["outer", "smuggled"]
    paths = {call.path for call in engines["a"].calls}
    assert paths == {CHAT}
    names = {header.lower() for call in engines["a"].calls for header, _ in call.headers}
    assert names == {b"host", b"content-type", b"accept-encoding", b"content-length", b"x-request-id", b"traceparent"}


LAST: dict[str, bytes] = {
    "an old caller": head(LENGTH, first=f"POST {CHAT} HTTP/1.0".encode()) + BODY,
    "an old caller who would go on": head(LENGTH, b"connection: keep-alive", first=f"POST {CHAT} HTTP/1.0".encode())
    + BODY,
    "a caller who will not": head(LENGTH, b"connection: close") + BODY,
    "a caller who will and will not": head(LENGTH, b"connection: close, keep-alive") + BODY,
    "an upgrade that ends": head(LENGTH, b"connection: upgrade, close", b"upgrade: h2c") + BODY,
}


@pytest.mark.parametrize("name", LAST)
async def test_nothing_is_read_behind_a_last_call(harness: Harness, engines: ScriptedEngines, name: str) -> None:
    """Who said that nothing would follow is taken at his word."""
    async with WireClient(harness.url) as client:
        await client.send_raw(LAST[name] + SMUGGLED)
        reply = await client.reply()
        assert (reply.status, reply.header("connection")) == (200, "close")
        assert await client.read_to_end() == b""
    assert said(engines["a"]) == ["outer"]


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_body_that_nobody_wants_is_no_call(
    harness: Harness, engines: ScriptedEngines, framing: Literal["length", "chunks"]
) -> None:
    """GET with a body: its answer comes, and what is in the body is not read as the next call."""
    lines = [CHUNKED] if framing == "chunks" else [b"content-length: %d" % len(SMUGGLED)]
    body = chunks(SMUGGLED) if framing == "chunks" else SMUGGLED
    for first in (b"GET /livez HTTP/1.1", b"DELETE /v1/models HTTP/1.1", b"HEAD /v1/models HTTP/1.1"):
        for together in (True, False):
            async with WireClient(harness.url) as client:
                parts = [head(*lines, first=first) + body] if together else [head(*lines, first=first), body]
                for part in parts:
                    await client.send_raw(part)
                told = await client.head()
                behind = await client.read_to_end() if told.header("connection") == "close" else b""
                assert behind.count(b"HTTP/1.1") == 0
    assert engines["a"].calls == []


# What follows an error.

OTHER = head(b"content-length: 5").replace(KEY.encode(), b"pg-wrong")
ERRORS: dict[str, tuple[bytes, int]] = {
    "no key": (message("POST", CHAT, json=hello("outer")), 401),
    "a wrong key and a long body": (OTHER.replace(b": 5", b": 200000") + bytes(200_000), 401),
    "a wrong key and chunks": (OTHER.replace(b"content-length: 5", CHUNKED) + chunks(SMUGGLED), 401),
    "a wrong key and a call as its body": (OTHER.replace(b": 5", b": %d" % len(SMUGGLED)) + SMUGGLED, 401),
    "no route": (message("POST", "/nowhere", body=SMUGGLED), 404),
    "the wrong method": (message("PUT", CHAT, body=SMUGGLED, headers={"content-length": str(len(SMUGGLED))}), 405),
    "the wrong method without a body": (message("GET", CHAT), 405),
    "no JSON": (head(b"content-length: %d" % len(SMUGGLED)) + SMUGGLED, 400),
    "no body": (head(), 400),
    "an empty body": (head(b"content-length: 0"), 400),
    "an unknown model": (message("POST", CHAT, json={**hello(), "model": "x"}, headers=bearer()), 404),
    "another media type": (
        message("POST", CHAT, body=SMUGGLED, headers={**bearer(), "content-type": "text/plain"}),
        415,
    ),
    "a compressed body": (head(b"content-encoding: gzip", b"content-length: %d" % len(SMUGGLED)) + SMUGGLED, 415),
    "a body too long": (head(b"content-length: 3000") + bytes(3000), 413),
    "chunks too many": (head(CHUNKED) + chunks(bytes(1500), bytes(1500)), 413),
    "an expectation": (head(LENGTH, b"expect: magic") + BODY, 417),
    "a header too many": (head(*[b"x: y"] * 201, LENGTH) + BODY, 431),
    "a path too long": (head(LENGTH, first=b"POST /%b HTTP/1.1" % (b"x" * 9000)) + BODY, 414),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("together", [True, False])
async def test_after_an_error_the_next_call_is_answered_rightly_or_not_at_all(
    engines: ScriptedEngines, name: str, together: bool
) -> None:
    """Either the error says that the connection ends, and it does, or the next call gets its own answer."""
    raw, status = ERRORS[name]
    following = message("POST", CHAT, json=hello("following"), headers=bearer())
    async with (
        gateway({"a": engines["a"].url}, server={"max_body_bytes": 2048}) as harness,
        WireClient(harness.url) as client,
    ):
        await client.send_raw(raw + (following if together else b""))
        reply = await client.reply()
        assert reply.status == status
        assert set(reply.json["error"]) == {"message", "type", "param", "code"}
        if reply.header("connection") == "close":
            assert await client.read_to_end() == b""
            assert engines["a"].calls == []
        else:
            if not together:
                await client.send_raw(following)
            assert (await client.reply()).status == 200
            assert said(engines["a"]) == ["following"]


async def test_errors_that_come_after_the_whole_call_cost_no_connection(
    harness: Harness, engines: ScriptedEngines
) -> None:
    """Engines that fail or reject, calls that are no calls: one after the other on one connection, then a good one."""
    engine = engines["a"]
    engine.fails_with(500, calls=4)
    engine.fails_with(400, calls=2)
    async with WireClient(harness.url) as client:
        statuses = [(await client.post(CHAT, json=hello(), headers=bearer())).status for _ in range(4)]
        assert statuses == [503, 503, 400, 400]
        bad: list[Any] = [[], {}, hello(n=99), hello(temperature="hot")]
        for body in bad:
            assert (await client.post(CHAT, json=body, headers=bearer())).status == 400
        assert (await client.post(CHAT, json=hello(), headers=bearer())).status == 200


# Callers who break off, at every byte of a call.

CALL = message("POST", CHAT, json=hello("outer"), headers=bearer())
STREAM = message("POST", CHAT, json=hello("outer", stream=True), headers=bearer())
IN_CHUNKS = head(CHUNKED) + chunks(BODY[:10], BODY[10:])


async def seen_to_leave(harness: Harness) -> None:
    """No connection and no exchange is left."""
    async with asyncio.timeout(5):
        await harness.serving._public.callers._until_none()


@pytest.mark.parametrize("whole", [CALL, IN_CHUNKS], ids=["length", "chunks"])
@pytest.mark.parametrize("how", ["fin", "reset", "half"])
async def test_a_call_that_breaks_off_at_any_byte_is_no_call(
    harness: Harness, engines: ScriptedEngines, how: Literal["fin", "reset", "half"], whole: bytes
) -> None:
    """No engine hears of it; the connection is gone, and who closed only his side is told no more than an error."""
    for end in range(len(whole)):
        async with WireClient(harness.url) as client:
            await client.send_raw(whole[:end])
            if how == "half":
                client.half_close()
                told = await client.read_to_end()
                assert told.count(b"HTTP/1.1 ") <= 1
                assert not told.startswith(b"HTTP/1.1 200")
            else:
                client.leave(how)
        await seen_to_leave(harness)
    assert engines["a"].calls == []
    assert {line["outcome"] for line in harness.calls} <= {"cancelled", "bad_call"}
    assert (await harness.post()).status == 200


@pytest.mark.parametrize("raw", [CALL, STREAM, IN_CHUNKS], ids=["length", "stream", "chunks"])
async def test_a_call_that_comes_byte_by_byte_is_a_call(harness: Harness, engines: ScriptedEngines, raw: bytes) -> None:
    """Two of them on one connection, a byte a packet, with the end of the one and the beginning of the other in one."""
    async with WireClient(harness.url) as client:
        client._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(2 * len(raw) - 1):
            both = raw + raw
            packet = both[i : i + 1] if i != len(raw) - 1 else both[i : i + 2]
            await client.send_raw(packet if i != len(raw) else b"")
            await asyncio.sleep(0)
        await client.send_raw(raw[-1:])
        for _ in range(2):
            reply = await client.reply()
            assert (reply.status, reply.complete) == (200, True)
    assert said(engines["a"]) == ["outer", "outer"]


@pytest.mark.parametrize("cut", range(0, len(CALL), 7))
async def test_a_call_may_come_in_any_two_parts(harness: Harness, engines: ScriptedEngines, cut: int) -> None:
    """Wherever the network cuts it."""
    async with WireClient(harness.url) as client:
        await client.send_raw(CALL[:cut])
        await asyncio.sleep(0)
        await client.send_raw(CALL[cut:] + CALL[:cut])
        assert (await client.reply()).status == 200
        await client.send_raw(CALL[cut:])
        assert (await client.reply()).status == 200
    assert len(engines["a"].calls) == 2


POINTS: dict[str, tuple[Callable[[ScriptedEngine], None], int]] = {
    "before the first token": (lambda engine: engine.holds(), 0),
    "after the head of the reply": (lambda engine: engine.stalls_after(1), 0),
    "in the middle": (lambda engine: engine.stalls_after(4), 2),
    "before the end mark": (lambda engine: engine.stalls_after(8), 7),
    "after the last byte": (lambda engine: None, 99),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_caller_may_leave_at_any_point_of_his_reply(
    harness: Harness, engines: ScriptedEngines, how: Literal["fin", "reset"], point: str
) -> None:
    """His call is settled as what it was, the engine is let go, and nothing keeps his connection."""
    misbehave, events = POINTS[point]
    engine = engines["a"]
    misbehave(engine)
    async with harness.sent(hello(stream=True)) as client:
        await engine.saw()
        if events:
            stream = await begun(client)
            for _ in range(events):
                if not await stream.event():
                    break
        client.leave(how)
    line = await harness.ended()
    assert line["outcome"] == ("ok" if events == 99 else "cancelled")
    await engine.idle()
    await seen_to_leave(harness)
    engine.behaves()
    assert (await harness.post(hello(stream=True))).body.endswith(wire.DONE)


@pytest.mark.parametrize("events", [0, 1, 3])
async def test_a_caller_who_closed_his_side_and_then_leaves_is_noticed(
    harness: Harness, engines: ScriptedEngines, events: int
) -> None:
    """The end of his sending says nothing; what we write finds out that nobody reads."""
    engine = engines["a"]
    engine.stalls_after(events)
    async with harness.sent(hello(stream=True)) as client:
        await engine.saw()
        if events:
            await (await begun(client)).event()
        client.half_close()
        await client.read()
        client.leave("reset")
        await engine.idle()
    assert (await harness.ended())["outcome"] == "cancelled"
    await seen_to_leave(harness)


# What comes in the wrong rhythm.


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_an_expectation_is_met_each_time_and_costs_nothing_else(
    harness: Harness, engines: ScriptedEngines, framing: str, waits: bool
) -> None:
    """`100 Continue` comes to who waits for it, on every call of a connection; the final answer stands alone."""
    lines = [CHUNKED if framing == "chunks" else LENGTH]
    body = chunks(BODY) if framing == "chunks" else BODY
    async with WireClient(harness.url) as client:
        for number in range(1, 4):
            await client.send_raw(head(*lines, b"Expect: 100-Continue") + (b"" if waits else body))
            if waits:
                told = await client.read()
                assert told == b"HTTP/1.1 100 Continue\r\n\r\n"
                await client.send_raw(body)
            assert (await client.reply()).status == 200
            assert len(client.interim) <= (0 if waits else number)
    assert said(engines["a"]) == ["outer"] * 3


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (head(b"content-length: 10000000000", b"expect: 100-continue"), 413),
        (head(LENGTH, b"expect: 100-continue", first=b"POST /nowhere HTTP/1.1"), 404),
        (head(LENGTH, b"expect: 100-continue", b"content-encoding: br"), 415),
        (head(LENGTH, b"expect: 100-continue").replace(KEY.encode(), b"x"), 401),
    ],
)
async def test_who_asks_before_he_sends_is_told_no_without_sending(harness: Harness, raw: bytes, status: int) -> None:
    """A final answer instead of `100 Continue`; whether he sends nevertheless or not, nothing follows."""
    for rest in (b"", BODY, BODY + SMUGGLED):
        async with WireClient(harness.url) as client:
            await client.send_raw(raw)
            reply = await client.reply()
            assert (reply.status, client.interim, is_told(reply)) == (status, [], True)
            await client.send_raw(rest)
            client.half_close()
            assert await client.read_to_end() == b""


async def test_a_body_that_drips_has_the_time_of_a_body(harness: Harness, engines: ScriptedEngines) -> None:
    """R-U-D-Y: that something comes now and then renews nothing."""
    async with WireClient(harness.url) as client:
        await client.send_raw(head(b"content-length: 100000"))
        answer = asyncio.get_running_loop().create_task(client.reply())
        drops = 0
        while not answer.done():
            await client.send_raw(b"x")
            drops += 1
            await harness.get("/livez")
        assert is_told(answer.result())
        assert (answer.result().status, drops > 1) == (408, True)
    assert engines["a"].calls == []


async def test_a_prompt_in_very_many_chunks_is_one_prompt(harness: Harness, engines: ScriptedEngines) -> None:
    """A hundred thousand chunks, more than the wire's own buffers hold."""
    prompt = "word " * 20_000
    body = json.dumps(hello(prompt, max_tokens=1)).encode()
    engines["a"].max_model_len = 30_000
    async with WireClient(harness.url) as client:
        await client.send_raw(head(CHUNKED) + chunks(*[body[i : i + 1] for i in range(len(body))]))
        assert (await client.reply()).status == 200
        assert (await client.get("/livez")).status == 200
    assert said(engines["a"]) == [prompt]


@pytest.mark.parametrize("size", [UNASKED_BYTES - 1, UNASKED_BYTES, UNASKED_BYTES + 1, MIB, 5 * MIB])
async def test_bodies_around_what_is_held_unasked_arrive_whole(
    harness: Harness, engines: ScriptedEngines, size: int
) -> None:
    """In one write, twice on a connection, with a short call behind them."""
    prompt = "x" * (size - len(json.dumps(hello(""))))
    raw = message("POST", CHAT, json=hello(prompt), headers=bearer())
    async with WireClient(harness.url) as client:
        for _ in range(2):
            await client.send_raw(raw)
            assert (await client.reply()).status == 200
        assert (await client.post(CHAT, json=hello(), headers=bearer())).status == 200
    assert [len(call.raw_body) >= size for call in engines["a"].calls] == [True, True, False]


# Callers who read in their own time.


async def test_a_caller_who_asks_and_never_reads_is_not_asked_after(harness: Harness) -> None:
    """Answers wait in his memory, not in ours: as long as they are not taken up, no further call is begun."""
    async with WireClient(harness.url, receive_buffer_bytes=4096) as client:
        client._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        callers = harness.serving._public.callers
        await client.get("/livez")
        (connection,) = callers._connections
        most = 0
        for _ in range(1500):
            try:
                await client.send_raw(message("GET", "/metrics"))
            except ConnectionError:
                break
            for _ in range(4):
                await asyncio.sleep(0)
            if connection._transport is not None:
                most = max(most, connection._transport.get_write_buffer_size())
        assert most < MIB
    assert (await harness.get("/livez")).status == 200


@pytest.mark.parametrize("closes", [True, False])
async def test_a_caller_who_reads_a_long_reply_slowly_and_steadily_gets_all_of_it(
    engines: ScriptedEngines, closes: bool
) -> None:
    """What ends a slow reader is that he reads nothing for a while, not that a long reply takes him long."""
    document = b'{"choices":[{"index":0,"message":{"content":"%b"},"finish_reason":"stop"}]}' % (b"x" * 12 * MIB)
    engines["a"].fails_with(200, document)
    patience_s = 0.3
    async with (
        gateway({"a": engines["a"].url}, server={"slow_reader_s": patience_s}) as harness,
        WireClient(harness.url, receive_buffer_bytes=65536) as client,
    ):
        lines = [LENGTH, b"connection: close"] if closes else [LENGTH]
        await client.send_raw(head(*lines) + BODY)
        reply = await begun(client)
        loop = asyncio.get_running_loop()
        slow_until_s = loop.time() + 4 * patience_s
        while await reply.read():
            if loop.time() < slow_until_s:  # Others are answered between two of his reads.
                for _ in range(2):
                    await harness.get("/livez")
        assert reply.so_far().body == document


async def test_the_last_byte_of_a_long_reply_ends_its_connection_once(
    harness: Harness, engines: ScriptedEngines
) -> None:
    """Also where the last write of all is the one that makes room again."""
    for number in range(20):
        engines["a"].fails_with(
            200, b'{"choices":[{"finish_reason":"stop"}],"x":"%b"}' % (b"x" * (3_000_000 + 999 * number))
        )
        async with WireClient(harness.url, receive_buffer_bytes=65536) as client:
            await client.send_raw(head(LENGTH, b"connection: close") + BODY)
            assert (await client.reply()).complete
        await seen_to_leave(harness)


async def test_calls_behind_a_long_reply_that_is_not_read_yet_wait_for_it(
    harness: Harness, engines: ScriptedEngines
) -> None:
    """In their order, each whole, once he reads."""
    document = b'{"choices":[{"index":0,"message":{"content":"%b"},"finish_reason":"stop"}]}' % (b"x" * 4 * MIB)
    engines["a"].fails_with(200, document, calls=1)
    async with WireClient(harness.url, receive_buffer_bytes=4096) as client:
        await client.send_raw(CALL + STREAM + CALL)
        await harness.ended()
        first, second, third = [await client.reply() for _ in range(3)]
        assert first.body == document
        assert second.body.endswith(wire.DONE)
        assert third.json["choices"][0]["finish_reason"] == "stop"


# What callers and their browsers claim.


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/livez", "/nowhere"])
async def test_no_page_of_another_site_is_let_in(harness: Harness, path: str) -> None:
    """No origin is reflected, no preflight is answered with leave: nothing here is for browsers."""
    origin = {"origin": "https://evil.test", "access-control-request-method": "POST"}
    for method, headers in (("OPTIONS", origin), ("GET", {**origin, **bearer()}), ("POST", origin)):
        async with WireClient(harness.url) as client:
            await client.send(method, path, headers=headers)
            reply = await client.reply()
            assert not [name for name, _ in reply.headers if name.lower().startswith("access-control-")]
            assert reply.header("cache-control") == "no-store"


async def test_whom_a_caller_claims_to_be_does_not_count(engines: ScriptedEngines) -> None:
    """Connections are counted by the address that connected; what a header says about others is not looked at."""
    server = {"max_connections_per_address": 2}
    async with (
        gateway({"a": engines["a"].url}, server=server) as harness,
        WireClient(harness.url) as one,
        WireClient(harness.url) as two,
    ):
        for number, client in enumerate((one, two)):
            assert (await client.get("/livez", headers={"x-forwarded-for": f"10.0.0.{number}"})).status == 200
        pretending = {"x-forwarded-for": "10.0.0.9", "forwarded": "for=10.0.0.9", "x-real-ip": "10.0.0.9"}
        assert (await harness.post(headers={**bearer(), **pretending})).status == 503
        async with WireClient(harness.url, source="127.0.0.2") as elsewhere:
            assert (await elsewhere.post(CHAT, json=hello(), headers=bearer())).status == 200
