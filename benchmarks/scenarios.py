"""What is measured, as a table: names, words, figures and order.

A scenario's name is a row's name in every report; a figure's key is part of the JSON and does not change. How they
are measured is `benchmarks.measures`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import descriptors
from benchmarks.findings import Better, Metric, Size
from benchmarks.gateways import UNLIMITED
from benchmarks.lab import ENGINES
from benchmarks.measures import (
    CHUNKS_A_SECOND,
    FEWEST_MS,
    OPENED_A_SECOND,
    STREAM_S,
    Measure,
    bursts,
    latency,
    leave,
    open_streams,
    overload,
    plain,
    streams,
    streams_full,
)
from benchmarks.processes import Trouble


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    about: str
    measure: Measure
    metrics: Sequence[Metric]
    seconds: Callable[[Size], float]
    """About how long it takes."""
    real: bool = False
    """Whether it makes sense before a real engine."""
    direct: bool = True
    """Whether it says anything of no gateway at all."""
    bounded: bool = False
    """Engines have few places, and the gateway knows how many."""
    descriptors: int = 2000
    """File descriptors that one process needs."""

    def slots(self, size: Size) -> int | None:
        return size.slots if self.bounded else None

    def most(self, size: Size) -> int:
        """A quarter more than the engines run at once: they never wait for the gateway, and nothing waits long."""
        return math.ceil(size.slots * ENGINES * 1.25) if self.bounded else UNLIMITED


def seconds(jobs: int, of: Callable[[Size], float]) -> Callable[[Size], float]:
    """Jobs have to be started too."""
    return lambda size: jobs * 0.6 + of(size)


def _cpu(what: str, label: str, digits: int = 0) -> tuple[Metric, ...]:
    return (
        Metric(f"cpu_us_per_{what}", f"CPU per {label}", "us", digits, cost=True),
        Metric(f"load_us_per_{what}", "· of the load side", "us", digits, own=True),
        Metric(f"engine_us_per_{what}", "· of the mock engine", "us", digits, own=True),
    )


def _quantiles(key: str, label: str, *, added: bool = True) -> tuple[Metric, ...]:
    return tuple(Metric(f"{key}_{q}_ms", f"{label} {q}", "ms", 2, added=added) for q in ("p50", "p99"))


_STREAM_RATE = Metric("streams_per_s", "streams a second", "/s", better=Better.HIGHER)

SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="plain",
            about="plain calls, 64 callers without a pause: the gateway's core is full",
            measure=plain,
            metrics=(*_cpu("call", "call"), Metric("calls_per_s", "calls a second", "/s", better=Better.HIGHER)),
            seconds=seconds(1, lambda size: size.warm_s + size.window_s),
            real=True,
        ),
        Scenario(
            name="latency",
            about="100 plain calls a second, then 50 streams a second (first token after 2 ms, then one in 5 ms)",
            measure=latency,
            metrics=(
                *_quantiles("plain", "plain call"),
                *_quantiles("ttft", "time to first token"),
                *_quantiles("delay", "delay of a chunk"),
                *_quantiles("gap", "gap between chunks"),
            ),
            seconds=seconds(2, lambda size: 2 * (size.warm_s + size.window_s)),
            real=True,
        ),
        Scenario(
            name="streams",
            about="100 streams of 64 tokens, 50 tokens a second each: part load",
            measure=streams,
            metrics=(*_cpu("stream", "stream"), *_quantiles("delay", "delay of a chunk")),
            seconds=seconds(1, lambda size: 1.5 * STREAM_S + size.warm_s + size.window_s),
            real=True,
        ),
        Scenario(
            name="streams-full",
            about="384 streams of 64 tokens, 200 tokens a second each, the next at once: the gateway's core is full",
            measure=streams_full,
            metrics=(*_cpu("stream", "stream"), _STREAM_RATE),
            seconds=seconds(1, lambda size: 1.0 + size.warm_s + size.window_s),
        ),
        Scenario(
            name="bursts",
            about="streams whose 64 chunks the engine writes at once, 32 callers without a pause",
            measure=bursts,
            metrics=(*_cpu("stream", "stream"), _STREAM_RATE),
            seconds=seconds(1, lambda size: 0.5 + size.warm_s + size.window_s),
        ),
        Scenario(
            name="leave",
            about="200 callers leave at once: in a stream, before its first token, in a plain call",
            measure=leave,
            metrics=tuple(
                metric
                for name, label in (
                    ("streaming", "in a stream"),
                    ("waiting", "before a token"),
                    ("plain", "in a plain call"),
                )
                for metric in (
                    Metric(f"{name}_cancelled", f"cancelled {label}", "%", better=Better.HIGHER),
                    Metric(f"{name}_last_ms", "· the last of them after", "ms", 1),
                )
            ),
            seconds=seconds(3, lambda size: 2.0),
            direct=False,
        ),
        Scenario(
            name="overload",
            about="engines with 32 places get twice the calls they can serve; good is a first token within 0.5 s",
            measure=overload,
            metrics=(
                Metric("peak_per_s", "goodput at its peak", "/s", 0, Better.HIGHER),
                Metric("goodput_kept", "· kept at twice the load", "%", 1, Better.HIGHER),
                Metric("refused", "· refused at twice the load", "%", 0),
                *_quantiles("refusal", "· a refusal after", added=False),
            ),
            seconds=seconds(3, lambda size: len(size.loads) * (1.5 + size.overload_s) + 2.0),
            direct=False,
            bounded=True,
        ),
    )
}


def opened(count: int) -> Scenario:
    """`open-N`: that many streams at the same time."""
    return Scenario(
        name=f"open-{count}",
        about=f"{count:,} open streams, {min(CHUNKS_A_SECOND, count * 1000 // FEWEST_MS):,} chunks a second together",
        measure=open_streams(count),
        metrics=(
            *_cpu("chunk", "relayed chunk", 1),
            *_quantiles("delay", "delay of a chunk"),
            *_quantiles("live", "a plain call meanwhile"),
            Metric("start_mib", "memory at start", "MiB"),
            Metric("mib", f"memory with {count:,} streams", "MiB"),
            Metric("astray", "chunks lost or out of order", ""),
        ),
        seconds=seconds(1, lambda size: 1.2 * count / OPENED_A_SECOND + size.open_window_s + size.open_spare_s),
        descriptors=2 * count + descriptors.ASIDE,
    )


FULL_NAMES = ("plain", "latency", "streams", "streams-full", "bursts", "open-1000", "open-4000", "leave", "overload")
QUICK_NAMES = ("plain", "latency", "streams", "bursts", "open-1000", "leave")
LISTED = (*FULL_NAMES[:7], "open-10000", *FULL_NAMES[7:])


MOST_STREAMS = 25_000
"""About as many connections as two addresses can have between them."""


def named(name: str) -> Scenario:
    """Raises Trouble for a name that is no scenario's."""
    if name in SCENARIOS:
        return SCENARIOS[name]
    kind, _, count = name.partition("-")
    if kind == "open" and count.isdigit() and 1 <= int(count) <= MOST_STREAMS:
        return opened(int(count))
    raise Trouble(
        f"there is no scenario {name}; there are {', '.join(LISTED)}, and open-N for up to {MOST_STREAMS:,} streams"
    )
