"""Counters and distributions that cost a dictionary's look-up: plain numbers, Prometheus families once somebody asks.

What is measured under which labels is `metrics.py`'s business. Counting and reading share the event loop's thread:
nothing is locked.
"""

from bisect import bisect_left
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString


class Counts(dict[tuple[str, ...], int]):
    """Numbers that only grow, by the values of their labels: `counts["tiny", "ok"] += 1`."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        super().__init__()
        self._name = name
        self._text = text
        self._labels = labels

    def __missing__(self, values: tuple[str, ...]) -> int:
        return 0

    def family(self) -> Metric:
        """As of now, for a scrape."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, number in self.items():
            family.add_metric(values, number)
        return family


class Distribution:
    """How often a value fell between which bounds, and the sum of all values."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Distributions:
    """A distribution for each combination of label values. `bounds` ascend and belong to what is below them."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._labels = labels
        self._series: dict[tuple[str, ...], Distribution] = {}

    def of(self, *values: str) -> Distribution:
        """The distribution under these label values; it is shown from now on."""
        found = self._series.get(values)
        if found is None:
            found = self._series[values] = Distribution(self._bounds)
        return found

    def family(self) -> Metric:
        """As of now, for a scrape."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, seen in self._series.items():
            family.add_metric(values, list(zip(bounds, accumulate(seen.counts), strict=True)), seen.total)
        return family
