"""Callers who do not read: what waits for them is bounded, their calls end, and others do not feel it."""

from typing import Any

import pytest

from tests.engines import scripted
from tests.harness import CHAT, bearer, begun, gateway, hello
from tests.wire_client import WireClient

pytestmark = pytest.mark.anyio


@pytest.fixture(
    params=[pytest.param(("asyncio", {"use_uvloop": use}), id="uvloop" if use else "asyncio") for use in (False, True)]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The gateway runs on uvloop, and must not depend on it."""
    return request.param


async def until_reset(client: WireClient) -> int:
    """Reads what is left of a connection that was reset; how many bytes there were."""
    read = 0
    while data := await client.read():
        read += len(data)
    assert client.ending == "reset"
    return read


async def test_a_caller_who_stops_reading_loses_his_stream() -> None:
    """The engine is held back, then let go; the connection is gone although there was more to send."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, server={"slow_reader_s": 0.2}) as harness,
    ):
        engine = engines["a"]
        engine.says("word " * 2000, forever=True)
        async with WireClient(harness.url, receive_buffer_bytes=4096) as client:
            await client.send("POST", CHAT, json=hello(stream=True), headers=bearer())
            stream = await begun(client)
            await stream.event()
            # Others go on meanwhile, on the same engine.
            assert (await harness.post(hello(stream=True, max_tokens=3))).status == 200
            assert (await harness.ended())["outcome"] == "ok"
            line = await harness.ended(2)
            assert (line["outcome"], line["error"]) == ("severed", "SlowReader")
            assert repr(harness.serving._public.callers) == "<Callers 0 connections, 0 exchanges>"
            await engine.idle()
            assert (engine.aborted, engine.served) == (1, 1)
            # Far more than a caller's share was never made: 2000 tokens would be 20 MB.
            assert engine.generated_tokens < 1000
            assert await until_reset(client) < 5_000_000
        assert harness.replica("a").health.value == "up"
        assert harness.metric("pagegate_attempts_total", result="fault") == 0


async def test_a_caller_who_does_not_read_a_long_document_holds_no_slot_and_no_memory_for_long() -> None:
    """The call is over when its reply was written; what is still unread goes when the caller's time is up."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, server={"slow_reader_s": 0.2}) as harness,
    ):
        engines["a"].says("word " * 2000, forever=True)
        async with WireClient(harness.url, receive_buffer_bytes=4096) as client:
            await client.send("POST", CHAT, json=hello(), headers=bearer())
            assert (await harness.ended())["outcome"] == "ok"
            assert repr(harness.serving._public.callers) == "<Callers 1 connections, 0 exchanges>"
            await harness.serving._public.callers.gone(5)
            assert await until_reset(client) < 20_000_000


async def test_a_caller_who_reads_late_but_in_time_gets_everything() -> None:
    """Held back is not cut off."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engine = engines["a"]
        engine.says("word " * 2000, forever=True)
        async with WireClient(harness.url, receive_buffer_bytes=4096) as client:
            await client.send("POST", CHAT, json=hello(stream=True, max_tokens=1500), headers=bearer())
            stream = await begun(client)
            # The engine's connection is full as well: it waits for us as we wait for the caller.
            await engine.until(lambda: any(play.connection.clogged for play in engine._plays.values()))
            reply = b"".join(await stream.events())
            assert stream.terminated
        assert reply.count(b'"content":"word') == 1500
        assert (await harness.ended())["outcome"] == "ok"


async def test_a_broken_stream_of_a_caller_who_does_not_read_ends_too() -> None:
    """The error event cannot be told to him; it must not be waited for."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, server={"slow_reader_s": 0.2}, upstream={"gap_timeout_s": 0.05}) as harness,
    ):
        engine = engines["a"]
        engine.says("word " * 2000, forever=True)
        engine.stalls_after(60)
        async with WireClient(harness.url, receive_buffer_bytes=4096) as client:
            await client.send("POST", CHAT, json=hello(stream=True), headers=bearer())
            await begun(client)
            line = await harness.ended()
            assert line["error"] in ("EngineStalled", "SlowReader")
            await harness.serving._public.callers.gone(5)
            await until_reset(client)
        await engine.idle()


async def test_a_shutdown_does_not_wait_for_a_caller_who_does_not_read() -> None:
    """What he was still to be told keeps nobody."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, server={"drain_timeout_s": 0.05}) as harness,
    ):
        engines["a"].says("word " * 2000, forever=True)
        async with WireClient(harness.url, receive_buffer_bytes=4096) as client:
            await client.send("POST", CHAT, json=hello(stream=True), headers=bearer())
            await begun(client)
            await harness.serving.drain()
            await harness.serving._public.callers.gone(0.1)
            assert (await harness.ended())["error"] in ("ShuttingDown", "CallerLeft")
            await until_reset(client)
        await engines["a"].idle()
