"""A guarded call that is interrupted: the error that says why comes out of the block, and nothing after it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.errors import CallerLeft, CallTimedOut, Draining, EngineLost, GatewayError, ShuttingDown
from gateway.lifetime import Guard, OpenCalls

pytestmark = pytest.mark.anyio

FOREVER = 1000.0


async def guarded(calls: OpenCalls, body: Callable[[Guard], Awaitable[object]]) -> None:
    with Guard(calls) as guard:
        await body(guard)


async def assert_unharmed() -> None:
    """No cancellation is left over for whoever awaits next."""
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_an_interrupted_call_ends_with_the_first_reason() -> None:
    """Later ones change nothing."""
    calls = OpenCalls(FOREVER)

    async def body(guard: Guard) -> None:
        asyncio.get_running_loop().call_soon(guard.interrupt, CallerLeft())
        asyncio.get_running_loop().call_soon(guard.interrupt, ShuttingDown())
        await asyncio.Event().wait()

    with pytest.raises(CallerLeft):
        await guarded(calls, body)
    assert repr(calls) == "<OpenCalls 0>"
    await assert_unharmed()


async def test_an_interruption_that_comes_as_the_block_goes_on_still_counts() -> None:
    """What was awaited is there, but the call has not run on yet: it is interrupted where it stands."""
    calls = OpenCalls(FOREVER)
    done: list[str] = []

    async def body(guard: Guard) -> None:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()

        def both() -> None:
            arrived.set_result(None)
            guard.interrupt(CallerLeft())

        loop.call_soon(both)
        await arrived
        done.append("went on")

    with pytest.raises(CallerLeft):
        await guarded(calls, body)
    assert done == []
    await assert_unharmed()


async def test_an_interruption_after_the_end_is_none() -> None:
    """Timers and watchers that fire late find nobody."""
    calls, guards = OpenCalls(FOREVER), []

    async def body(guard: Guard) -> None:
        guards.append(guard)

    await guarded(calls, body)
    assert len(calls) == 0
    calls.interrupt_all(ShuttingDown())
    await assert_unharmed()


async def test_an_error_of_the_calls_own_is_not_hidden_by_an_interruption() -> None:
    """Where the call failed of itself while it was being interrupted, that is what happened."""
    calls = OpenCalls(FOREVER)

    async def body(guard: Guard) -> None:
        asyncio.get_running_loop().call_soon(guard.interrupt, CallerLeft())
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise EngineLost from None

    with pytest.raises(EngineLost):
        await guarded(calls, body)
    await assert_unharmed()


async def test_a_time_limit_inside_a_call_does_not_swallow_its_interruption() -> None:
    """Both at once: the limit belongs to a part of the call, the interruption to all of it."""
    calls = OpenCalls(FOREVER)

    async def body(guard: Guard) -> None:
        try:
            async with asyncio.timeout(FOREVER) as limit:
                asyncio.get_running_loop().call_soon(guard.interrupt, CallerLeft())
                limit.reschedule(0)
                await asyncio.Event().wait()
        except TimeoutError:
            await asyncio.Event().wait()

    with pytest.raises(CallerLeft):
        await guarded(calls, body)
    await assert_unharmed()


async def test_a_cancellation_from_outside_stays_one() -> None:
    """A task group that is left cancels its tasks: that is no GatewayError."""
    calls = OpenCalls(FOREVER)
    began = asyncio.Event()

    async def body(guard: Guard) -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(guarded(calls, body))
    await began.wait()
    calls.interrupt_all(CallerLeft())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(calls) == 0


async def test_a_call_has_a_deadline() -> None:
    """Its own error, after its own time."""

    async def body(guard: Guard) -> None:
        await asyncio.Event().wait()

    with pytest.raises(CallTimedOut):
        await guarded(OpenCalls(0.01), body)
    await assert_unharmed()


class Leaver:
    """A caller who may leave."""

    def __init__(self, departed: GatewayError | None = None) -> None:
        self.departed = departed
        self.told: list[Callable[[GatewayError], None]] = []

    def when_departed(self, told: Callable[[GatewayError], None]) -> None:
        self.told.append(told)


async def test_a_departure_ends_a_call() -> None:
    """With the error that says how the caller left."""
    caller = Leaver()

    async def body(guard: Guard) -> None:
        guard.watch(caller)
        asyncio.get_running_loop().call_soon(caller.told[0], CallerLeft())
        await asyncio.Event().wait()

    with pytest.raises(CallerLeft):
        await guarded(OpenCalls(FOREVER), body)
    await assert_unharmed()


async def test_a_caller_who_has_left_already_is_not_served() -> None:
    """Nobody tells of his departure a second time."""

    async def body(guard: Guard) -> None:
        guard.watch(Leaver(CallerLeft()))
        raise AssertionError("the call went on")

    with pytest.raises(CallerLeft):
        await guarded(OpenCalls(FOREVER), body)
    await assert_unharmed()


async def test_calls_are_refused_once_no_more_are_taken() -> None:
    """Those under way go on, and the last one ends the wait."""
    calls, let_go = OpenCalls(FOREVER), asyncio.Event()

    async def body(guard: Guard) -> None:
        await let_go.wait()

    async with asyncio.TaskGroup() as group:
        first = group.create_task(guarded(calls, body))
        await asyncio.sleep(0)
        calls.refuse()
        with pytest.raises(Draining):
            await guarded(calls, body)
        waiting = group.create_task(calls.until_none())
        await asyncio.sleep(0)
        assert not waiting.done()
        let_go.set()
    assert first.done()
    assert repr(calls) == "<OpenCalls 0>"
