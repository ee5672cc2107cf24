"""A soak: a real gateway process before engines that die, under callers of every kind, for as long as one likes.

`python -m tests.soak --minutes 5` ends with a verdict: every reply that was complete was right, nothing is counted as
running any more, and from one plateau of load to the next memory and descriptors do not grow. Exit status 1 if not.
What a load costs is the question of `benchmarks/`; here it is only kept up.
"""

import argparse
import asyncio
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from tests.soak_callers import PATIENCE_S, Caller, Tally
from tests.soak_processes import EngineProcess, Gateway, Sample, be_an_engine, gateway, until
from tests.wire_client import WireClient

ENGINES = ("a", "b", "c")
CALLERS = 24
PLATEAUS = 3
WARM_UP_CONNECTIONS = 8000
# By how much memory may differ without anybody growing: the allocator's own breath.
NOISE_BYTES = 2 * 2**20
LEAK_BYTES_PER_CALL = 600
SPARE_FILES = 4


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen's: the median of the slopes between any two points; 0 where there are no two."""
    slopes = [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(points) for x2, y2 in points[i + 1 :] if x1 != x2]
    return statistics.median(slopes) if slopes else 0.0


def faults(samples: Sequence[Sample], tally: Tally, logged: Sequence[str]) -> list[str]:
    """What is wrong with a soak, a line each; empty if nothing is. The first plateau is for warming up."""
    found = [f"a caller was told what is not so ({len(tally.wrong)} times): {it}" for it in tally.wrong[:5]]
    found += [f"logged: {line[:300]}" for line in logged[:5]]
    rests = [sample for sample in samples if sample.resting]
    if len(rests) < PLATEAUS:
        return [*found, f"only {len(rests)} of {PLATEAUS} plateaus were reached"]
    for rest in rests:
        if rest.running or rest.in_flight:
            found.append(f"plateau {rest.plateau + 1} left {rest.running} running, {rest.in_flight} in flight")
    loaded = [sample for sample in samples if sample.plateau > 0 and not sample.resting]
    return found + memory_faults(rests, loaded) + file_faults(rests, loaded)


def memory_faults(rests: Sequence[Sample], loaded: Sequence[Sample]) -> list[str]:
    found = []
    calls = loaded[-1].calls - loaded[0].calls
    by_call = slope([(it.calls, it.rss_bytes) for it in loaded])
    if by_call * calls > max(NOISE_BYTES, LEAK_BYTES_PER_CALL * calls):
        found.append(f"memory grows under load, by {by_call:.0f} bytes a call over {calls} calls")
    calls = rests[-1].calls - rests[1].calls
    grown_bytes = rests[-1].rss_bytes - rests[1].rss_bytes
    if grown_bytes > max(NOISE_BYTES, LEAK_BYTES_PER_CALL * calls):
        found.append(f"memory grew by {grown_bytes / 2**20:.1f} MiB over {calls} calls, from rest to rest")
    return found


def file_faults(rests: Sequence[Sample], loaded: Sequence[Sample]) -> list[str]:
    found = []
    more = rests[-1].files - rests[0].files
    if more > SPARE_FILES:
        found.append(f"{more} more descriptors are open at rest than after the first plateau")
    by_second = slope([(it.at_s, it.files) for it in loaded])
    if by_second * (loaded[-1].at_s - loaded[0].at_s) > 2 * CALLERS:
        found.append(f"descriptors grow under load, by {by_second:.2f} a second")
    return found


