"""gateway/relay/relay.py: an answer becomes a reply, and what was delivered is known at every moment of it."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from gateway.call import Call, Delivery, Streamed, Usage, Whole
from gateway.errors import EngineBroke, EngineFailed, EngineLost, ReplyIncomplete, Severed
from gateway.fleet.replica import Replica
from gateway.http1 import Address
from gateway.relay.relay import relay
from gateway.wire.events import DONE
from tests.unit.calls import a_call

pytestmark = pytest.mark.anyio

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'


def call(*, stream: bool, choices: int = 1) -> Call:
    return a_call(stream=stream, choices=choices)


@dataclass
class Reads:
    """An engine's answer that gives these reads one after the other, each a second after the one before."""

    reads: list[bytes | Severed]
    replica: Replica = field(default_factory=lambda: Replica("a", "m", Address("127.0.0.1", 1)))
    first: bytes = b""
    now_s: float = 100.0
    finished: bool = False

    async def read(self) -> bytes:
        self.now_s += 1.0
        given = self.reads.pop(0) if self.reads else b""
        if isinstance(given, Severed):
            raise given
        return given

    async def finish(self) -> None:
        self.finished = True

    def close(self) -> None: ...


@dataclass
class Relayed:
    """A reply under way, and everything the relay told on the way."""

    answer: Reads
    delivery: Delivery
    gaps: list[float]
    content: Whole | Streamed

    @property
    def chunks(self) -> AsyncGenerator[bytes, None]:
        assert isinstance(self.content, Streamed)
        return self.content.chunks


def relayed(first: bytes, *reads: bytes | Severed, stream: bool = True, limit: int = 1000, choices: int = 1) -> Relayed:
    answer, delivery, gaps = Reads(list(reads), first=first), Delivery(), list[float]()
    content = relay(answer, call(stream=stream, choices=choices), delivery, lambda: answer.now_s, gaps.append, limit)
    return Relayed(answer, delivery, gaps, content)


async def test_a_stream_passes_read_by_read() -> None:
    """One chunk for the caller for each read of the engine, however many events it held."""
    under_way = relayed(TOKEN, TOKEN * 3, TOKEN + STOP, USAGE + DONE)
    assert [chunk async for chunk in under_way.chunks] == [TOKEN, TOKEN * 3, TOKEN + STOP, DONE]
    assert under_way.answer.finished
    assert under_way.delivery == Delivery(
        Usage(7, 2), events=6, complete=True, first_at_s=100.0, last_at_s=103.0, finish_reasons=["stop"]
    )
    assert under_way.gaps == [1.0, 1.0, 1.0]


async def test_a_read_without_a_whole_event_sends_nothing() -> None:
    """Nothing is sent for the sake of sending; an empty chunk could end a stream."""
    under_way = relayed(TOKEN[:20], TOKEN[20:], STOP[:-1], STOP[-1:] + USAGE, DONE)
    assert [chunk async for chunk in under_way.chunks] == [TOKEN, STOP, DONE]


async def test_a_stream_without_an_end_mark_gets_one() -> None:
    """Every choice was finished and the connection ended in order."""
    under_way = relayed(TOKEN + STOP + USAGE)
    assert [chunk async for chunk in under_way.chunks] == [TOKEN + STOP, DONE]
    assert under_way.delivery.complete


async def test_a_reply_is_complete_only_once_its_last_byte_was_taken() -> None:
    """A caller who leaves before he took the end mark did not get the whole reply; one who took it did."""
    for last_read in ([DONE], []):
        under_way = relayed(TOKEN + STOP, *last_read)
        assert await anext(under_way.chunks) == TOKEN + STOP
        assert await anext(under_way.chunks) == DONE
        assert not under_way.delivery.complete
        assert [chunk async for chunk in under_way.chunks] == []
        assert under_way.delivery.complete


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
async def test_a_reply_that_broke_off_raises_after_what_was_whole(
    reads: list[bytes | Severed], passed: int, fault: type[Severed]
) -> None:
    """All whole events pass, then the fault is raised: never a clean end."""
    first, *rest = reads
    assert isinstance(first, bytes)
    under_way = relayed(first, *rest)
    given = []
    with pytest.raises(fault):
        async for chunk in under_way.chunks:
            given.append(chunk)  # What came before the fault is what is asked for.
    assert given == [TOKEN] * passed
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
async def test_a_whole_reply_is_the_engines_document(document: Any, usage: Usage | None, reasons: list[str]) -> None:
    """Byte for byte, whatever is in it; what it says of itself is noted where it can be used."""
    body = orjson.dumps(document) + b" \n"
    under_way = relayed(body, stream=False)
    assert under_way.content == Whole(body)
    assert under_way.delivery.usage == usage
    assert under_way.delivery.finish_reasons == reasons
    assert under_way.delivery.first_at_s == 100.0
    assert not under_way.delivery.complete, "the caller has nothing yet"


async def test_a_whole_reply_without_usage_is_counted_by_its_length() -> None:
    """An engine that does not tell what a reply took does not make it free."""
    document = {"choices": [{"message": {"content": "word " * 400}, "finish_reason": "stop"}]}
    delivery = relayed(orjson.dumps(document), stream=False).delivery
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
async def test_a_whole_reply_that_does_not_say_why_it_ended_is_no_success(choices: Any) -> None:
    """As in a stream: success needs the finish reason of every choice."""
    with pytest.raises(EngineFailed):
        relayed(orjson.dumps({"choices": choices}), stream=False, choices=2)


@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_a_whole_reply_that_the_engine_cut_off_is_no_success(reason: str) -> None:
    """vLLM finishes calls with `abort` when it shuts down: nothing was passed on, so it is an honest status."""
    body = orjson.dumps({"choices": [{"finish_reason": reason}], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})
    with pytest.raises(EngineFailed):
        relayed(body, stream=False)
