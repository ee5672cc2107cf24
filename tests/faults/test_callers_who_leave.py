"""Callers who leave: the engine's work for them ends at once, and nobody is blamed."""

import asyncio
from typing import Any, Literal

import pytest

from tests import vllm_wire as wire
from tests.engines import ScriptedEngine, scripted
from tests.harness import CHAT, Harness, bearer, begun, gateway, hello
from tests.wire_client import WireClient, message

pytestmark = pytest.mark.anyio

How = Literal["fin", "reset"]
HOWS: tuple[How, ...] = ("fin", "reset")


@pytest.fixture(
    params=[pytest.param(("asyncio", {"use_uvloop": use}), id="uvloop" if use else "asyncio") for use in (False, True)]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The gateway runs on uvloop, and must not depend on it."""
    return request.param


async def assert_let_go(harness: Harness, engine: ScriptedEngine, completion_tokens: int = 0) -> None:
    """The engine saw it, the ledger has it, and the replica is as good as before."""
    await engine.calls[0].ended()
    assert engine.calls[0].aborted
    line = await harness.ended()
    assert (line["outcome"], line["error"], line["level"]) == ("cancelled", "CallerLeft", "info")
    assert line["completion_tokens"] >= completion_tokens
    assert harness.gate == "<Gate 0 running, 0 waiting, 0 refused, 0 shed>"
    assert engine.running == 0
    assert harness.log.named("replica_down") == []
    assert harness.replica("a").health.value == "up"
    for blame in ("fault", "unreachable", "slow", "busy"):
        assert harness.metric("pagegate_attempts_total", result=blame) == 0
    engine.behaves()
    assert (await harness.post()).status == 200


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_leaves_while_the_engine_reads_the_prompt(how: How, stream: bool) -> None:
    """Streamed or not, nothing was answered yet: the engine sees its connection close at once."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].holds()
        async with harness.sent(hello(stream=stream)) as client:
            await engines["a"].saw()
            client.leave(how)
        await harness.ended()
        assert harness.metric("pagegate_attempts_total", result="left") == 1
        assert harness.metric("pagegate_attempts_total") == 1
        await assert_let_go(harness, engines["a"])


@pytest.mark.parametrize("how", HOWS)
async def test_a_caller_who_leaves_in_the_middle_of_a_plain_reply(how: How) -> None:
    """The engine has begun its document; nobody will read it."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].stalls_after(1)
        async with harness.sent(hello()) as client:
            await engines["a"].saw()
            await engines["a"].calls[0].sent(1)
            client.leave(how)
        await assert_let_go(harness, engines["a"])


@pytest.mark.parametrize("how", HOWS)
async def test_a_caller_who_leaves_in_the_middle_of_a_stream(how: How) -> None:
    """While the engine is between two tokens: nothing has to be written to find out."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].says("word ", forever=True)
        engines["a"].steps()
        async with harness.sent(hello(stream=True)) as client:
            await engines["a"].saw()
            engines["a"].step(5)
            stream = await begun(client)
            for _ in range(5):
                await stream.event()
            client.leave(how)
        await assert_let_go(harness, engines["a"], completion_tokens=4)


@pytest.mark.parametrize("how", HOWS)
async def test_a_caller_who_leaves_a_stream_that_runs_fast(how: How) -> None:
    """In the middle of a flood of tokens, unread ones under way."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engines["a"].says("word " * 50, forever=True)
        async with harness.sent(hello(stream=True)) as client:
            stream = await begun(client)
            for _ in range(20):
                await stream.event()
            client.leave(how)
        await assert_let_go(harness, engines["a"], completion_tokens=18)


@pytest.mark.parametrize("how", HOWS)
async def test_a_caller_who_leaves_while_he_sends(how: How) -> None:
    """No engine ever hears of the call."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        whole = message("POST", CHAT, json=hello(), headers=bearer())
        async with WireClient(harness.url) as client:
            await client.send_raw(whole[:-5])
            client.leave(how)
        line = await harness.ended()
        assert (line["outcome"], line.get("model"), line.get("prompt_tokens")) == ("cancelled", None, None)
        assert engines["a"].calls == []


async def test_a_caller_who_leaves_between_two_attempts() -> None:
    """Also a pause before the next attempt ends with its caller."""
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, upstream={"backoff_s": 30, "attempts": 3}) as harness,
    ):
        engine = engines["a"]
        engine.fails_with(500, calls=1)
        engine.stalls_after(0)  # Where chance makes the pause a short one, the second attempt takes its place.
        async with harness.sent() as client:
            await engine.until(lambda: bool(engine.calls) and engine.calls[0].outcome == "complete")
            client.leave("reset")
        assert (await harness.ended())["outcome"] == "cancelled"


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_caller_who_leaves_after_the_end_mark_was_served(how: How, include_usage: bool) -> None:
    """SDKs close right after `[DONE]` and read no further: such a call is a success, and is charged as one."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engine = engines["a"]
        engine.says("one", " two")
        # The engine keeps the end of its message to itself, so that the caller is the first to close.
        engine.stalls_after(6)
        async with harness.sent(hello(stream=True, stream_options={"include_usage": include_usage})) as client:
            stream = await begun(client)
            while (await stream.event()) != wire.DONE:
                pass
            client.leave(how)
        line = await harness.ended()
        assert (line["outcome"], line.get("error"), line["completion_tokens"]) == ("ok", None, 2)
        engine.resumes()
        await engine.calls[0].ended()
        assert engine.calls[0].outcome == "complete"


async def test_a_storm_of_callers_who_leave_leaves_nothing() -> None:
    """A hundred at once, at every stage of their calls; the engines end up idle, and nothing was blamed on them."""
    async with (
        scripted("a", "b") as engines,
        gateway({name: engine.url for name, engine in engines.items()}) as harness,
    ):
        for engine in engines.values():
            engine.says("word ", forever=True)
            engine.stalls_after(1)

        async def visit(number: int) -> None:
            async with harness.sent(hello(stream=bool(number % 4))) as client:
                if number % 4:
                    stream = await begun(client)
                    if number % 3:
                        await stream.event()
                client.leave(HOWS[number % 2])

        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(visit(number))
        await harness.ended(100)
        for engine in engines.values():
            await engine.idle()
            assert engine.calls_seen == engine.aborted
        assert {line["outcome"] for line in harness.calls} == {"cancelled"}
        assert harness.metric("pagegate_replica_up") == 2
        assert harness.metric("pagegate_attempts_total", result="fault") == 0
        assert harness.metric("pagegate_attempts_total", result="unreachable") == 0
