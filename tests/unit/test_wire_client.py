"""The raw client: every byte in order, nothing repaired, and endings told apart."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.loopback import Connection, Loopback, Message
from tests.wire_client import BadFraming, Body, Head, WireClient, message, payload

pytestmark = pytest.mark.anyio

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Peer:
    """Does with each message what a test says, and keeps the messages."""

    def __init__(self, answer: Callable[[Connection], None]) -> None:
        self.messages: list[Message] = []
        self.malformed_messages = 0
        self.loopback = Loopback(self)
        self._answer = answer

    def received(self, connection: Connection, message: Message) -> None:
        self.messages.append(message)
        self._answer(connection)
        self.loopback.facts.changed()
        connection.next_message()

    def malformed(self, connection: Connection) -> None:
        self.malformed_messages += 1

    def writable(self, connection: Connection) -> None:
        """Nothing waits."""

    def lost(self, connection: Connection) -> None:
        """Nothing belongs to a connection."""


@asynccontextmanager
async def answering(*replies: bytes, then: Callable[[Connection], None] | None = None) -> AsyncIterator[Peer]:
    """A peer that writes the replies at every message, and then does something to the connection."""

    def answer(connection: Connection) -> None:
        for reply in replies:
            connection.write(reply)
        if then is not None:
            then(connection)

    peer = Peer(answer)
    async with peer.loopback:
        yield peer


async def test_a_call_goes_out_as_written() -> None:
    """Host, type and length are added once, and a caller's own headers win."""
    async with answering(PLAIN) as peer, WireClient(peer.loopback.url) as client:
        await client.post("/a", {"x": 1}, headers=[("X-A", "1"), ("X-A", "2")])
        await client.post("/b", body=b"raw", headers={"content-type": "text/plain", "Host": "other"})
        first, second = peer.messages
    assert (first.method, first.path, first.body) == ("POST", "/a", b'{"x": 1}')
    assert first.headers == (
        (b"Host", f"127.0.0.1:{peer.loopback.port}".encode()),
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"8"),
        (b"X-A", b"1"),
        (b"X-A", b"2"),
    )
    assert (second.header("host"), second.header("content-type"), second.body) == (
        "other",
        "text/plain",
        b"raw",
    )


async def test_a_plain_reply_is_read_whole_and_the_connection_serves_again() -> None:
    """Status, headers in order and spelling, body, and every byte."""
    reply_bytes = b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\nX: a\r\nx: b\r\ncontent-length: 2\r\n\r\n{}"
    async with answering(reply_bytes) as peer, WireClient(peer.loopback.url) as client:
        for _ in range(2):
            reply = await client.get("/")
            assert (reply.status, reply.head.reason, reply.json) == (429, "Too Many", {})
            assert reply.headers[:3] == (("Retry-After", "7"), ("X", "a"), ("x", "b"))
            assert (reply.header("RETRY-AFTER"), reply.headers_named("x")) == ("7", ["a", "b"])
            assert (reply.raw, reply.ending, reply.complete) == (reply_bytes, "complete", True)
        assert peer.loopback.connections_made == 1


async def test_interim_replies_are_kept_apart() -> None:
    """A 1xx is not the answer."""
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"
    async with answering(hints + PLAIN) as peer, WireClient(peer.loopback.url) as client:
        assert (await client.get("/")).body == b"hello"
        assert [(head.status, head.header("link")) for head in client.interim] == [(103, "a")]


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_reply_cut_short_is_visible_as_one(how: str) -> None:
    """By its ending, and by what is missing; never repaired."""
    part = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"
    async with answering(part, then=lambda connection: connection.close(how)) as peer:  # type: ignore[arg-type]
        async with WireClient(peer.loopback.url) as client:
            reply = await client.get("/")
        assert (reply.body, reply.ending, reply.complete) == (b"hello", how, False)
        async with WireClient(peer.loopback.url) as client:
            await client.send("GET", "/")
            assert (await client.read_to_end(), client.ending) == (part, how)


async def test_no_head_at_all_is_an_error() -> None:
    """With what came instead."""
    part = answering(b"HTTP/1.1 200", then=lambda connection: connection.close())
    async with part as peer, WireClient(peer.loopback.url) as client:
        with pytest.raises(ConnectionError, match=r"fin after b'HTTP/1\.1 200'"):
            await client.get("/")


async def test_a_stream_is_read_event_by_event() -> None:
    """Head first; events whatever chunks they came in; the framing is kept beside them."""
    framed = b"7\r\n: c\n\nda\r\n9\r\nta: 1\r\n\r\n\r\nb\r\ndata: 2\r\rxy\r\n0\r\n\r\n"
    async with answering(CHUNKED, framed) as peer, WireClient(peer.loopback.url) as client:
        async with client.stream("/", {}) as stream:
            assert stream.status == 200
            assert [await stream.event() for _ in range(3)] == [
                b": c\n\n",
                b"data: 1\r\n\r\n",
                b"data: 2\r\r",
            ]
            assert (await stream.event(), stream.unfinished) == (b"", b"xy")
        assert stream.chunks == [b": c\n\nda", b"ta: 1\r\n\r\n", b"data: 2\r\rxy"]
        assert (stream.raw, stream.terminated, stream.ending) == (framed, True, "complete")
        assert (await client.get("/")).raw == CHUNKED + framed


