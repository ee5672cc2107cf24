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
    unsent_bytes: int = 0

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

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
        self.connection = Connection(self.loop.as_loop, self._lost)
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


def test_a_connection_whose_call_was_not_taken_is_not_used_again() -> None:
    """An engine may answer before it read everything; the next call is not to wait behind the rest."""
    fed = Fed().feed([OK + b"content-length: 0\r\n\r\n"])
    fed.wire.unsent_bytes = 1
    assert fed.answer().complete
    assert not fed.connection.reusable
    fed.wire.unsent_bytes = 0
    assert fed.connection.reusable


def test_bytes_before_any_exchange_close_the_connection() -> None:
    """An engine has nothing to say unasked."""
    connection = Connection(HandLoop().as_loop, lambda _: None)
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


# A body that is poured.


@dataclass
class Poured:
    """A body on its way into a sink that takes note, and wants no more after `wanted` pieces."""

    fed: Fed = field(default_factory=Fed)
    wanted: int = 1_000_000
    given: list[bytes] = field(default_factory=list)
    pausing: bool = False

    def begin(self) -> "Poured":
        self.task = self.fed.loop.create_task(self.fed.connection.pour(self.take))
        self.fed.loop.turn()
        return self

    def take(self, data: bytes) -> bool:
        self.given.append(data)
        if self.pausing:
            self.fed.connection.pause()
        return len(self.given) < self.wanted

    def feed(self, *parts: bytes) -> "Poured":
        for part in parts:
            self.fed.feed([part])
            self.fed.loop.turn()
        return self

    @property
    def error(self) -> BaseException | None:
        """What it ended with; it has ended."""
        return self.task.exception()


CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@thorough
@given(choice(*COMPLETE.values()), cuts(), st.integers(0, 12), st.booleans())
def test_any_split_of_an_answer_pours_the_same(
    answer: tuple[bytes, bytes], cut: list[int], before: int, turning: bool
) -> None:
    """Whatever was there before somebody wanted it, and whether he gets to run between two reads."""
    stream, body = answer
    parts = pieces(stream, cut)
    poured = Poured()
    poured.fed.feed(parts[:before])
    poured.begin()
    for part in parts[before:]:
        poured.fed.feed([part])
        if turning:
            poured.fed.loop.turn()
    poured.fed.loop.turn()
    assert b"".join(poured.given) == body
    assert all(poured.given), "a sink is given something, or nothing"
    assert poured.error is None
    assert poured.fed.connection.reusable


def test_each_read_is_poured_at_once_and_in_one_piece() -> None:
    """However many chunks it holds; nothing waits for a task to have its turn."""
    poured = Poured().begin().feed(CHUNKED)
    for number in range(1, 4):
        poured.fed.feed([b"2\r\nhe\r\n3\r\nllo\r\n"])
        assert poured.given == [b"hello"] * number
    assert not poured.task.done()


