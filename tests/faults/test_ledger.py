"""Everything at once: engines that fail in every way, callers of every kind; and afterwards the books are right."""

import asyncio
import gc
import os
import random
from collections import Counter

import pytest

from tests import vllm_wire as wire
from tests.engines import ScriptedEngine, scripted
from tests.harness import Harness, begun, gateway, hello, key
from tests.wire_client import WireReply

pytestmark = pytest.mark.anyio

CALLS = 300
TROUBLES = (
    lambda engine: engine.dies_before_headers(calls=1),
    lambda engine: engine.dies_after_headers("fin", calls=1),
    lambda engine: engine.dies_after(2, calls=1),
    lambda engine: engine.fails_with(500, calls=1),
    lambda engine: engine.overflows(calls=1),
    lambda engine: engine.error_event_after(2, calls=1),
    lambda engine: engine.omits_done(calls=1),
    lambda engine: engine.omits_usage(calls=1),
    lambda engine: engine.ends_without_finish(calls=1),
    lambda engine: engine.closes_idle(),
    lambda engine: None,
    lambda engine: None,
)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def told(reply: WireReply, stream: bool) -> str:
    """What a caller was told: `ok`, `error`; anything else is a reply that looks like what it is not."""
    if not reply.complete:
        return "cut off"
    if reply.status != 200:
        return "error" if set(reply.json["error"]) == {"message", "type", "param", "code"} else "nonsense"
    if not stream:
        return "ok" if reply.json["choices"][0]["finish_reason"] else "nonsense"
    ended, failed = reply.body.endswith(wire.DONE), b'{"error":{' in reply.body
    return "ok" if ended and not failed else "error" if failed and not ended else "nonsense"


async def call(harness: Harness, engines: list[ScriptedEngine], rng: random.Random, seen: Counter[str]) -> None:
    stream, leaves = rng.random() < 0.7, rng.random() < 0.2
    rng.choice(TROUBLES)(rng.choice(engines))
    async with harness.sent(hello(stream=stream, max_tokens=rng.randint(1, 9))) as client:
        if leaves:
            for _ in range(rng.randint(0, 20)):
                await asyncio.sleep(0)
            if rng.random() < 0.5:
                await (await begun(client)).read()
            client.leave(rng.choice(("fin", "reset")))
            seen["left"] += 1
        else:
            seen[told(await client.reply(), stream)] += 1


@pytest.mark.parametrize("seed", range(3))
async def test_the_books_are_right_after_everything(seed: int) -> None:
    """Every caller got a whole answer or an explicit error, every call one record, and nothing is held any more."""
    rng, seen = random.Random(seed), Counter[str]()
    identity = {"keys": [key("tester", limits={"concurrent_calls": 30, "tokens_per_minute": 10**9})]}
    gc.collect()
    files = open_files()
    async with scripted("a", "b", "c") as engines:
        urls = {name: engine.url for name, engine in engines.items()}
        async with gateway(urls, identity=identity) as harness:
            for _ in range(CALLS // 50):
                async with asyncio.TaskGroup() as group:
                    for _ in range(50):
                        group.create_task(call(harness, [*engines.values()], rng, seen))
            await harness.until_idle()
            for engine in engines.values():
                await engine.idle()
            assert set(seen) <= {"ok", "error", "left"}, seen
            assert min(seen.values()) > 5, seen
            outcomes = Counter(line["outcome"] for line in harness.calls)
            assert outcomes.total() <= sum(seen.values())  # Who left before his call was read never made one.
            assert outcomes["ok"] >= seen["ok"]
            assert outcomes["failed"] == 0
            for line in harness.calls:
                assert (line["outcome"] == "ok") == ("error" not in line)
            charged = harness.metric("pagegate_tokens_total", kind="completion")
            assert charged == sum(line.get("completion_tokens", 0) for line in harness.calls)
            # All slots are free again: as many calls as there are slots can run at once.
            for engine in engines.values():
                engine.behaves()
            await harness.until_up()
            replies = await asyncio.gather(*[harness.post() for _ in range(30)])
            assert {reply.status for reply in replies} == {200}
    gc.collect()
    assert open_files() == files
