"""Engines that fail after the first byte was passed on: the caller is told, and nothing looks like success."""

from collections.abc import Callable
from typing import Any

import pytest

from tests import vllm_wire as wire
from tests.engines import ScriptedEngine, scripted
from tests.harness import Harness, begun, gateway, hello
from tests.wire_client import WireReply, payload

pytestmark = pytest.mark.anyio

TOKENS = ("one", " two", " three", " four")


def broken(reply: WireReply) -> list[Any]:
    """The payloads before the error that a stream ended in; there is no `[DONE]`, and the framing is whole."""
    assert (reply.status, reply.complete) == (200, True)
    *before, last = [payload(event + b"\n\n") for event in reply.body.removesuffix(b"\n\n").split(b"\n\n")]
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert (last["error"]["type"], last["error"]["code"]) == ("service_unavailable_error", "server_is_overloaded")
    assert b"[DONE]" not in reply.body
    assert reply.body.count(b'"error"') == 1
    return before


def spoken(chunks: list[Any]) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


async def assert_severed(harness: Harness, error: str, completion_tokens: int) -> None:
    """The ledger has what was delivered, and the replica is looked at again at once."""
    line = await harness.ended()
    assert (line["outcome"], line["error"], line["level"]) == ("severed", error, "warning")
    assert (line["attempts"], line["measured"]) == (1, error == "ReplyIncomplete")
    assert line["completion_tokens"] >= completion_tokens
    assert line["prompt_tokens"] > 0
    assert harness.metric("pagegate_calls_total", outcome="severed") == 1
    assert harness.metric("pagegate_errors_total", error=error) == 1


BREAKS: dict[str, tuple[Callable[[ScriptedEngine], None], str]] = {
    "is killed": (lambda engine: engine.dies_after(3), "EngineLost"),
    "closes": (lambda engine: engine.dies_after(3, "fin"), "EngineLost"),
    "loses its core": (lambda engine: engine.error_event_after(3), "EngineBroke"),
    "reports an error of another shape": (
        lambda engine: engine.error_event_after(3, {"error": "EngineDeadError at http://10.9.8.7"}),
        "EngineBroke",
    ),
    "ends without a finish": (lambda engine: engine.ends_without_finish(), "ReplyIncomplete"),
    "stalls": (lambda engine: engine.stalls_after(3), "EngineStalled"),
}