def test_a_reader_that_takes_everything_is_never_behind() -> None:
    """However much comes: nothing is kept, and nobody is held back."""
    poured = Poured().begin().feed(OK + b"content-length: 100000000\r\n\r\n")
    for _ in range(100):
        poured.feed(bytes(HIGH_WATER_BYTES // 2))
        assert not poured.fed.wire.paused
    assert sum(map(len, poured.given)) == 50 * HIGH_WATER_BYTES


@pytest.mark.parametrize("before", [True, False])
def test_a_sink_that_wants_no_more_ends_it(before: bool) -> None:
    """No error, and what comes after that is not his; the connection goes on once the rest was dropped."""
    poured, told = Poured(wanted=1), list[bool]()
    first, rest = CHUNKED + b"5\r\nhello\r\n", [b"3\r\nyou\r\n", b"0\r\n\r\n"]
    if before:
        poured.fed.feed([first])
        poured.begin()
    else:
        poured.begin().feed(first)
    assert poured.task.done()
    assert poured.error is None
    poured.feed(rest[0])
    assert poured.given == [b"hello"]
    assert not poured.fed.connection.complete
    poured.fed.connection.when_complete(lambda: told.append(poured.fed.connection.reusable))
    poured.feed(rest[1])
    assert told == [True]
    assert poured.given == [b"hello"]


def test_a_sink_that_wants_no_more_is_given_no_more_before_its_owner_has_run() -> None:
    """Two reads may come before the task that pours is woken."""
    poured = Poured(wanted=1).begin()
    poured.fed.feed([CHUNKED, b"5\r\nhello\r\n", b"3\r\nyou\r\n"])
    assert poured.given == [b"hello"]
    poured.fed.loop.turn()
    assert poured.error is None
    assert at_once(poured.fed.connection.read()) == b"you"


@pytest.mark.parametrize(
    ("broken", "end"),
    [
        pytest.param(b"3\r\nyou\r\n", ConnectionResetError(), id="a reset"),
        pytest.param(b"3\r\nyou\r\n", None, id="an end"),
        pytest.param(b"3\r\nyou\r\nzz\r\n", None, id="garbage in the same read"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after", "at once"])
def test_what_came_before_a_break_is_poured_first(broken: bytes, end: Exception | None, when: str) -> None:
    """Then the break is told, once; whether it came before somebody poured, after it, or all in one go."""
    poured, parts = Poured(), [CHUNKED, b"5\r\nhello\r\n", broken]
    if when == "before":
        poured.fed.feed(parts).end(end)
        poured.begin()
    elif when == "at once":
        poured.begin()
        poured.fed.feed(parts).end(end)
        poured.fed.loop.turn()
    else:
        poured.begin().feed(*parts)
        poured.fed.end(end)
        poured.fed.loop.turn()
    assert b"".join(poured.given) == b"helloyou"
    assert isinstance(poured.error, Broken)
    assert not poured.error.silent
    assert not poured.fed.connection.reusable


def test_an_answer_without_length_is_poured_until_its_connection_ends() -> None:
    """As it is read."""
    poured = Poured().begin().feed(OK + b"\r\nhel", b"lo")
    assert not poured.task.done()
    poured.fed.end()
    poured.fed.loop.turn()
    assert poured.error is None
    assert poured.given == [b"hel", b"lo"]


def test_pausing_in_a_sink_holds_the_engine_back() -> None:
    """Until it is resumed: neither another read nor a look at the body lets it on."""
    poured = Poured(pausing=True).begin().feed(CHUNKED, b"5\r\nhello\r\n")
    assert poured.fed.wire.paused
    # What the transport had in its hands comes nevertheless.
    poured.feed(b"3\r\nyou\r\n")
    assert poured.fed.wire.paused
    assert poured.given == [b"hello", b"you"]
    poured.pausing = False
    poured.fed.connection.resume()
    assert not poured.fed.wire.paused
    poured.feed(b"3\r\ntoo\r\n")
    assert not poured.fed.wire.paused


def test_what_was_paused_before_it_is_poured_stays_paused_for_a_full_taker() -> None:
    """What is there already is given, and the taker holds back again."""
    poured = Poured(pausing=True)
    poured.fed.feed([CHUNKED, b"5\r\nhello\r\n"])
    poured.fed.connection.pause()
    poured.begin()
    assert poured.given == [b"hello"]
    assert poured.fed.wire.paused


def test_a_connection_that_is_gone_or_complete_can_be_paused_and_resumed() -> None:
    """It just has no effect: a slow taker may come back late."""
    for fed in (Fed().feed([COMPLETE["length"][0]]), Fed().feed([OK]).end()):
        fed.connection.pause()
        assert not fed.wire.paused
        fed.connection.resume()
    for gone in (Fed.end, lambda fed: fed.connection.abort()):
        lost = Fed().feed([CHUNKED])
        lost.connection.pause()
        gone(lost)
        lost.connection.resume()
        assert lost.wire.paused, "the transport is gone, or going: it is left alone"


def test_a_pour_that_is_cancelled_gives_nothing_any_more() -> None:
    """The sink may not be there any more."""
    poured = Poured().begin().feed(CHUNKED)
    poured.task.cancel()
    poured.fed.loop.turn()
    poured.feed(b"5\r\nhello\r\n")
    assert poured.task.cancelled()
    assert poured.given == []


# Patience.


@pytest.mark.parametrize(
    ("begun", "held"),
    [
        pytest.param([], b"", id="no word"),
        pytest.param([OK], b"", id="half a head"),
        pytest.param([CHUNKED], b"", id="no body"),
        pytest.param([CHUNKED, b"5\r\nhello\r\n"], b"hello", id="half a body"),
    ],
)
def test_an_engine_that_had_its_time_is_given_up(begun: list[bytes], held: bytes) -> None:
    """Whoever waits is told, what came before is still given, and the connection is not used again."""
    for waiting in ("head", "read", "pour"):
        poured = Poured(Fed().feed(begun))
        fed, connection = poured.fed, poured.fed.connection
        if waiting == "pour":
            poured.begin()
            connection.expire()
            fed.loop.turn()
            assert poured.given == ([held] if held else [])
            assert isinstance(poured.error, TimeoutError)
        elif waiting == "head" and len(begun) < 1:
            task = fed.loop.create_task(connection.head())
            fed.loop.turn()
            connection.expire()
            fed.loop.turn()
            assert isinstance(task.exception(), TimeoutError)
        else:
            connection.expire()
            if held:
                assert at_once(connection.read()) == held
            with pytest.raises(TimeoutError):
                at_once(connection.read())
        # Its answer comes too late, and ends the connection.
        assert not connection.reusable
        fed.feed([COMPLETE["length"][0]])
        assert fed.wire.closed
        assert not connection.reusable
        with pytest.raises(TimeoutError):
            at_once(connection.read())


def test_an_answer_that_is_complete_or_broken_does_not_expire() -> None:
    """A deadline that comes due late changes nothing of what is known already."""
    complete = Fed().feed([COMPLETE["length"][0]])
    complete.connection.expire()
    assert complete.answer().body == b"hello"
    assert complete.connection.reusable
    broken = Fed().feed([OK]).end()
    broken.connection.expire()
    with pytest.raises(Broken):
        at_once(broken.connection.head())


def test_the_deadlines_of_two_connections_do_not_mix() -> None:
    """Of two that share a patience only the one that is late expires; nor does stopping one stop the other."""
    loop, pool = HandLoop(), Connections(LONG_S, LONG_S)
    patience = pool.patience(10.0)
    early, late = Poured(Fed(loop=loop)), Poured(Fed(loop=loop))
    with loop.running():
        patience.start(early.fed.connection)
    early.begin()
    loop.pass_time(4)
    with loop.running():
        patience.start(late.fed.connection)
    late.begin()
    loop.pass_time(6)
    assert isinstance(early.error, TimeoutError)
    assert not late.task.done()
    late.feed(COMPLETE["length"][0])
    patience.stop(late.fed.connection)
    loop.pass_time(100)
    assert late.error is None
    assert late.fed.connection.reusable
    assert repr(patience) == "<Deadlines of 10 s: 0 running>"


def test_the_rest_of_an_answer_has_a_moment_and_no_more() -> None:
    """Else an engine that never ends would keep a connection that nobody wants."""
    loop, pool, address = HandLoop(), Connections(LONG_S, LONG_S), Address("engine", 1)
    slow, quick = Fed(loop=loop).feed([CHUNKED]), Fed(loop=loop).feed([CHUNKED])
    with loop.running():
        pool.release_at_end(slow.connection, address)
        pool.release_at_end(quick.connection, address)
    loop.pass_time(FAREWELL_S / 2)
    with loop.running():
        quick.feed([b"5\r\nhello\r\n0\r\n\r\n"])
    loop.pass_time(FAREWELL_S)
    assert slow.wire.closed
    assert not quick.wire.closed
    assert repr(pool) == "<Connections 0 open, 1 idle>"
    slow.end()
    assert repr(pool._leaving) == "<Deadlines of 1 s: 0 running>"
    loop.pass_time(LONG_S)
    assert quick.wire.closed, "its time as an idle one is over too"


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
    """What a coroutine comes to; that it comes to nothing is the test's failure, and no TimeoutError of anybody."""
    try:
        async with asyncio.timeout(LONG_S) as limit:
            return await coroutine
    except TimeoutError:
        assert not limit.expired(), "nothing came"
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
            assert await soon(whole(connection)) == body
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
            assert await soon(whole(connection)) == b"hello"
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
            assert await soon(connection.read()) == b"he"
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
            assert await soon(whole(connection)) == b"hello"
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
            await soon(whole(connection))
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
        await soon(whole(connection))
        pool.release_at_end(connection, served.address)
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
            await soon(connection.head())
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
        assert (await soon(connection.head())).status == 200
        assert await soon(connection.read()) == b"he"
        go.set()
        with pytest.raises(Broken) as caught:
            await soon(connection.read())
        assert not caught.value.silent


@pytest.mark.anyio
async def test_a_call_on_a_connection_that_is_gone_is_silent() -> None:
    """Nothing was begun, so it may be sent again elsewhere."""
    async with engine(answering(COMPLETE["length"][0])) as served, connections() as pool:
        connection = await pool.acquire(served.address)
        connection.abort()
        connection.send(CALL)
        with pytest.raises(Broken) as caught:
            await soon(connection.head())
        assert caught.value.silent


@pytest.mark.anyio
async def test_an_engine_that_never_answers_runs_into_the_timeout() -> None:
    """For the head and for the body alike."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(OK + b"content-length: 5\r\n\r\n", times=1)(reader, writer)
        await reader.read()

    async with engine(silent) as mute, engine(conduct) as begun, connections() as pool:
        patience = pool.patience(0.02)
        for address, waiting in ((mute.address, Connection.head), (begun.address, Connection.read)):
            connection = await pool.acquire(address)
            connection.send(CALL)
            if waiting is Connection.read:
                await soon(connection.head())
            patience.start(connection)
            with pytest.raises(TimeoutError):
                await soon(waiting(connection))
            assert connection not in patience
            pool.release(connection, address)
            assert connection.closed


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
        patience = pool.patience(0.05)

        def headway(data: bytes) -> bool:
            patience.start(connection)
            return True

        async def answer() -> None:
            await connection.head()
            await connection.pour(headway)

        connection = await pool.acquire(served.address)
        connection.send(CALL)
        patience.start(connection)
        with pytest.raises(TimeoutError):
            await soon(answer())
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
        waiting = asyncio.create_task(connection.head())
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
            assert await soon(connection.read()) == b"he"
            waiting = asyncio.create_task(connection.read())
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
        await soon(connection.head())
        before = -1
        async with asyncio.timeout(LONG_S):
            while before != sent:
                before = sent
                await asyncio.sleep(0.05)
        assert sent < 30_000_000
        held = len(await soon(connection.read()))
        assert HIGH_WATER_BYTES < held < 3 * HIGH_WATER_BYTES
        received = held
        async with asyncio.timeout(LONG_S):
            while received < 2 * sent and received < 50_000_000:
                received += len(await soon(connection.read()))
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
        assert await soon(connection.read()) == b"hello"
        pool.release_at_end(connection, served.address)
        assert repr(pool) == "<Connections 1 open, 0 idle>"
        go.set()
        await until(lambda: repr(pool) == "<Connections 1 open, 1 idle>")
        go.clear()
        assert await pool.acquire(served.address) is connection
        connection.send(CALL)
        assert await soon(connection.read()) == b"hello"
        pool._leaving.close()  # The timer of the first one, which has left long ago.
        pool._leaving.delay_s = 0.01
        pool.release_at_end(connection, served.address)
        await until(lambda: connection.closed)
        go.set()


def test_an_address_is_read_from_a_url_and_tells_no_key() -> None:
    """Ports have their defaults; a key is for the engine alone."""
    assert Address.of("http://127.0.0.1:9101") == Address("127.0.0.1", 9101)
    assert Address.of("https://engine", "canary-key") == Address("engine", 443, tls=True, api_key="canary-key")
    assert Address.of("http://engine").port == 80
    assert str(Address.of("http://[::1]:9101")) == "[::1]:9101"
    assert "canary-key" not in f"{Address.of('https://engine', 'canary-key')!r} {Address.of('https://engine')}"
