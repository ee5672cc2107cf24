"""The benchmark's mock engine: it looks like vLLM, does what a prompt asks, and never runs more than it may."""

import re
from typing import Any

import orjson
import pytest

from benchmarks.mock_engine import Caller, Engine, Wheel
from benchmarks.script import TOKEN, TOKEN_SIZE, Behaviour, ask, plain_content, read_prompt
from benchmarks.vllm_bytes import STREAM_HEAD, Words, plain_body, usage_of
from tests.vllm_wire import recorded


def datas(stream: bytes) -> list[Any]:
    """What the events of a stream say."""
    found = re.findall(rb"data: (.*)\n\n", stream)
    return [data if data == b"[DONE]" else orjson.loads(data) for data in found]


def shape(value: Any) -> Any:
    """Keys and kinds, without what differs from call to call."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value)


def heads(reply: bytes) -> set[bytes]:
    return {line.partition(b":")[0] for line in reply.partition(b"\r\n\r\n")[0].split(b"\r\n")}


def test_a_stream_has_the_shape_of_vllms() -> None:
    """Role, a chunk a token, usage, [DONE]: the keys of a recorded stream, in their order."""
    real = recorded("stream_usage")
    words = Words(1, 2, b"m", 8, length=False, usage=usage_of(5, 8))
    ours = datas(words.role() + words.tokens_at_once() + words.closing())
    theirs = datas(real.body)
    assert heads(STREAM_HEAD) == heads(real.reply)
    for place in (0, 1, -3, -1):
        mine, other = ours[place], theirs[place]
        if isinstance(mine, dict):
            other.pop("system_fingerprint", None)
            assert list(mine) == list(other)
        assert shape(mine) == shape(other)


def test_a_stream_that_max_tokens_cuts_ends_as_vllms_does() -> None:
    """Its last token brings the finish reason."""
    words = Words(1, 2, b"m", 3, length=True, usage=None)
    *_, last, done = datas(words.role() + words.tokens_at_once() + words.closing())
    assert last["choices"][0]["finish_reason"] == "length"
    assert TOKEN.fullmatch(last["choices"][0]["delta"]["content"])
    assert done == b"[DONE]"


def test_one_by_one_and_at_once_are_the_same_bytes() -> None:
    """But for the moments."""
    words = Words(1, 2, b"m", 1200, length=True, usage=None)
    single = b"".join(words.token(place) for place in range(1, 1201))
    still = re.compile(rb"\d{14} ")
    assert still.sub(b"", words.tokens_at_once()) == still.sub(b"", single)


def test_every_chunk_is_framed_with_its_size() -> None:
    """About 200 bytes a token."""
    words = Words(1, 2, b"mock-model", 12, length=True, usage=usage_of(1, 12))
    rest = words.role() + words.tokens_at_once() + words.closing()
    sizes = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        sizes.append(int(size, 16))
        assert rest[sizes[-1] : sizes[-1] + 2] == b"\r\n"
        rest = rest[sizes[-1] + 2 :]
    assert sizes[-1] == 0
    assert 180 <= sizes[1] <= 260


def test_a_plain_reply_has_the_shape_of_vllms() -> None:
    """The keys of a recorded reply, in their order; it names its call."""
    ours = orjson.loads(plain_body(3, 4, "m", 5, 6, length=False))
    theirs = orjson.loads(recorded("chat").body)
    assert list(ours) == list(theirs)
    assert shape(ours) == shape(theirs)
    assert ours["choices"][0]["message"]["content"] == plain_content(3)


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour(2, 20, 64, 1), Behaviour(ttft_ms=7)])
def test_a_prompt_asks_for_a_behaviour(behaviour: Behaviour) -> None:
    """What a call asks for is what the engine reads, through a JSON body."""
    asked = ask("m", behaviour, stream=True, tokens=5, usage=True)
    body = orjson.loads(asked.before + b"00000123" + asked.after)
    assert read_prompt(body["messages"][-1]["content"], Behaviour()) == (123, behaviour)
    assert (body["max_tokens"], body["stream_options"]) == (5, {"include_usage": True})


def test_a_prompt_that_asks_for_nothing_gets_what_the_environment_says() -> None:
    """A call made by hand, with curl."""
    default = Behaviour.from_environment({"MOCK_ENGINE_TTFT_MS": "30", "MOCK_ENGINE_TOKENS": "4", "PATH": "x"})
    assert read_prompt("Hello", default) == (0, Behaviour(ttft_ms=30, tokens=4))


def test_a_token_is_as_long_as_the_checks_take_it_to_be() -> None:
    """They cut it out by its size."""
    words = Words(1, 2, b"m", 2, length=True, usage=None)
    (token,) = datas(words.token(1))
    assert len(token["choices"][0]["delta"]["content"]) == TOKEN_SIZE


class Wire:
    """A connection that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


def arriving(engine: Engine, *, ttft_ms: int = 0) -> tuple[Caller, Wire]:
    """A plain call that has just arrived."""
    caller, wire = Caller(engine), Wire()
    caller.transport = wire  # type: ignore[assignment]
    asked = ask("m", Behaviour(ttft_ms=ttft_ms), stream=False, tokens=2)
    caller.url = b"/v1/chat/completions"
    body = asked.before + b"00000001" + asked.after
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: e\r\ncontent-length: %d\r\n\r\n" % len(body)
    caller.data_received(head + body)
    return caller, wire


class StillWheel(Wheel):
    """Nobody's turn comes."""

    def at(self, tick: int, play: Any) -> None:
        """It waits for ever."""


def test_no_more_calls_run_than_there_are_places() -> None:
    """Further ones wait; one that leaves makes room for the next, running or waiting."""
    engine = Engine(StillWheel(), slots=2)
    callers = [arriving(engine, ttft_ms=50)[0] for _ in range(4)]
    assert repr(engine) == "<Engine 2 running, 2 waiting, 0 done, 0 cancelled>"
    callers[2].connection_lost(None)
    assert repr(engine) == "<Engine 2 running, 1 waiting, 0 done, 1 cancelled>"
    callers[0].connection_lost(None)
    assert repr(engine) == "<Engine 2 running, 0 waiting, 0 done, 2 cancelled>"
    assert engine.stats()["cancelled"] == 2


def test_a_caller_who_leaves_after_the_reply_cancels_nothing() -> None:
    """Only calls under way count."""
    engine = Engine(StillWheel())
    caller, wire = arriving(engine)
    caller.connection_lost(None)
    assert wire.written.startswith(b"HTTP/1.1 200 OK")
    assert repr(engine) == "<Engine 0 running, 0 waiting, 1 done, 0 cancelled>"


def test_a_reset_ends_what_is_under_way() -> None:
    """What one measurement left does not spoil the next."""
    engine = Engine(StillWheel(), slots=1)
    (caller, wire), _ = arriving(engine, ttft_ms=50), arriving(engine, ttft_ms=50)
    engine.reset()
    caller.connection_lost(None)
    assert wire.aborted
    assert repr(engine) == "<Engine 0 running, 0 waiting, 0 done, 0 cancelled>"
