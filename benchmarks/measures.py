"""The scenarios' measurements: the jobs of each, and the figures that are made of what came of them.

How a job is carried out is `benchmarks.lab` and `benchmarks.load`; names, words and order are `benchmarks.scenarios`.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from benchmarks.checks import DUPLICATE, LOST, REORDERED
from benchmarks.findings import Findings, Size
from benchmarks.jobs import Job, Kind, Outcome
from benchmarks.lab import ENGINES, Bench
from benchmarks.script import Behaviour

TOKENS = 64
CHUNKS_A_SECOND = 20_000
"""What all streams of an `open-N` bring together, so that the number of streams is what differs."""
FEWEST_MS = 50
STREAM_S = 1.28
"""What a stream of 64 tokens takes at 50 tokens a second."""
OPENED_A_SECOND = 1000
WHOLE = 0.9
"""The part of the chunks that must come in the window for it to say what one costs."""

Measure = Callable[[Bench, Size], Awaitable[Findings]]


def job(bench: Bench, kind: Kind, size: Size, **fields: Any) -> Job:
    return Job(kind=kind, target=bench.target, **{"warm_s": size.warm_s, "window_s": size.window_s, **fields})


def part(bench: Bench, count: float) -> int:
    """What a gateway gets of a number of connections at part load."""
    return max(1, round(count * bench.entry.pace))


async def plain(bench: Bench, size: Size) -> Findings:
    found = Findings()
    connections = 4 if bench.real else size.plain
    reading = await bench.measure(job(bench, Kind.CLOSED, size, connections=connections, grace_s=30.0))
    outcome = found.add(reading)
    found.costs(reading, outcome.calls, "call")
    found.figure("calls_per_s", outcome.calls / outcome.window_s)
    found.quantiles("latency", outcome, "latency")
    if not bench.real:
        found.limit(reading)
    return found


async def latency(bench: Bench, size: Size) -> Findings:
    found = Findings()
    behaviour = Behaviour(ttft_ms=2, interval_ms=5)
    plain_rate, stream_rate = (2.0, 2.0) if bench.real else (size.low_rate, size.low_streams_rate)
    pace = 1.0 if bench.real else bench.entry.pace
    low = job(bench, Kind.OPEN, size, rate=plain_rate * pace, grace_s=30.0)
    found.quantiles("plain", found.add(await bench.measure(low)), "latency")
    streams = job(
        bench, Kind.OPEN, size, rate=stream_rate * pace, behaviour=behaviour, stream=True, usage=True, grace_s=30.0
    )
    outcome = found.add(await bench.measure(streams))
    for key in ("ttft", "delay", "gap"):
        if len(outcome.of(key)):
            found.quantiles(key, outcome, key)
    return found


async def streams(bench: Bench, size: Size) -> Findings:
    found = Findings()
    behaviour = Behaviour(ttft_ms=2, interval_ms=20)
    connections = 8 if bench.real else part(bench, size.streams)
    # Begun evenly over the time that a stream takes, they end evenly too.
    reading = await bench.measure(
        job(
            bench,
            Kind.CLOSED,
            size,
            connections=connections,
            ramp_s=STREAM_S,
            behaviour=behaviour,
            stream=True,
            tokens=TOKENS,
            window_s=max(1, round(size.window_s / STREAM_S)) * STREAM_S,
            grace_s=60.0,
        )
    )
    outcome = found.add(reading)
    found.costs(reading, outcome.calls, "stream")
    if outcome.durations.get("delay"):
        found.quantiles("delay", outcome, "delay")
    if bench.entry.pace < 1:
        found.notes.append(f"measured with {connections} streams, not {size.streams}")
    return found


async def streams_full(bench: Bench, size: Size) -> Findings:
    return await _at_full_load(bench, size, size.full, Behaviour(interval_ms=5))


async def bursts(bench: Bench, size: Size) -> Findings:
    return await _at_full_load(bench, size, size.bursts, Behaviour(burst=1))


async def _at_full_load(bench: Bench, size: Size, connections: int, behaviour: Behaviour) -> Findings:
    found = Findings()
    reading = await bench.measure(
        job(
            bench,
            Kind.CLOSED,
            size,
            connections=connections,
            ramp_s=0.3,
            behaviour=behaviour,
            stream=True,
            tokens=TOKENS,
            grace_s=120.0,
        )
    )
    outcome = found.add(reading)
    found.costs(reading, outcome.calls, "stream")
    found.figure("streams_per_s", outcome.calls / outcome.window_s)
    found.limit(reading)
    return found


def open_streams(count: int) -> Measure:
    async def measure(bench: Bench, size: Size) -> Findings:
        found = Findings()
        interval_ms = round(max(FEWEST_MS, count * 1000 / CHUNKS_A_SECOND) / bench.entry.pace)
        ramp_s = count / OPENED_A_SECOND
        tokens = math.ceil((1.2 * ramp_s + size.open_window_s + size.open_spare_s) * 1000 / interval_ms)
        reading = await bench.measure(
            job(
                bench,
                Kind.HOLD,
                size,
                connections=count,
                ramp_s=ramp_s,
                stream=True,
                usage=True,
                tokens=tokens,
                begun=1,
                behaviour=Behaviour(ttft_ms=2, interval_ms=interval_ms),
                window_s=size.open_window_s,
                rate=size.live_rate,
                grace_s=tokens * interval_ms / 1000 + 20.0,
            )
        )
        outcome = found.add(reading)
        found.quantiles("delay", outcome, "delay")
        found.quantiles("live", outcome, "live")
        found.figure("start_mib", bench.start_rss_mib)
        found.figure("mib", reading.rss_mib)
        found.figure("astray", sum(outcome.errors[kind] for kind in (LOST, REORDERED, DUPLICATE)))
        came = outcome.chunks * interval_ms / (count * outcome.window_s * 1000)
        if came < WHOLE:
            found.notes.append(f"only {came:.0%} of the chunks came while it was measured, so none has a cost")
        else:
            found.costs(reading, outcome.chunks, "chunk")
        return found

    return measure


LEAVING: Mapping[str, tuple[Behaviour, bool, int]] = {
    "streaming": (Behaviour(ttft_ms=2, interval_ms=50), True, 3),
    "waiting": (Behaviour(ttft_ms=120_000, interval_ms=50), True, 0),
    "plain": (Behaviour(ttft_ms=120_000), False, 0),
}
"""How a call is under way when its caller leaves: what the engine does, whether it streams, tokens that came."""


async def leave(bench: Bench, size: Size) -> Findings:
    found = Findings()
    count = part(bench, size.leaving)
    for name, (behaviour, stream, begun) in LEAVING.items():
        await bench.engines.reset()

        reading = await bench.measure(
            job(
                bench,
                Kind.LEAVE,
                size,
                connections=count,
                ramp_s=0.3,
                behaviour=behaviour,
                stream=stream,
                tokens=5000,
                begun=begun,
                window_s=0.0,
                grace_s=10.0,
            ),
            partial(_until, bench, partial(_under_way, count), 20.0),
        )
        outcome = found.add(reading)
        now = await _until(bench, partial(_cancelled, count), size.gone_within_s)
        found.figure(f"{name}_cancelled", 100 * now["cancelled"] / count)
        if now["cancelled"] >= count:
            found.figure(f"{name}_last_ms", (now["cancelled_at_us"][count - 1] - outcome.left_at_us) / 1000)
        else:
            found.notes.append(f"{name}: {count - now['cancelled']} of {count} engine calls went on without a caller")
    await bench.engines.reset()
    return found


def _under_way(count: int, stats: dict[str, Any]) -> bool:
    return bool(stats["running"] + stats["waiting"] >= count)


def _cancelled(count: int, stats: dict[str, Any]) -> bool:
    return bool(stats["cancelled"] >= count)


async def _until(bench: Bench, fact: Callable[[dict[str, Any]], bool], within_s: float) -> dict[str, Any]:
    """The engines' counts once the fact holds, or when the time is over."""
    late = time.monotonic() + within_s
    while True:
        now = await bench.engines.stats()
        if fact(now) or time.monotonic() > late:
            return now
        await asyncio.sleep(0.05)


