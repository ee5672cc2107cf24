"""gateway/edge/exchange.py: how an answer is framed, how a body is read, and what is left when a caller leaves."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.edge.exchange import CONTINUE, STATUS_LINES, UNASKED_BYTES, Exchange
from gateway.edge.head import Head
from gateway.errors import BodyTooLarge, BodyTooSlow, CallerLeft, GatewayError, NotHttp, SlowReader
from tests.unit.by_hand import HandLoop
from tests.unit.splitting import thorough

OURS = b"x-request-id: id-1\r\ncache-control: no-store\r\n"
CLOSE = b"connection: close\r\n"
LINES = b"x: y\r\n"


@dataclass
class Line:
    """The connection that an exchange is on, as far as the exchange can see."""

    address: str = "127.0.0.1"
    writes: list[bytes] = field(default_factory=list)
    ends: bool = False
    held_back: bool = False
    answers: int = 0

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def hold_back(self) -> None:
        self.held_back = True

    def let_on(self) -> None:
        self.held_back = False

    def last(self) -> bool:
        return self.ends

    def answered(self, exchange: Exchange) -> None:
        assert exchange.ended
        self.answers += 1

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)


def a_head(
    method: str = "POST", *, old: bool = False, keep_alive: bool = True, expects: bool = False, path: str = "/"
) -> Head:
    return Head(method, path, b"", {}, None, old, keep_alive, expects=expects)


@dataclass
class Talk:
    """An exchange by hand, its body read to the end unless `unread`."""

    head: Head = field(default_factory=a_head)
    unread: bool = False
    line: Line = field(default_factory=Line)
    loop: HandLoop = field(default_factory=HandLoop)

    def __post_init__(self) -> None:
        self.exchange = Exchange(self.line, self.head, "id-1", self.loop.now_s)
        if not self.unread:
            self.exchange.complete()

    def read(self, limit_bytes: int = 100, within_s: float = 10.0) -> "asyncio.Task[bytes]":
        """Somebody reads the body."""
        task = self.loop.create_task(self.exchange.body(limit_bytes, within_s))
        self.loop.turn()
        return task

    def waits(self) -> "asyncio.Task[None]":
        """Somebody waits for room."""
        task = self.loop.create_task(self.exchange.room())
        self.loop.turn()
        return task


# Framing.


def test_a_document_is_one_write_with_its_length() -> None:
    """A head and a body in one segment, where they fit."""
    talk = Talk()
    talk.exchange.whole(200, LINES, b"hello")
    assert talk.line.writes == [b"HTTP/1.1 200 OK\r\n" + OURS + LINES + b"content-length: 5\r\n\r\nhello"]
    assert talk.exchange.keep_alive
    assert talk.line.answers == 1


def test_a_document_may_be_empty() -> None:
    """Its length says so."""
    talk = Talk()
    talk.exchange.whole(503, b"", b"")
    assert talk.line.sent == b"HTTP/1.1 503 Service Unavailable\r\n" + OURS + b"content-length: 0\r\n\r\n"


def test_a_stream_is_chunked_and_its_head_goes_with_the_first_chunk() -> None:
    """A write for each write, and one for the end."""
    talk = Talk()
    talk.exchange.begin(200, LINES)
    assert talk.exchange.started
    assert talk.line.writes == []
    talk.exchange.write(b"hello")
    talk.exchange.write(b"x" * 255)
    assert not talk.exchange.ended
    talk.exchange.end()
    head = b"HTTP/1.1 200 OK\r\n" + OURS + LINES + b"transfer-encoding: chunked\r\n\r\n"
    assert talk.line.writes == [head + b"5\r\nhello\r\n", b"ff\r\n" + b"x" * 255 + b"\r\n", b"0\r\n\r\n"]
    assert talk.exchange.keep_alive
    assert talk.line.answers == 1


def test_a_stream_may_end_with_its_last_words_or_with_none() -> None:
    """Also before its head went out; and a write of nothing does not end it."""
    talk = Talk()
    talk.exchange.begin(200, b"")
    talk.exchange.write(b"")
    talk.exchange.end(b"bye")
    assert talk.line.sent.endswith(b"chunked\r\n\r\n3\r\nbye\r\n0\r\n\r\n")
    empty = Talk()
    empty.exchange.begin(200, b"")
    empty.exchange.end()
    assert empty.line.sent.endswith(b"chunked\r\n\r\n0\r\n\r\n")


def test_an_old_caller_gets_a_stream_that_ends_with_its_connection() -> None:
    """HTTP/1.0 knows no chunks; nor is such a connection used again, whatever he says."""
    for keep_alive in (True, False):
        talk = Talk(a_head(old=True, keep_alive=keep_alive))
        talk.exchange.begin(200, LINES)
        for part in (b"hel", b"", b"lo"):
            talk.exchange.write(part)
        talk.exchange.end(b"!")
        assert talk.line.sent == b"HTTP/1.1 200 OK\r\n" + OURS + LINES + CLOSE + b"\r\nhello!"
        assert not talk.exchange.keep_alive
    empty = Talk(a_head(old=True))
    empty.exchange.begin(200, b"")
    empty.exchange.end()
    assert empty.line.sent == b"HTTP/1.1 200 OK\r\n" + OURS + CLOSE + b"\r\n"


def test_an_old_caller_gets_a_document_with_its_length() -> None:
    """Which he knows."""
    talk = Talk(a_head(old=True))
    talk.exchange.whole(200, b"", b"hello")
    assert talk.line.sent == b"HTTP/1.1 200 OK\r\n" + OURS + b"content-length: 5\r\n" + CLOSE + b"\r\nhello"


@pytest.mark.parametrize("old", [True, False])
def test_an_answer_to_head_has_no_body(old: bool) -> None:
    """Of a document it says the length; what followed would be taken for the next answer."""
    talk = Talk(a_head("HEAD", old=old))
    talk.exchange.whole(200, b"", b"hello")
    assert b"content-length: 5\r\n" in talk.line.sent
    assert talk.line.sent.endswith(b"\r\n\r\n")
    streamed = Talk(a_head("HEAD", old=old))
    streamed.exchange.begin(200, LINES)
    streamed.exchange.write(b"hello")
    streamed.exchange.end(b"bye")
    assert streamed.line.sent.startswith(b"HTTP/1.1 200 OK\r\n" + OURS + LINES)
    assert streamed.line.sent.index(b"\r\n\r\n") == len(streamed.line.sent) - 4
    assert streamed.line.answers == 1


@pytest.mark.parametrize("status", sorted(status for status in STATUS_LINES if status >= 200))
def test_every_status_has_its_line(status: int) -> None:
    """With its own phrase."""
    talk = Talk()
    talk.exchange.whole(status, b"", b"")
    assert re.match(rb"HTTP/1\.1 %d [A-Z][\x20-\x7e]+\r\n" % status, talk.line.sent)


# Whether the connection goes on.


def closing(talk: Talk, *, stream: bool) -> bool:
    """Whether the answer says that the connection ends; that it does so says the exchange as well."""
    if stream:
        talk.exchange.begin(200, b"")
        talk.exchange.end(b"x")
    else:
        talk.exchange.whole(200, b"", b"x")
    says = CLOSE in talk.line.sent
    assert says is not talk.exchange.keep_alive
    assert talk.line.sent.count(b"connection:") == says
    return says


@pytest.mark.parametrize("stream", [True, False])
def test_when_an_answer_ends_its_connection(stream: bool) -> None:
    """Where one side wants it, where a body was left unread, and where its end cannot be found."""
    assert not closing(Talk(), stream=stream)
    assert closing(Talk(a_head(keep_alive=False)), stream=stream)
    assert closing(Talk(a_head(old=True)), stream=stream)
    assert closing(Talk(unread=True), stream=stream)
    assert closing(Talk(line=Line(ends=True)), stream=stream)
    broken = Talk(unread=True)
    broken.exchange.fail(NotHttp())
    assert closing(broken, stream=stream)
    ended = Talk()
    ended.exchange.end_connection()
    assert closing(ended, stream=stream)


def test_whether_the_connection_goes_on_is_decided_once() -> None:
    """By what the head of the answer says: a body that is complete only after that changes nothing."""
    talk = Talk(unread=True)
    talk.exchange.begin(200, b"")
    talk.exchange.complete()
    talk.exchange.end(b"x")
    assert CLOSE in talk.line.sent
    assert not talk.exchange.keep_alive
    retiring = Talk()
    retiring.exchange.begin(200, b"")
    retiring.line.ends = True
    retiring.exchange.end(b"x")
    assert CLOSE not in retiring.line.sent
    assert retiring.exchange.keep_alive


# Reading the body.


@thorough
@given(st.lists(st.binary(max_size=20), max_size=8), st.integers(0, 8), st.booleans())
def test_a_body_is_its_parts_in_their_order(parts: list[bytes], before: int, turning: bool) -> None:
    """Whatever came before it was asked for, and whoever had his turn in between."""
    talk = Talk(unread=True)
    for part in parts[:before]:
        talk.exchange.feed(part)
    task = talk.read(limit_bytes=200)
    for part in parts[before:]:
        talk.exchange.feed(part)
        if turning:
            talk.loop.turn()
    assert not task.done()
    talk.exchange.complete()
    talk.loop.turn()
    assert task.result() == b"".join(parts)
    assert type(task.result()) is bytes
    assert talk.loop.timers == []


def test_a_body_that_is_there_is_not_waited_for() -> None:
    """Nor is anything asked of the caller."""
    talk = Talk(a_head(expects=True), unread=True)
    talk.exchange.feed(b"hello")
    talk.exchange.complete()
    assert talk.read().result() == b"hello"
    assert talk.line.writes == []


@pytest.mark.parametrize(
    ("before", "expects", "asked"), [(b"", True, True), (b"", False, False), (b"h", True, False), (b"h", False, False)]
)
def test_a_caller_who_waits_to_be_asked_is_asked(before: bytes, expects: bool, asked: bool) -> None:
    """Once, when his body is wanted; not if he did not wait for it, and not before somebody wants it."""
    talk = Talk(a_head(expects=expects), unread=True)
    if before:
        talk.exchange.feed(before)
    assert talk.line.writes == []
    task = talk.read()
    assert talk.line.writes == ([CONTINUE] if asked else [])
    talk.exchange.feed(b"ello")
    talk.exchange.complete()
    talk.loop.turn()
    assert task.result() == before + b"ello"


def test_a_caller_who_is_refused_is_not_asked() -> None:
    """Then he need not send it (RFC 9110, 10.1.1); and his connection ends, as nobody knows whether he does."""
    talk = Talk(a_head(expects=True), unread=True)
    talk.exchange.whole(401, b"", b"")
    assert talk.line.sent.startswith(b"HTTP/1.1 401 ")
    assert CLOSE in talk.line.sent


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("size", [99, 100, 101, 1000])
def test_a_body_has_its_limit(size: int, before: bool) -> None:
    """To the byte, whether it came before it was asked for or after."""
    talk = Talk(unread=True)
    if before:
        talk.exchange.feed(b"x" * size)
        talk.exchange.complete()
        task = talk.read(limit_bytes=100)
    else:
        task = talk.read(limit_bytes=100)
        talk.exchange.feed(b"x" * size)
        talk.exchange.complete()
        talk.loop.turn()
    if size <= 100:
        assert task.result() == b"x" * size
    else:
        assert isinstance(task.exception(), BodyTooLarge)


def test_what_is_beyond_the_limit_is_told_at_once_and_not_kept() -> None:
    """However much is still to come."""
    talk = Talk(unread=True)
    task = talk.read(limit_bytes=100)
    talk.exchange.feed(b"x" * 101)
    talk.loop.turn()
    assert isinstance(task.exception(), BodyTooLarge)
    for _ in range(1000):
        talk.exchange.feed(b"x" * 1000)
    assert len(talk.exchange._body) == 0
    assert not talk.line.held_back


def test_a_body_that_nobody_asked_for_is_held_back() -> None:
    """After a while; asking for it lets it on."""
    talk = Talk(unread=True)
    talk.exchange.feed(b"x" * UNASKED_BYTES)
    assert not talk.line.held_back
    talk.exchange.feed(b"x")
    assert talk.line.held_back
    task = talk.read(limit_bytes=10 * UNASKED_BYTES)
    assert not talk.line.held_back
    talk.exchange.feed(b"x" * UNASKED_BYTES)
    assert not talk.line.held_back
    talk.exchange.complete()
    talk.loop.turn()
    assert task.result() == b"x" * (2 * UNASKED_BYTES + 1)


def test_a_body_that_was_held_back_at_its_end_is_let_on_by_whoever_reads_it() -> None:
    """What comes after it on the connection is not seen otherwise: the next call, or that the caller leaves."""
    talk = Talk(unread=True)
    talk.exchange.feed(b"x" * (UNASKED_BYTES + 1))
    talk.exchange.complete()
    assert len(talk.read(limit_bytes=10**6).result()) == UNASKED_BYTES + 1
    assert not talk.line.held_back


def test_a_body_in_drops_costs_no_more_than_a_few_times_its_size() -> None:
    """A part of two bytes would cost twenty times that as an object of its own."""
    talk = Talk(unread=True)
    for _ in range(50_000):
        talk.exchange.feed(b"xy")
    assert talk.exchange._body.__sizeof__() < 200_000


def test_a_slow_body_has_its_time() -> None:
    """All of it, from when it was asked for; a byte now and then renews nothing."""
    talk = Talk(unread=True)
    task = talk.read(within_s=10.0)
    for _ in range(9):
        talk.loop.pass_time(1.1)
        talk.exchange.feed(b"x")
    assert not task.done()
    talk.loop.pass_time(0.2)
    assert isinstance(task.exception(), BodyTooSlow)
    talk.exchange.complete()
    assert closing(talk, stream=False), "its end came too late to be looked for"


@pytest.mark.parametrize("error", [NotHttp(), CallerLeft()])
@pytest.mark.parametrize("before", [True, False])
def test_a_body_that_cannot_be_read_says_why(error: GatewayError, before: bool) -> None:
    """No matter when: it is never taken for whole."""
    talk = Talk(unread=True)
    spoil: Callable[[GatewayError], None] = (
        talk.exchange.depart if isinstance(error, CallerLeft) else talk.exchange.fail
    )
    talk.exchange.feed(b"hel")
    if before:
        spoil(error)
    task = talk.read()
    if not before:
        spoil(error)
    talk.exchange.feed(b"lo")
    talk.loop.turn()
    assert task.exception() is error
    assert talk.loop.timers == []


def test_a_fault_behind_a_whole_body_is_not_its_calls() -> None:
    """It belongs to what would have come next."""
    talk = Talk(unread=True)
    talk.exchange.feed(b"hello")
    talk.exchange.complete()
    talk.exchange.fail(NotHttp())
    assert talk.read().result() == b"hello"


def test_the_first_fault_counts() -> None:
    """What comes after it is a consequence."""
    talk = Talk(unread=True)
    talk.exchange.fail(first := NotHttp())
    talk.exchange.fail(BodyTooSlow(1.0))
    assert talk.read().exception() is first


def test_room_does_not_end_the_reading_of_a_body() -> None:
    """A caller who takes up the answer before this one is still sending."""
    talk = Talk(unread=True)
    talk.exchange.fill()
    task = talk.read()
    talk.exchange.feed(b"hel")
    talk.exchange.empty()
    talk.loop.turn()
    assert not task.done()
    talk.exchange.feed(b"lo")
    talk.exchange.complete()
    talk.loop.turn()
    assert task.result() == b"hello"


def test_reading_that_is_cancelled_leaves_nothing() -> None:
    """No timer, and nobody who would be woken."""
    talk = Talk(unread=True)
    task = talk.read()
    task.cancel()
    talk.loop.turn()
    assert task.cancelled()
    assert talk.loop.timers == []
    talk.exchange.complete()


# Room.


def test_whoever_waits_for_room_waits_as_long_as_there_is_none() -> None:
    """And not at all where there is some."""
    talk = Talk()
    assert talk.waits().done()
    talk.exchange.fill()
    task = talk.waits()
    assert not task.done()
    talk.exchange.complete()
    talk.loop.turn()
    assert not task.done(), "a body that ends makes no room"
    talk.exchange.empty()
    talk.loop.turn()
    assert task.result() is None
    assert not talk.exchange.full


def test_room_that_is_gone_again_is_none() -> None:
    """Before whoever waited had his turn, somebody else took it."""
    talk = Talk()
    talk.exchange.fill()
    task = talk.waits()
    talk.exchange.empty()
    talk.exchange.fill()
    talk.loop.turn()
    assert not task.done()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("error", [CallerLeft(), SlowReader(30.0)])
def test_a_caller_who_leaves_makes_no_room(error: GatewayError, before: bool) -> None:
    """He has not taken up what waits for him, and how he left is told to who waits for that."""
    talk = Talk()
    talk.exchange.begin(200, b"")
    talk.exchange.fill()
    if before:
        talk.exchange.depart(error)
    task = talk.waits()
    talk.exchange.depart(error)
    talk.loop.turn()
    assert task.exception() is error


def test_room_is_told_once_for_each_time_that_it_was_asked_for() -> None:
    """Who wants to know again asks again."""
    talk, told = Talk(), list[int]()
    talk.exchange.begin(200, b"")
    talk.exchange.fill()
    talk.exchange.when_room(lambda: told.append(1))
    assert told == []
    talk.exchange.empty()
    assert told == [1]
    talk.exchange.fill()
    talk.exchange.empty()
    assert told == [1]


def test_who_asks_for_room_from_within_is_told_of_the_next() -> None:
    """Room was made, and at once filled."""
    talk, told = Talk(), list[int]()

    def refill() -> None:
        told.append(1)
        talk.exchange.fill()
        talk.exchange.when_room(lambda: told.append(2))

    talk.exchange.fill()
    talk.exchange.when_room(refill)
    talk.exchange.empty()
    assert told == [1]
    assert talk.exchange.full
    talk.exchange.empty()
    assert told == [1, 2]


def test_an_answer_that_has_ended_tells_nobody_of_room() -> None:
    """Whoever asked has nothing to write any more."""
    talk, told = Talk(), list[int]()
    talk.exchange.begin(200, b"")
    talk.exchange.fill()
    talk.exchange.when_room(lambda: told.append(1))
    talk.exchange.end()
    talk.exchange.empty()
    assert told == []


# Leaving.


def test_a_caller_who_leaves_is_noticed_once() -> None:
    """By whoever asked to be told; the first way in which he left counts."""
    talk, told = Talk(), list[GatewayError]()
    talk.exchange.when_departed(told.append)
    assert talk.exchange.departed is None
    first = SlowReader(30.0)
    for error in (first, CallerLeft()):
        talk.exchange.depart(error)
    assert told == [first]
    assert talk.exchange.departed is first


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_after_his_answer_has_not_left_it(stream: bool) -> None:
    """The answer is complete: nobody is told."""
    talk, told = Talk(), list[GatewayError]()
    talk.exchange.when_departed(told.append)
    closing(talk, stream=stream)
    talk.exchange.depart(CallerLeft())
    assert told == []
    assert talk.exchange.departed is None


@pytest.mark.parametrize("begun", [True, False])
def test_nothing_is_written_to_a_caller_who_has_left(begun: bool) -> None:
    """A stream just comes to its end."""
    talk = Talk()
    talk.exchange.begin(200, b"")
    if begun:
        talk.exchange.write(b"hello")
    before = list(talk.line.writes)
    talk.exchange.depart(CallerLeft())
    talk.exchange.write(b"world")
    talk.exchange.end(b"!")
    assert talk.line.writes == before
    assert talk.exchange.ended
    assert talk.line.answers == 1


def test_an_exchange_prints_its_story() -> None:
    """What was asked, and how far it has come; of a long path only some."""
    talk = Talk(a_head("GET", path="/" + "x" * 1000))
    assert repr(talk.exchange) == f"<Exchange GET /{'x' * 63} open>"
    talk.exchange.begin(200, b"")
    assert repr(talk.exchange).endswith(" being answered>")
    talk.exchange.end()
    assert repr(talk.exchange).endswith(" answered>")