async def warm_up(it: Gateway) -> None:
    """So many connections that the gateway's collector has run: until then what it will collect looks like growth."""

    async def some() -> None:
        for _ in range(WARM_UP_CONNECTIONS // CALLERS):
            async with WireClient(it.url, within_s=PATIENCE_S) as client:
                await client.get("/livez")

    await asyncio.gather(*[some() for _ in range(CALLERS)])


class Soak:
    """A soak of so many seconds in all; `samples` and `tally` are what came of it."""

    def __init__(self, seconds: float, seed: int, show: Callable[[Sample], None]) -> None:
        self.samples: list[Sample] = []
        self.tally = Tally()
        self._load_s = seconds / PLATEAUS
        self._every_s = min(5.0, self._load_s / 10)
        self._rng = random.Random(seed)
        self._show = show

    async def run(self) -> list[str]:
        """Runs, and says what was wrong."""
        async with AsyncExitStack() as up:
            engines = [await up.enter_async_context(EngineProcess(name)) for name in ENGINES]
            async with gateway(engines) as it:
                await warm_up(it)
                self._began_s = asyncio.get_running_loop().time()
                for plateau in range(PLATEAUS):
                    await self._load(it, engines, plateau)
                    await self._rest(it, plateau)
        return faults(self.samples, self.tally, it.alarming)

    async def _load(self, it: Gateway, engines: Sequence[EngineProcess], plateau: int) -> None:
        """All callers at once for a while; engines are killed and come back meanwhile."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(Caller(it.url, random.Random(self._rng.random()), self.tally).call(stop))
            async with asyncio.TaskGroup() as beside:
                beside.create_task(self._kill_some(engines))
                beside.create_task(self._sample(it, plateau))
            stop.set()

    async def _sample(self, it: Gateway, plateau: int) -> None:
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + self._load_s
        while loop.time() < ends_s:
            await asyncio.sleep(self._every_s)
            await self._note(it, plateau, resting=False)

    async def _kill_some(self, engines: Sequence[EngineProcess]) -> None:
        kills = max(1, round(self._load_s / 10))
        for engine in self._rng.choices(engines, k=kills):
            await asyncio.sleep(self._load_s / kills / 2)
            await engine.kill()
            await asyncio.sleep(min(2.0, self._load_s / 20))
            await engine.start()

    async def _rest(self, it: Gateway, plateau: int) -> None:
        """Until nothing is open but what probes need, or patience is at its end."""

        async def nothing_open() -> bool:
            now = await it.sample(0, plateau, resting=True)
            # The one that asks is a connection as well.
            return now.running == now.in_flight == 0 and now.connections <= 1

        await until(nothing_open)
        await asyncio.sleep(1.5)  # Idle connections to engines are closed after one second.
        await self._note(it, plateau, resting=True)

    async def _note(self, it: Gateway, plateau: int, *, resting: bool) -> None:
        at_s = asyncio.get_running_loop().time() - self._began_s
        self.samples.append(await it.sample(at_s, plateau, resting=resting))
        self._show(self.samples[-1])


HEADINGS = (
    f"{'s':>6} {'plateau':>8} {'calls':>8} {'RSS MiB':>8} {'files':>6} {'callers':>8} {'running':>8} {'in flight':>9}"
)


def row(sample: Sample) -> str:
    plateau = f"{sample.plateau + 1}{' rest' if sample.resting else ''}"
    return (
        f"{sample.at_s:6.1f} {plateau:>8} {sample.calls:8} {sample.rss_bytes / 2**20:8.2f} {sample.files:6} "
        f"{sample.connections:8} {sample.running:8} {sample.in_flight:9}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.soak", description="Does the gateway stay what it was under load?")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long there is load, rests not counted")
    parser.add_argument("--seconds", type=float, help="the same in seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.engine:
        asyncio.run(be_an_engine(given.engine, given.port))
        return 0
    soak = Soak(given.seconds or 60 * given.minutes, given.seed, lambda sample: print(row(sample), flush=True))
    print(HEADINGS, flush=True)
    found = asyncio.run(soak.run())
    print()
    for what, count in sorted(soak.tally.seen.items()):
        print(f"{count:8}  {what}")
    print()
    for fault in found:
        print(f"FAULT  {fault}")
    print(
        "The gateway is not what it was." if found else "The gateway is what it was: nothing lost, nothing left over."
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
