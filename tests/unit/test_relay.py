"""gateway/relay/relay.py: an answer becomes a reply, and what was delivered is known at every moment of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from gateway.call import Call, Delivery, Streamed, Usage, Whole
from gateway.errors import CallerLeft, EngineBroke, EngineFailed, EngineLost, GatewayError, ReplyIncomplete, Severed
from gateway.relay.relay import relay
from gateway.wire.events import DONE
from tests.unit.by_hand import HandLoop
from tests.unit.calls import a_call

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'


def call(*, stream: bool, choices: int = 1) -> Call:
    return a_call(stream=stream, choices=choices)


@dataclass
class Reads:
    """An engine's answer that gives these reads one after the other, each a second after the one before.

    While it is paused it gives nothing.
    """

    reads: list[bytes | Severed]
    first: bytes = b""
    document: dict[str, Any] = field(default_factory=dict)
    now_s: float = 100.0
    paused: bool = False
    pauses: int = 0
    finished: bool = False

    def __post_init__(self) -> None:
        self._resumed = asyncio.Event()

    async def pour(self, sink: Callable[[bytes], bool]) -> None:
        wanted = True
        while wanted:
            while self.paused:
                self._resumed.clear()
                await self._resumed.wait()
            self.now_s += 1.0
            given = self.reads.pop(0) if self.reads else b""
            if isinstance(given, Severed):
                raise given
            wanted = given != b"" and sink(given)

    def pause(self) -> None:
        self.paused = True
        self.pauses += 1

    def resume(self) -> None:
        self.paused = False
        self._resumed.set()

    def finish(self) -> None:
        self.finished = True


@dataclass
class Caller:
    """Takes chunks; he is full when he has `capacity` of them in hand, and reads them when he is told to."""

    capacity: int = 1_000_000
    full: bool = False
    chunks: list[bytes] = field(default_factory=list)
    departed: GatewayError | None = None
    _in_hand: int = 0
    _on_room: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self._news = asyncio.Event()

    def write(self, data: bytes) -> None:
        assert data, "an empty chunk could end a stream"
        self.chunks.append(data)
        self._in_hand += 1
        self.full = self._in_hand >= self.capacity

    def when_room(self, told: Callable[[], None]) -> None:
        self._on_room = told

    async def room(self) -> None:
        while self.full and not self.departed:
            self._news.clear()
            await self._news.wait()
        if self.departed:
            raise self.departed

    def read(self) -> None:
        """Takes up all that waits."""
        self.full, self._in_hand = False, 0
        told, self._on_room = self._on_room, None
        self._news.set()
        if told:
            told()

    def leave(self) -> None:
        self.departed = CallerLeft()
        self._news.set()


@dataclass
class Relayed:
    """A reply, and everything the relay told on the way."""

    answer: Reads
    delivery: Delivery
    gaps: list[float]
    content: Whole | Streamed
    loop: HandLoop = field(default_factory=HandLoop)

    def pour(self, caller: Caller) -> "asyncio.Task[None]":
        """The stream on its way to the caller, as far as it comes."""
        assert not isinstance(self.content, Whole)
        task = self.loop.create_task(self.content.pour(caller))
        self.loop.turn()
        return task

    def chunks(self) -> list[bytes]:
        """What a caller gets who takes everything as it comes; raises what breaks the stream off."""
        task = self.pour(caller := Caller())
        task.result()
        return caller.chunks


def relayed(
    first: bytes,
    *reads: bytes | Severed,
    stream: bool = True,
    limit: int = 1000,
    choices: int = 1,
    document: Any = None,
) -> Relayed:
    answer, delivery, gaps = Reads(list(reads), first, document or {}), Delivery(), list[float]()
    content = relay(answer, call(stream=stream, choices=choices), delivery, lambda: answer.now_s, gaps.append, limit)
    return Relayed(answer, delivery, gaps, content)


def replied(document: dict[str, Any], choices: int = 1) -> Relayed:
    """A whole reply that says this."""
    return relayed(orjson.dumps(document), stream=False, choices=choices, document=document)


def test_a_stream_passes_read_by_read() -> None:
    """One chunk for the caller for each read of the engine, however many events it held."""
    under_way = relayed(TOKEN, TOKEN * 3, TOKEN + STOP, USAGE + DONE)
    assert under_way.chunks() == [TOKEN, TOKEN * 3, TOKEN + STOP, DONE]
    assert under_way.answer.finished
    assert under_way.delivery == Delivery(
        Usage(7, 2), events=6, complete=True, first_at_s=100.0, last_at_s=103.0, finish_reasons=["stop"]
    )
    assert under_way.gaps == [1.0, 1.0, 1.0]


def test_a_read_without_a_whole_event_sends_nothing() -> None:
    """Nothing is sent for the sake of sending; an empty chunk could end a stream."""
    under_way = relayed(TOKEN[:20], TOKEN[20:], STOP[:-1], STOP[-1:] + USAGE, DONE)
    assert under_way.chunks() == [TOKEN, STOP, DONE]


def test_a_stream_without_an_end_mark_gets_one() -> None:
    """Every choice was finished and the connection ended in order."""
    under_way = relayed(TOKEN + STOP + USAGE)
    assert under_way.chunks() == [TOKEN + STOP, DONE]
    assert under_way.delivery.complete
    assert not under_way.answer.finished, "its end is the connection's end"


def test_an_answer_whose_end_came_with_its_beginning_is_not_waited_for() -> None:
    """There is nothing left to be poured."""
    under_way = relayed(TOKEN + STOP + DONE, EngineLost())
    assert under_way.chunks() == [TOKEN + STOP + DONE]
    assert under_way.answer.finished
    assert under_way.gaps == []


def test_a_reply_is_complete_only_once_its_last_byte_was_taken() -> None:
    """A caller who leaves before he took the end mark did not get the whole reply; one who took it did."""
    for last_read in ([DONE], []):
        for leaves in (False, True):
            under_way = relayed(TOKEN + STOP, *last_read)
            task = under_way.pour(caller := Caller(capacity=2))
            assert caller.chunks == [TOKEN + STOP, DONE]
            assert not task.done()
            assert not under_way.delivery.complete
            if leaves:
                caller.leave()
            else:
                caller.read()
            under_way.loop.turn()
            assert isinstance(task.exception(), CallerLeft) is leaves
            assert under_way.delivery.complete is not leaves


def test_a_full_caller_holds_the_engine_back() -> None:
    """Chunk by chunk, as he reads; and nothing is lost, doubled or out of order for it."""
    under_way = relayed(TOKEN, TOKEN * 2, TOKEN * 3, STOP, DONE)
    task = under_way.pour(caller := Caller(capacity=1))
    expected = [TOKEN, TOKEN * 2, TOKEN * 3, STOP, DONE]
    for number in range(1, len(expected)):
        assert caller.chunks == expected[:number]
        assert under_way.answer.paused
        caller.read()
        assert not under_way.answer.paused
        under_way.loop.turn()
    assert caller.chunks == expected
    assert not task.done()
    caller.read()
    under_way.loop.turn()
    task.result()
    assert under_way.delivery.complete


def test_a_caller_with_room_holds_nobody_back() -> None:
    """Pausing is for those who need it."""
    under_way = relayed(TOKEN, TOKEN, STOP + DONE)
    under_way.chunks()
    assert under_way.answer.pauses == 0


def test_the_end_of_an_answer_holds_nobody_back() -> None:
    """After the last byte there is nothing to pause, and nothing that would resume it."""
    for last in (DONE, b'data: {"error":{"message":"x"}}\n\n'):
        under_way = relayed(TOKEN + STOP, last)
        task = under_way.pour(caller := Caller(capacity=2))
        assert under_way.answer.pauses == 0
        caller.read()
        under_way.loop.turn()
        assert task.done()


@pytest.mark.parametrize(
    ("reads", "passed", "fault"),
    [
        pytest.param([TOKEN, TOKEN], 2, ReplyIncomplete, id="a clean end too early"),
        pytest.param([TOKEN, DONE], 1, ReplyIncomplete, id="an end mark too early"),
        pytest.param([TOKEN, TOKEN, EngineLost()], 2, EngineLost, id="a connection that broke"),
        pytest.param([TOKEN, b'data: {"error":{"message":"x"}}\n\n' + DONE], 1, EngineBroke, id="an error event"),
        pytest.param([TOKEN, b"data: " + b"x" * 2000], 1, EngineBroke, id="an event without end"),
        pytest.param([TOKEN, STOP[:30]], 1, ReplyIncomplete, id="half an event"),
    ],
)
def test_a_reply_that_broke_off_raises_after_what_was_whole(
    reads: list[bytes | Severed], passed: int, fault: type[Severed]
) -> None:
    """All whole events pass, then the fault is raised: never a clean end."""
    first, *rest = reads
    assert isinstance(first, bytes)
    under_way = relayed(first, *rest)
    task = under_way.pour(caller := Caller())
    assert isinstance(task.exception(), fault)
    assert caller.chunks == [TOKEN] * passed
    assert not under_way.answer.finished
    assert not under_way.delivery.complete
    assert under_way.delivery.events == passed


@pytest.mark.parametrize(
    ("document", "usage", "reasons"),
    [
        pytest.param(
            {
                "choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
            },
            Usage(7, 2, 3),
            ["stop", "length"],
            id="as it should be",
        ),
        pytest.param(
            {"choices": [{"finish_reason": "stop", "text": "\u2028 naïve"}, 7], "usage": 7},
            None,
            ["stop"],
            id="no usage",
        ),
    ],
)
def test_a_whole_reply_is_the_engines_document(document: Any, usage: Usage | None, reasons: list[str]) -> None:
    """Byte for byte, whatever is in it; what it says of itself is noted where it can be used."""
    body = orjson.dumps(document) + b" \n"
    under_way = relayed(body, stream=False, document=document)
    assert under_way.content == Whole(body)
    assert under_way.delivery.usage == usage
    assert under_way.delivery.finish_reasons == reasons
    assert under_way.delivery.first_at_s == 100.0
    assert not under_way.delivery.complete, "the caller has nothing yet"


def test_a_whole_reply_without_usage_is_counted_by_its_length() -> None:
    """An engine that does not tell what a reply took does not make it free."""
    document = {"choices": [{"message": {"content": "word " * 400}, "finish_reason": "stop"}]}
    delivery = replied(document).delivery
    assert delivery.usage is None
    assert 400 < delivery.events < 600


@pytest.mark.parametrize(
    "choices",
    [
        pytest.param([], id="no choice"),
        pytest.param(None, id="choices are null"),
        pytest.param(7, id="choices are none"),
        pytest.param([{"finish_reason": None}], id="no reason"),
        pytest.param([{"finish_reason": "stop"}], id="one choice of two"),
    ],
)
def test_a_whole_reply_that_does_not_say_why_it_ended_is_no_success(choices: Any) -> None:
    """As in a stream: success needs the finish reason of every choice."""
    with pytest.raises(EngineFailed):
        replied({"choices": choices}, choices=2)


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_whole_reply_that_the_engine_cut_off_is_no_success(reason: str) -> None:
    """vLLM finishes calls with `abort` when it shuts down: nothing was passed on, so it is an honest status."""
    with pytest.raises(EngineFailed):
        replied({"choices": [{"finish_reason": reason}], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})
