"""The way down of a gateway: unready first, then no more calls, then no more patience. Nothing is lost on it."""

import asyncio
from typing import Any

import pytest

from tests import vllm_wire as wire
from tests.engines import scripted
from tests.harness import CHAT, Harness, bearer, begun, gateway, hello
from tests.wire_client import WireClient, message

pytestmark = pytest.mark.anyio


@pytest.fixture(
    params=[pytest.param(("asyncio", {"use_uvloop": use}), id="uvloop" if use else "asyncio") for use in (False, True)]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The gateway runs on uvloop, and must not depend on it."""
    return request.param


async def is_refused(harness: Harness) -> bool:
    try:
        async with WireClient(harness.url):
            return False
    except ConnectionRefusedError:
        return True


async def test_load_balancers_get_time_to_notice_and_lose_nothing_in_it() -> None:
    """For `drain_delay_s` it is unready and still serves; every reply ends its connection, so that callers move."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, server={"drain_delay_s": 30}) as harness,
        WireClient(harness.url) as kept,
        asyncio.TaskGroup() as group,
    ):
        assert (await kept.post(CHAT, json=hello(), headers=bearer())).header("connection") is None
        drain = group.create_task(harness.serving.drain())
        await harness.log.until(lambda: bool(harness.log.named("draining")))
        ready = await harness.get("/readyz")
        assert (ready.status, ready.json["draining"]) == (503, True)
        assert (await harness.get("/livez")).status == 200
        for reply in (await harness.post(), await harness.post(hello(stream=True))):
            assert (reply.status, reply.complete, reply.header("connection")) == (200, True, "close")
        assert (await kept.post(CHAT, json=hello(), headers=bearer())).header("connection") == "close"
        assert await kept.read_to_end() == b""
        assert not drain.done()
        harness.serving.hurry()
        await drain
        assert await is_refused(harness)


async def test_open_streams_end_as_they_would_have_and_new_calls_are_refused() -> None:
    """The listener is closed; who still holds a connection is told to go elsewhere; the last call ends the drain."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, server={"drain_timeout_s": 30}) as harness,
        asyncio.TaskGroup() as group,
    ):
        engine = engines["a"]
        engine.says("one", " two")
        engine.steps()
        async with (
            harness.sent(hello(stream=True)) as client,
            WireClient(harness.url) as fresh,
            WireClient(harness.url) as idle,
        ):
            assert (await idle.get("/livez")).status == 200
            await engine.saw()
            engine.step(2)
            stream = await begun(client)
            drain = group.create_task(harness.serving.drain())
            assert await idle.read_to_end() == b""
            assert await is_refused(harness)
            refused = await fresh.post(CHAT, json=hello(), headers=bearer())
            assert (refused.status, refused.json["error"]["code"]) == (503, "server_is_overloaded")
            assert (refused.header("retry-after"), refused.header("connection")) == ("1", "close")
            assert not drain.done()
            engine.step(20)
            assert b"".join(await stream.events()).endswith(wire.DONE)
            await drain
        assert [line["outcome"] for line in harness.calls] == ["unserved", "ok"]
        assert harness.calls[0]["error"] == "Draining"


async def test_what_takes_too_long_is_told_so() -> None:
    """An error event for a stream, a status for what has not begun; engines are let go."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, server={"drain_timeout_s": 0.1}) as harness,
    ):
        engine = engines["a"]
        engine.stalls_after(2)
        async with harness.sent(hello(stream=True)) as streaming:
            stream = await begun(streaming)
            engine.holds()
            async with harness.sent() as waiting, WireClient(harness.url) as sending:
                await engine.saw(2)
                expecting = {**bearer(), "expect": "100-continue"}
                await sending.send_raw(message("POST", CHAT, json=hello(), headers=expecting).partition(b"{")[0])
                assert (await sending.read()).startswith(b"HTTP/1.1 100 ")
                await harness.serving.drain()
                events = await stream.events()
                assert events[-1].startswith(b'data: {"error":{')
                assert b"[DONE]" not in b"".join(events)
                assert stream.terminated
                for client in (waiting, sending):
                    reply = await client.reply()
                    assert (reply.status, reply.header("retry-after")) == (503, "1")
        assert [line["error"] for line in harness.calls] == ["ShuttingDown"] * 3
        await engine.idle()


async def test_a_second_word_ends_the_wait() -> None:
    """Whoever hurries a drain does not wait for its time."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, server={"drain_delay_s": 30, "drain_timeout_s": 30}) as harness,
        asyncio.TaskGroup() as group,
    ):
        engines["a"].holds()
        async with harness.sent() as client:
            await engines["a"].saw()
            drain = group.create_task(harness.serving.drain())
            await harness.log.until(lambda: bool(harness.log.named("draining")))
            harness.serving.hurry()
            assert (await client.reply()).status == 503
            await drain
        assert harness.calls[0]["error"] == "ShuttingDown"


async def test_the_listener_for_operators_stays_until_the_end() -> None:
    """Metrics of the last calls can be read, and readiness answers while calls end."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, server={"metrics_port": 0, "drain_timeout_s": 30}) as harness,
        asyncio.TaskGroup() as group,
    ):
        engines["a"].holds()
        async with harness.sent() as client:
            await engines["a"].saw()
            drain = group.create_task(harness.serving.drain())
            await harness.log.until(lambda: bool(harness.log.named("draining")))
            async with WireClient(harness.operations_url) as operations:
                assert (await operations.get("/readyz")).status == 503
                assert b"pagegate_running_calls 1.0" in (await operations.get("/metrics")).body
            engines["a"].release()
            assert (await client.reply()).status == 200
            await drain
