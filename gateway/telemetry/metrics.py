"""The gateway's own metrics. Label values come from the configuration and from our enumerations, never from callers."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from gateway.fleet.replica import Health, Snapshot
from gateway.telemetry.record import CallRecord, Outcome

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Doubling from 10 ms to 82 s: the buckets of OpenTelemetry's GenAI conventions for durations.
DURATION_S = tuple(0.01 * 2**power for power in range(14))
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0)
GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0, 60.0)
OVERHEAD_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0)


class Gaps:
    """A histogram of inter-token times that costs a bisection for each chunk."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(GAP_S) + 1)
        self.total_s = 0.0

    def observe(self, gap_s: float) -> None:
        self.counts[bisect_left(GAP_S, gap_s)] += 1
        self.total_s += gap_s


class Metrics(Collector):
    """All instruments of one gateway, in a registry of its own."""

    def __init__(self, fleet: Callable[[], Snapshot], running: Callable[[], int]) -> None:
        self._fleet = fleet
        self._running = running
        self._gaps: dict[str, Gaps] = {}
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        self._calls = counter("pagegate_calls", "Calls that ended, by outcome.", "model", "outcome")
        self._errors = counter("pagegate_errors", "Calls that did not end well, by error.", "model", "error")
        self._tokens = counter("pagegate_tokens", "Tokens charged; cached is a part of prompt.", "model", "kind")
        self._attempts = counter("pagegate_attempts", "Attempts on replicas.", "model", "replica", "result")
        self._duration = histogram(
            "pagegate_call_duration_seconds", "From a call's arrival to its end.", DURATION_S, "model", "outcome"
        )
        self._first_token = histogram(
            "pagegate_time_to_first_token_seconds",
            "From a streamed call's arrival to its first event.",
            FIRST_TOKEN_S,
            "model",
        )
        self._overhead = histogram(
            "pagegate_overhead_seconds", "The gateway's own share of the time to the first byte.", OVERHEAD_S, "model"
        )
        self.registry.register(self)

    def gaps(self, model: str) -> Gaps:
        """Where a stream's inter-token times go."""
        gaps = self._gaps.get(model)
        if gaps is None:
            gaps = self._gaps[model] = Gaps()
        return gaps

    def attempt(self, model: str, replica: str, result: str) -> None:
        self._attempts.labels(model, replica, result).inc()

    def ended(self, record: CallRecord, duration_s: float) -> None:
        """Counts a call that ended."""
        model, outcome = record.model, record.outcome
        self._calls.labels(model, outcome).inc()
        self._duration.labels(model, outcome).observe(duration_s)
        if outcome is not Outcome.OK:
            self._errors.labels(model, record.error_type).inc()
        usage, first_token_s = record.usage, record.first_token_s
        if usage is not None:
            self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
            self._tokens.labels(model, "completion").inc(usage.completion_tokens)
            self._tokens.labels(model, "cached").inc(usage.cached_tokens)
        if first_token_s is not None:
            self._overhead.labels(model).observe(max(0.0, first_token_s - record.upstream_s))
            if record.call is not None and record.call.stream:
                self._first_token.labels(model).observe(first_token_s)

    def collect(self) -> Iterable[Metric]:
        """What is read off at the moment of a scrape."""
        gaps = HistogramMetricFamily(
            "pagegate_inter_token_latency_seconds", "Between two reads of a stream's events.", labels=["model"]
        )
        for model, seen in self._gaps.items():
            bounds = [*(str(bound) for bound in GAP_S), "+Inf"]
            gaps.add_metric([model], list(zip(bounds, accumulate(seen.counts), strict=True)), seen.total_s)
        yield gaps
        yield _gauge("pagegate_running_calls", "Calls that hold a lease.", [], [([], self._running())])
        pools = self._fleet().pools
        replicas = [replica for pool in pools.values() for replica in pool]
        yield _gauge(
            "pagegate_replica_up",
            "1 while calls are sent to the replica.",
            ["model", "replica"],
            [([it.model, it.name], it.health is Health.UP) for it in replicas],
        )
        yield _gauge(
            "pagegate_replica_in_flight",
            "Attempts of this gateway that are open on the replica.",
            ["model", "replica"],
            [([it.model, it.name], it.in_flight) for it in replicas],
        )
        yield _gauge(
            "pagegate_replica_kv_usage",
            "Used share of the replica's KV cache, 0 to 1.",
            ["model", "replica"],
            [([it.model, it.name], it.load.kv_usage) for it in replicas],
        )

    def exposition(self) -> bytes:
        """The metrics as Prometheus text."""
        return generate_latest(self.registry)


def _gauge(name: str, text: str, labels: list[str], values: list[tuple[list[str], float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for found, value in values:
        family.add_metric(found, float(value))
    return family