@pytest.mark.parametrize(("breaks", "error"), BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("others", [0, 1])
async def test_a_stream_that_breaks_off_ends_in_an_error(
    breaks: Callable[[ScriptedEngine], None], error: str, others: int
) -> None:
    """What came is passed on, then an error event; no other replica is asked, as two answers do not make one."""
    async with scripted("a", "b") as engines:
        engine = engines["a"]
        engine.says(*TOKENS)
        engines["b"].busy(running=1)
        breaks(engine)
        urls = {name: engines[name].url for name in ("a", "b")[: others + 1]}
        async with gateway(urls, upstream={"gap_timeout_s": 0.1}, fleet={"probe_interval_s": 4}) as harness:
            looked_at = engine.paths["GET /health"]
            reply = await harness.post(hello(stream=True))
            assert spoken(broken(reply)).startswith("one two")
            assert b"10.9.8.7" not in reply.body
            await assert_severed(harness, error, 2)
            await engine.calls[0].ended()
            assert engines["b"].calls_seen == 0
            if error != "EngineStalled":
                await engine.until(lambda: engine.paths["GET /health"] > looked_at, within_s=2)
            # It was one call that broke, not the engine for ever.
            engine.behaves()
            assert (await harness.post(hello(stream=True))).body.endswith(wire.DONE)


async def test_a_stream_that_ends_without_finish_and_without_end_mark_is_incomplete() -> None:
    """A clean end of the engine's message is not the end of a reply."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].ends_without_finish()
        engines["a"].omits_done()
        broken(await harness.post(hello(stream=True)))
        await assert_severed(harness, "ReplyIncomplete", 2)


async def test_a_reply_of_two_choices_needs_two_finishes() -> None:
    """One choice that ended says nothing of the other."""
    finish = b'data: {"choices":[{"index":%d,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].sends_events(finish % 0, wire.DONE)
        broken(await harness.post(hello(stream=True, n=2)))
        engines["a"].sends_events(finish % 0, finish % 1, wire.DONE)
        assert (await harness.post(hello(stream=True, n=2))).body.endswith(wire.DONE)


async def test_a_missing_end_mark_is_added() -> None:
    """Where every choice has said why it ended, the reply is complete, and SDKs wait for the mark."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].omits_done()
        reply = await harness.post(hello(stream=True))
        assert reply.body.endswith(b"\n\ndata: [DONE]\n\n")
        assert reply.body.count(b"[DONE]") == 1
        assert harness.calls[0]["outcome"] == "ok"


async def test_a_missing_usage_is_estimated_and_marked() -> None:
    """Nobody goes free because an engine forgot to count."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].says(*TOKENS)
        engines["a"].omits_usage()
        for stream in (True, False):
            reply = await harness.post(hello(stream=stream))
            assert reply.status == 200
            line = harness.calls[-1]
            assert (line["outcome"], line["measured"]) == ("ok", False)
            assert line["prompt_tokens"] > 0
        assert harness.calls[0]["completion_tokens"] >= len(TOKENS)


async def test_a_usage_that_is_told_twice_is_charged_once() -> None:
    """And the caller sees it as often as the engine told it, or not at all."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].says(*TOKENS)
        engines["a"].doubles_usage()
        unasked = await harness.post(hello(stream=True))
        asked = await harness.post(hello(stream=True, stream_options={"include_usage": True}))
        assert (unasked.body.count(b'"usage"'), asked.body.count(b'"usage"')) == (0, 2)
        assert [line["completion_tokens"] for line in harness.calls] == [4, 4]


async def test_an_engine_that_only_pings_has_stalled() -> None:
    """Comments are passed on; they prove that a socket is alive, not that tokens are made."""
    comments = [wire.chunk(wire.KEEP_ALIVE)] * 50
    event = wire.chunk(b'data: {"choices":[{"index":0,"delta":{"content":"one two"}}]}\n\n')
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, upstream={"gap_timeout_s": 0.1}) as harness,
    ):
        engines["a"].sends_raw([wire.stream_head() + event, *comments])
        engines["a"].paces(gap_s=0.02)
        reply = await harness.post(hello(stream=True))
        assert reply.body.count(b": keep-alive") < 20
        assert (await harness.ended())["error"] == "EngineStalled"
        await engines["a"].calls[0].ended()
        assert engines["a"].calls[0].aborted


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_has_a_deadline_as_a_whole(stream: bool) -> None:
    """Before the first byte it is a status, after it an event; the engine is let go either way."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, upstream={"call_timeout_s": 0.15}) as harness,
    ):
        engine = engines["a"]
        engine.says(*TOKENS)
        engine.stalls_after(2 if stream else -1)
        reply = await harness.post(hello(stream=stream))
        if stream:
            assert spoken(broken(reply)) == "one"
        else:
            assert (reply.status, reply.json["error"]["code"]) == (503, "server_is_overloaded")
            assert reply.header("retry-after") == "1"
        line = await harness.ended()
        assert line["error"] in ("CallTimedOut", "TimedOut")
        await engine.calls[0].ended()
        assert engine.calls[0].aborted
        assert harness.replica("a").health.value == "up"


async def test_an_event_without_end_is_not_kept() -> None:
    """An event larger than `upstream.max_reply_bytes` is given up before memory is."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, upstream={"max_reply_bytes": 2048}) as harness,
    ):
        first = b'data: {"choices":[{"index":0,"delta":{"content":"one two"}}]}\n\n'
        engines["a"].sends_events(first, b"data: " + b"x" * 3000, b"x" * 3000)
        broken(await harness.post(hello(stream=True)))
        await assert_severed(harness, "EngineBroke", 1)


async def test_what_is_no_json_is_passed_on_as_it_is() -> None:
    """A caller's SDK may know what we do not; the bytes are the engine's."""
    odd = (
        b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n',
        b"data: {truncated\n\n",
        b"data\n\n",
        b"unknown: field\n\n",
        b"data: \xff\xfe\x00\n\n",
        b"data: [1,2]\n\n",
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        wire.DONE,
    )
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].sends_events(*odd)
        reply = await harness.post(hello(stream=True))
        assert reply.body == b"".join(odd)
        assert harness.calls[0]["outcome"] == "ok"


async def test_what_follows_the_end_mark_is_dropped() -> None:
    """Nothing comes after `[DONE]`, and the connection can still be used."""
    finish = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].sends_events(finish + wire.DONE + finish, finish, calls=1)
        reply = await harness.post(hello(stream=True))
        assert reply.body == finish + wire.DONE
        assert (await harness.post(hello(stream=True))).status == 200
        assert engines["a"].calls[0].outcome == "complete"


async def test_a_crash_ends_every_stream_on_the_engine_and_none_on_others() -> None:
    """SIGKILL of one engine: its callers get an error each, the other's callers their replies."""
    async with (
        scripted("a", "b") as engines,
        gateway({name: engine.url for name, engine in engines.items()}) as harness,
    ):
        for engine in engines.values():
            engine.says(*TOKENS)
            engine.steps()
        async with (
            harness.sent(hello(stream=True)) as one,
            harness.sent(hello(stream=True)) as two,
        ):
            for engine in engines.values():
                await engine.saw()
                engine.step(2)
            streams = {(await begun(client)).header("x-pagegate-replica"): client for client in (one, two)}
            assert set(streams) == {"a", "b"}
            engines["a"].crashes()
            await harness.ended()
            engines["b"].step(20)
            await harness.ended(2)
        assert sorted(line["outcome"] for line in harness.calls) == ["ok", "severed"]
        assert {line["replica"]: line["outcome"] for line in harness.calls} == {"a": "severed", "b": "ok"}
        await harness.until_down("a")
        engines["b"].behaves()
        assert (await harness.post()).header("x-pagegate-replica") == "b"