async def test_a_stream_without_its_last_chunk_is_not_complete() -> None:
    """However cleanly the connection closes."""
    async with (
        answering(CHUNKED, b"9\r\ndata: 1\n\n\r\n", then=lambda connection: connection.close()) as peer,
        WireClient(peer.loopback.url) as client,
        client.stream("/", {}) as stream,
    ):
        assert await stream.events() == [b"data: 1\n\n"]
        assert (stream.terminated, stream.ending, stream.so_far().complete) == (False, "fin", False)


async def test_an_event_is_there_before_the_next_one_is_sent() -> None:
    """Nothing is read ahead of what a test asks for, and nothing held back."""
    connections: list[Connection] = []
    async with (
        answering(CHUNKED, then=connections.append) as peer,
        WireClient(peer.loopback.url) as client,
        client.stream("/", {}) as stream,
    ):
        connections[0].write(b"9\r\ndata: 1\n\n\r\n")
        assert await stream.event() == b"data: 1\n\n"
        connections[0].write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        assert await stream.events() == [b"data: 2\n\n"]
    assert [data for _, data in client.arrivals][-2] == b"9\r\ndata: 1\n\n\r\n"


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_leaving_is_seen_by_the_peer(how: str) -> None:
    """Closed politely or reset, also from within a stream; a block left early leaves too."""
    async with answering(CHUNKED) as peer:
        async with WireClient(peer.loopback.url) as client, client.stream("/", {}) as stream:
            stream.leave(how)  # type: ignore[arg-type]
            await peer.loopback.facts.until(lambda: not peer.loopback.connections, 5, lambda: "still open")
        async with WireClient(peer.loopback.url) as client:
            async with client.stream("/", {}):
                pass
            await peer.loopback.facts.until(lambda: not peer.loopback.connections, 5, lambda: "still open")


async def test_a_half_closed_client_still_reads() -> None:
    """Its peer gets the end of what it sends, and what was answered by then arrives."""
    async with answering(PLAIN) as peer, WireClient(peer.loopback.url) as client:
        await client.send_raw(message("GET", "/"))
        client.half_close()
        assert (await client.reply()).body == b"hello"
        assert (await client.read_to_end(), client.ending) == (b"", "fin")


async def test_bytes_go_out_one_by_one() -> None:
    """As slowly as a test likes: the peer has the message with its last byte."""
    async with answering(PLAIN) as peer, WireClient(peer.loopback.url) as client:
        data = message("POST", "/slow", body=b"abc")
        for i in range(len(data)):
            assert peer.messages == []
            await client.send_raw(data[i : i + 1])
            await asyncio.sleep(0)
        assert (await client.reply()).body == b"hello"
        assert peer.messages[0].body == b"abc"


async def test_waiting_has_an_end() -> None:
    """A peer that says nothing costs within_s, not the test run."""
    async with answering() as peer, WireClient(peer.loopback.url, within_s=0.02) as client:
        with pytest.raises(TimeoutError):
            await client.get("/")


@pytest.mark.parametrize(
    "head",
    [
        b"\x00\x01\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/2 200\r\na : b\r\n\r\n",
    ],
)
def test_a_head_that_is_not_http_is_refused(head: bytes) -> None:
    """Status line and header lines are read strictly."""
    with pytest.raises(BadFraming):
        Head(head)


@pytest.mark.parametrize("chunks", [b"zz\r\n", b"3\r\nabcd\r\n", b"\r\n\r\n", b"0\r\nx: y\r\n"])
def test_chunks_that_are_not_framed_right_are_refused(chunks: bytes) -> None:
    """A wrong size is an error, never a guess."""
    body = Body(Head(CHUNKED))
    with pytest.raises(BadFraming):
        body.feed(chunks)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_framing_does_not_depend_on_how_bytes_arrive(size: int) -> None:
    """Any split gives the same chunks, and what follows the body is handed back."""
    data = b"3\r\nabc\r\n4;ext=1\r\nd\r\ne\r\n0\r\n\r\nNEXT"
    body, after = Body(Head(CHUNKED)), b""
    for start in range(0, len(data), size):
        piece = data[start : start + size]
        after += piece if body.done else body.feed(piece)
    assert (body.chunks, bytes(body.data), body.terminated, after) == (
        [b"abc", b"d\r\ne"],
        b"abcd\r\ne",
        True,
        b"NEXT",
    )
    assert bytes(body.raw) == data.removesuffix(b"NEXT")


@pytest.mark.parametrize(
    ("event", "means"),
    [
        (b'data: {"a": 1}\n\n', {"a": 1}),
        (b"data: [DONE]\n\n", "[DONE]"),
        (b": comment\n\n", None),
        (b'event: error\r\ndata: {"a":\r\ndata: 2}\r\n\r\n', {"a": 2}),
        ('data: {"a": "\u2028"}\n\n'.encode(), {"a": "\u2028"}),
    ],
)
def test_an_events_payload_is_read(event: bytes, means: object) -> None:
    """JSON from one or many data lines; other text as it is; nothing for a comment."""
    assert payload(event) == means


async def test_a_port_is_kept_while_nobody_listens() -> None:
    """Refused, then accepted again on the same port, which nobody else could take meanwhile."""
    async with answering(PLAIN) as peer:
        url = peer.loopback.url
        for _ in range(3):
            peer.loopback.refuse()
            with pytest.raises(ConnectionRefusedError):
                async with WireClient(url):
                    pass
            await peer.loopback.listen()
            async with WireClient(url) as client:
                assert (await client.get("/")).status == 200
