"""What a call held is gone when the call is, however it ended, and without the help of the garbage collector."""

import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from gateway.call import Call
from tests.engines import ScriptedEngine, scripted
from tests.harness import CHAT, Harness, bearer, begun, gateway, hello
from tests.wire_client import WireClient, message

pytestmark = pytest.mark.anyio

Ending = Callable[[Harness, ScriptedEngine], Awaitable[object]]


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with scripted("a") as engines:
        yield engines["a"]


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def calls_in_memory() -> list[Call]:
    return [found for found in gc.get_objects() if type(found) is Call]


async def served(harness: Harness, engine: ScriptedEngine) -> None:
    assert (await harness.post(hello(stream=True))).status == 200


async def served_token_by_token(harness: Harness, engine: ScriptedEngine) -> None:
    engine.steps()
    async with harness.sent(hello(stream=True)) as client:
        await engine.saw()
        engine.step()
        stream = await begun(client)
        await stream.event()
        engine.step(20)
        assert (await stream.events())[-1] == b"data: [DONE]\n\n"


async def engine_dies_in_a_stream(harness: Harness, engine: ScriptedEngine) -> None:
    engine.dies_after(2)
    engine.steps()
    async with harness.sent(hello(stream=True)) as client:
        await engine.saw()
        engine.step()
        stream = await begun(client)
        await stream.event()
        engine.step(20)
        assert b'"error"' in (await stream.events())[-1]


async def engines_are_busy(harness: Harness, engine: ScriptedEngine) -> None:
    engine.fails_with(503, b"{}")
    assert (await harness.post()).status == 503


async def engine_breaks(harness: Harness, engine: ScriptedEngine) -> None:
    engine.fails_with(500, b"{}")
    assert (await harness.post()).status == 503


async def second_attempt_succeeds(harness: Harness, engine: ScriptedEngine) -> None:
    engine.fails_with(500, b"{}", calls=1)
    assert (await harness.post()).status == 200


async def engine_rejects(harness: Harness, engine: ScriptedEngine) -> None:
    engine.fails_with(400, b'{"error":{"message":"no"}}')
    assert (await harness.post()).status == 400


async def caller_leaves_while_the_engine_works(harness: Harness, engine: ScriptedEngine) -> None:
    engine.holds()
    async with harness.sent() as client:
        await engine.saw()
        client.leave()
        await harness.ended()


async def caller_leaves_in_a_stream(harness: Harness, engine: ScriptedEngine) -> None:
    engine.steps()
    async with harness.sent(hello(stream=True)) as client:
        await engine.saw()
        engine.step()
        await (await begun(client)).event()
        client.leave()
        await harness.ended()


async def caller_leaves_in_the_middle_of_his_body(harness: Harness, engine: ScriptedEngine) -> None:
    call = message("POST", CHAT, json=hello(), headers=bearer())
    async with WireClient(harness.url) as client:
        await client.send_raw(call[:-5])
        await client.send_raw(b"")
        client.leave()
        await harness.ended()


ENDINGS = (
    served,
    served_token_by_token,
    engine_dies_in_a_stream,
    engines_are_busy,
    engine_breaks,
    second_attempt_succeeds,
    engine_rejects,
    caller_leaves_while_the_engine_works,
    caller_leaves_in_a_stream,
    caller_leaves_in_the_middle_of_his_body,
)


@pytest.mark.parametrize("ending", ENDINGS)
async def test_nothing_of_a_call_outlives_it(engine: ScriptedEngine, ending: Ending) -> None:
    """A body is megabytes, and circles of a few objects are found after thousands of calls."""
    async with gateway({"a": engine.url}, upstream={"backoff_s": 0.001}) as harness:
        harness.failures_expected = True
        with without_collector():
            others = {id(call) for call in calls_in_memory()}
            await ending(harness, engine)
            await harness.until_idle()
            await harness.serving._public.callers.gone(5)
            assert [call for call in calls_in_memory() if id(call) not in others] == []
