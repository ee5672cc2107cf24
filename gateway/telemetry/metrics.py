"""The gateway's own metrics. Label values come from the configuration and from our enumerations, never from callers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from gateway.errors import GatewayError, LimitReached
from gateway.fleet.replica import Health, Snapshot
from gateway.telemetry.instruments import Counts, Distribution, Distributions
from gateway.telemetry.record import CallRecord, Outcome

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Doubling from 10 ms to 82 s: the buckets of OpenTelemetry's GenAI conventions for durations.
DURATION_S = tuple(0.01 * 2**power for power in range(14))
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0)
GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0, 60.0)
OVERHEAD_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0)
LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Reading(NamedTuple):
    """A family that is read off when somebody looks: values by the values of its labels. What only `grows` counts."""

    name: str
    text: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]
    grows: bool = False

    def family(self) -> Metric:
        kind = CounterMetricFamily if self.grows else GaugeMetricFamily
        family = kind(self.name, self.text, labels=self.labels)
        for found, value in self.values.items():
            family.add_metric(found, float(value))
        return family


class Metrics(Collector):
    """All instruments of one gateway, in a registry of its own. `loop_lag` is for whoever watches the event loop.

    `readings` are what other parts have to show.
    """

    def __init__(
        self, fleet: Callable[[], Snapshot], running: Callable[[], int], readings: Callable[[], Iterable[Reading]]
    ) -> None:
        self._fleet = fleet
        self._running = running
        self._readings = readings
        self._calls = Counts("pagegate_calls", "Calls that ended, by outcome.", "model", "outcome")
        self._errors = Counts("pagegate_errors", "Calls that did not end well, by error.", "model", "error")
        self._tokens = Counts("pagegate_tokens", "Tokens charged; cached is a part of prompt.", "model", "kind")
        self._costs = Counts("pagegate_cost_micros", "What calls cost, in millionths of the cost unit.", "model")
        self._limits = Counts("pagegate_limits_reached", "Calls that a limit refused, by the limit.", "model", "limit")
        self._attempts = Counts("pagegate_attempts", "Attempts on replicas.", "model", "replica", "result")
        self._refused_heads = Counts(
            "pagegate_refused_heads", "What came on a connection and never became a call, by error.", "error"
        )
        self.connections = 0
        self._duration = Distributions(
            "pagegate_call_duration_seconds", "From a call's arrival to its end.", DURATION_S, "model", "outcome"
        )
        self._first_token = Distributions(
            "pagegate_time_to_first_token_seconds",
            "From a streamed call's arrival to its first event.",
            FIRST_TOKEN_S,
            "model",
        )
        self._queued = Distributions(
            "pagegate_queue_seconds", "How long calls waited for their turn, of those that did.", DURATION_S, "model"
        )
        self._overhead = Distributions(
            "pagegate_overhead_seconds", "The gateway's own share of the time to the first byte.", OVERHEAD_S, "model"
        )
        self._gaps = Distributions(
            "pagegate_inter_token_latency_seconds", "Between two reads of a stream's events.", GAP_S, "model"
        )
        self._lag = Distributions("pagegate_event_loop_lag_seconds", "How late the event loop does what is due.", LAG_S)
        self.loop_lag = self._lag.of()
        self.registry = CollectorRegistry()
        self.registry.register(self)
        # Memory, descriptors, processor time and garbage collections: read off when somebody looks.
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def gaps(self, model: str) -> Distribution:
        """Where a stream's inter-token times go."""
        return self._gaps.of(model)

    def head_refused(self, error: GatewayError) -> None:
        """Counts what never became a call."""
        self._refused_heads[(type(error).__name__,)] += 1

    def attempt(self, model: str, replica: str, result: str) -> None:
        self._attempts[model, replica, result] += 1

    def ended(self, record: CallRecord, duration_s: float) -> None:
        """Counts a call that ended."""
        model, outcome, usage, first_token_s = record.model, record.outcome, record.usage, record.first_token_s
        self._calls[model, outcome] += 1
        self._duration.of(model, outcome).observe(duration_s)
        if outcome is not Outcome.OK:
            self._errors[model, type(record.error).__name__] += 1
            if isinstance(record.error, LimitReached):
                self._limits[model, record.error.limit] += 1
        if usage is not None and record.lease is not None:
            self._costs[(model,)] += record.lease.cost_micros
            self._tokens[model, "prompt"] += usage.prompt_tokens
            self._tokens[model, "completion"] += usage.completion_tokens
            self._tokens[model, "cached"] += usage.cached_tokens
        if record.waited_s:
            self._queued.of(model).observe(record.waited_s)
        if first_token_s is not None:
            self._overhead.of(model).observe(max(0.0, first_token_s - record.upstream_s - record.waited_s))
            if record.call is not None and record.call.stream:
                self._first_token.of(model).observe(first_token_s)

    def collect(self) -> Iterator[Metric]:
        """What a scrape sees: what was counted, and what is read off at this moment."""
        for counts in (
            self._calls,
            self._errors,
            self._limits,
            self._tokens,
            self._costs,
            self._attempts,
            self._refused_heads,
        ):
            yield counts.family()
        for distributions in (self._duration, self._first_token, self._queued, self._overhead, self._gaps, self._lag):
            yield distributions.family()
        replicas = [replica for pool in self._fleet().pools.values() for replica in pool]
        of_replica = ("model", "replica")
        for reading in (
            Reading("pagegate_connections", "Open connections of callers.", (), {(): self.connections}),
            Reading("pagegate_running_calls", "Calls that hold a lease.", (), {(): self._running()}),
            Reading(
                "pagegate_replica_up",
                "1 while calls are sent to the replica.",
                of_replica,
                {(it.model, it.name): it.health is Health.UP for it in replicas},
            ),
            Reading(
                "pagegate_replica_in_flight",
                "Attempts of this gateway that are open on the replica.",
                of_replica,
                {(it.model, it.name): it.in_flight for it in replicas},
            ),
            Reading(
                "pagegate_replica_kv_usage",
                "Used share of the replica's KV cache, 0 to 1.",
                of_replica,
                {(it.model, it.name): it.load.kv_usage for it in replicas},
            ),
            *self._readings(),
        ):
            yield reading.family()

    def exposition(self) -> bytes:
        """The metrics as Prometheus text."""
        return generate_latest(self.registry)