OVERLOAD = Behaviour(ttft_ms=20, interval_ms=10)
OVERLOAD_TOKENS = 16
GOOD_WITHIN_S = 0.5


async def overload(bench: Bench, size: Size) -> Findings:
    found = Findings()
    one_s = (OVERLOAD.ttft_ms + OVERLOAD.interval_ms * (OVERLOAD_TOKENS - 1)) / 1000
    capacity = size.slots * ENGINES / one_s
    goodput = []
    outcome = Outcome()
    for load in size.loads:
        reading = await bench.measure(
            job(
                bench,
                Kind.OPEN,
                size,
                rate=capacity * load,
                behaviour=OVERLOAD,
                stream=True,
                tokens=OVERLOAD_TOKENS,
                warm_s=1.0,
                window_s=size.overload_s,
                good_within_s=GOOD_WITHIN_S,
                may_refuse=True,
                grace_s=30.0,
            )
        )
        outcome = found.add(reading)
        goodput.append(outcome.good / outcome.window_s)
    found.figure("peak_per_s", max(goodput))
    found.figure("goodput_per_s", goodput[-1])
    found.figure("goodput_kept", 100 * goodput[-1] / max(goodput) if max(goodput) else None)
    found.figure("refused", 100 * outcome.refused / max(1, outcome.refused + outcome.calls))
    if outcome.refused:
        found.quantiles("refusal", outcome, "refusal")
    return found
