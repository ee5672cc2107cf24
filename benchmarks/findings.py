"""How much is measured, what a figure is, and where a scenario puts what it found."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from benchmarks.jobs import Outcome
from benchmarks.lab import Reading


class Better(StrEnum):
    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a scenario. A `cost` is also shown as a ratio to the yardstick's, `added` beside no gateway.

    `own` is what the benchmark itself took for it.
    """

    key: str
    label: str
    unit: str
    digits: int = 0
    better: Better = Better.LOWER
    cost: bool = False
    own: bool = False
    added: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything; seconds, calls and calls a second."""

    warm_s: float = 0.8
    window_s: float = 4.0
    plain: int = 64
    low_rate: float = 100.0
    low_streams_rate: float = 50.0
    streams: int = 100
    full: int = 384
    bursts: int = 32
    open_window_s: float = 6.0
    open_spare_s: float = 3.0
    """How late streams may begin without ending while they are measured."""
    live_rate: float = 20.0
    leaving: int = 200
    gone_within_s: float = 3.0
    slots: int = 16
    overload_s: float = 4.0
    loads: tuple[float, ...] = (0.9, 1.1, 2.0)
    """Offered loads as parts of what the engines can do, the last being the overload."""


FULL_SIZE = Size()
QUICK_SIZE = Size(
    warm_s=0.3,
    window_s=1.2,
    open_window_s=2.0,
    open_spare_s=2.0,
    leaving=100,
    gone_within_s=1.5,
    overload_s=2.0,
    loads=(1.0, 2.0),
)


@dataclass(slots=True)
class Findings:
    """What a scenario found."""

    figures: dict[str, float] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    samples: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    curves: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, reading: Reading) -> Outcome:
        """Keeps what was wrong and what must be known about a reading."""
        self.errors += reading.outcome.errors
        self.samples |= reading.outcome.samples
        self.notes += [note for note in reading.notes if note not in self.notes]
        return reading.outcome

    def figure(self, key: str, value: float | None) -> None:
        """Keeps a figure; one that could not be had is left out."""
        if value is not None:
            self.figures[key] = value

    def quantiles(self, key: str, outcome: Outcome, name: str) -> None:
        """p50 and p99 of durations, in milliseconds, and their curve."""
        histogram = outcome.of(name)
        self.figure(f"{key}_p50_ms", histogram.quantile_ms(0.5))
        self.figure(f"{key}_p99_ms", histogram.quantile_ms(0.99))
        self.curves[key] = histogram.to_json()

    def costs(self, reading: Reading, count: int, what: str) -> None:
        """Processor time for each call, stream or chunk: the gateway's, and beside it the load's and the engine's."""
        self.figure(f"cpu_us_per_{what}", reading.each_us(reading.gateway_cpu_s, count))
        self.figure(f"load_us_per_{what}", reading.each_us(reading.outcome.cpu_s, count))
        self.figure(f"engine_us_per_{what}", reading.each_us(reading.engine_cpu_s or None, count))
        self.figure("gateway_core", None if reading.gateway_cpu_s is None else reading.gateway_cpu_s / reading.window_s)

    def limit(self, reading: Reading) -> None:
        """Says what a rate that should be the gateway's limit was really limited by."""
        if reading.gateway_cpu_s is not None and not reading.gateway_full:
            why = "the load side was the bottleneck" if reading.load_full else "neither side's core was full"
            self.notes.append(f"{why}: the gateway could do more")
