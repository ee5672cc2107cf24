"""Many open streams in one process: each gets its own events in their order, a live call is served, memory is bounded.

As many as the limit of open files allows, up to a thousand; `benchmarks/` has the run with ten thousand and a process
for each side.
"""

import asyncio
import gc
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests import soak_processes as processes
from tests import vllm_wire as wire
from tests.engines import scripted
from tests.harness import CHAT, bearer, begun, gateway, hello
from tests.wire_client import WireClient, WireStream, payload

pytestmark = pytest.mark.anyio

# The caller's socket and its other end, and the same between gateway and engine.
FILES_PER_STREAM = 4
SPARE_FILES = 400
MOST_STREAMS = 1000
ROUNDS = 6
# Of a gateway that is flooded. It keeps 256 to itself, and half of the rest for engines.
FEW_FILES = 400
# So many are opened before we wait for the engine to have seen them.
AT_ONCE = 50
# Of all four ends together, as they live in this process. A read buffer of 256 KiB for each would be twice this.
MOST_BYTES_PER_STREAM = 128 * 1024


@pytest.fixture(
    params=[pytest.param(("asyncio", {"use_uvloop": use}), id="uvloop" if use else "asyncio") for use in (False, True)]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The gateway runs on uvloop, and must not depend on it."""
    return request.param


@pytest.fixture
def streams() -> Iterator[int]:
    """As many streams as there may be files for; the limit is raised meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files = 2**20 if hard == resource.RLIM_INFINITY else hard
    yield min(MOST_STREAMS, (files - SPARE_FILES) // FILES_PER_STREAM)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Listener:
    """One caller of a stream, and what he has heard."""

    def __init__(self, stream: WireStream) -> None:
        self._stream = stream
        self._own = (stream.header("x-request-id") or "").encode()
        self.words: list[str] = []

    async def hear(self, events: int) -> None:
        """Reads that many events, each of which names this very call."""
        for _ in range(events):
            event = await self._stream.event()
            assert self._own in event, (self._own, event)
            for choice in payload(event)["choices"]:
                self.words.append(choice["delta"].get("content", ""))

    async def hear_out(self) -> None:
        """Reads to the end, which is the right one."""
        *events, done = await self._stream.events()
        assert (done, self._stream.terminated) == (wire.DONE, True)
        for event in events:
            assert self._own in event
            self.words += [choice["delta"].get("content", "") for choice in payload(event)["choices"]]


async def test_a_thousand_streams_lose_nothing_and_cost_little(streams: int) -> None:
    """All open at once, an event now and then; calls between them are answered, and afterwards nothing is left."""
    words = [f" w{number}" for number in range(ROUNDS + 3)]
    files = open_files()
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness, AsyncExitStack() as up:
        engine = engines["a"]
        engine.says(*words)
        assert (await harness.post()).status == 200
        before_bytes = resident_bytes()
        engine.steps(calls=streams)
        clients = []
        for number in range(streams):
            clients.append(await up.enter_async_context(harness.sent(hello(stream=True))))
            if number % AT_ONCE == 0:
                await engine.saw(2 + number, within_s=30)
        await engine.saw(1 + streams, within_s=30)
        engine.step()
        listeners = [Listener(await begun(client)) for client in clients]
        for number in range(ROUNDS):
            prompts = ["x" * 2_000_000, *["hello"] * 4]
            live = asyncio.gather(*[harness.post(hello(prompt, stream=bool(number % 2))) for prompt in prompts])
            await asyncio.gather(*[listener.hear(1) for listener in listeners])
            assert {reply.status for reply in await live} == {200}
            engine.step()
        assert harness.metric("pagegate_running_calls") == streams
        assert harness.replica("a").in_flight == streams
        each_bytes = (resident_bytes() - before_bytes) / streams
        engine.step(len(words))
        await asyncio.gather(*[listener.hear_out() for listener in listeners])
        assert {"".join(listener.words) for listener in listeners} == {"".join(words)}
        assert each_bytes < MOST_BYTES_PER_STREAM
        await harness.until_idle()
        assert {line["outcome"] for line in harness.calls} == {"ok"}
        assert {line["completion_tokens"] for line in harness.calls} == {len(words)}
        assert len(harness.calls) == engine.served == 1 + streams + 5 * ROUNDS
        assert harness.metric("pagegate_running_calls") == engine.running == 0
    gc.collect()
    # The event loop itself may have opened one or two for good.
    assert open_files() <= files + 4


async def test_all_callers_of_many_streams_may_leave_at_once(streams: int) -> None:
    """A disconnect storm: every engine call ends, and the next caller is served as ever."""
    async with scripted("a") as engines, gateway({"a": engines["a"].url}) as harness:
        engine = engines["a"]
        engine.stalls_after(2)
        async with AsyncExitStack() as up:
            for number in range(streams // 2):
                await up.enter_async_context(harness.sent(hello(stream=True)))
                if number % AT_ONCE == 0:
                    await engine.saw(1 + number, within_s=30)
            await engine.saw(streams // 2, within_s=30)
        await engine.idle(within_s=30)
        await harness.until_idle()
        assert {line["outcome"] for line in harness.calls} == {"cancelled"}
        assert (engine.aborted, harness.replica("a").in_flight) == (streams // 2, 0)
        engine.behaves()
        assert (await harness.post()).status == 200


async def test_many_callers_who_do_not_read_cost_no_more_than_what_may_wait_for_each() -> None:
    """Each engine would say 80 MB; each is held back, and when his time is up each caller loses his stream."""
    many = 40
    async with (
        scripted("a") as engines,
        gateway({"a": engines["a"].url}, server={"slow_reader_s": 0.5}) as harness,
        AsyncExitStack() as up,
    ):
        engine = engines["a"]
        engine.max_model_len = 10_000
        engine.says("word " * 1600, forever=True)
        before_bytes = resident_bytes()
        for _ in range(many):
            client = await up.enter_async_context(WireClient(harness.url, receive_buffer_bytes=4096))
            await client.send("POST", CHAT, json=hello(stream=True), headers=bearer())
        await engine.saw(many)
        async with asyncio.timeout(20):
            await harness.log.until(lambda: harness.log.text.count(b'"event":"call"') >= many)
        each_bytes = (resident_bytes() - before_bytes) / many
        assert {(line["outcome"], line["error"]) for line in harness.calls} == {("severed", "SlowReader")}
        assert each_bytes < 2**20
        await engine.idle()
        assert engine.aborted == many
        assert harness.replica("a").health.value == "up"
        engine.says("hello")
        assert (await harness.post(hello(stream=True))).body.endswith(wire.DONE)


async def test_a_flood_of_silent_connections_is_survived() -> None:
    """More than there are files for, without a word: who calls is answered, if only to come again, and then as ever."""
    async with (
        scripted("a") as engines,
        processes.gateway([engines["a"]], files=FEW_FILES) as flooded,
        AsyncExitStack() as up,
    ):
        clients = [await up.enter_async_context(WireClient(flooded.url)) for _ in range(10)]

        async def answered() -> set[int]:
            replies = [client.post(CHAT, json=hello(stream=True), headers=bearer()) for client in clients]
            return {reply.status for reply in await asyncio.gather(*replies)}

        async def flood_is_in() -> bool:
            metrics = (await clients[0].get("/metrics")).body.decode().splitlines()
            return max(float(line.split()[1]) for line in metrics if line.startswith("pagegate_connections ")) > 80

        async def all_are_served() -> bool:
            async with WireClient(flooded.url) as late:
                new = await late.post(CHAT, json=hello(), headers=bearer())
                return {new.status} | await answered() == {200}

        assert await answered() == {200}
        silent = [up.enter_context(socket.socket()) for _ in range(2 * FEW_FILES)]
        for one in silent:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", int(flooded.url.rpartition(":")[2])))
        assert await processes.until(flood_is_in)
        # While more come in, each call needs a file of its own: the engine keeps no connection.
        for _ in range(20):
            engines["a"].closes_idle()
            assert await answered() <= {200, 503}
        for one in silent:
            one.close()
        assert await processes.until(all_are_served)
    assert flooded.alarming == []
