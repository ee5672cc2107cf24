"""gateway/telemetry/metrics.py: the right numbers under few names."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.call import Call, Delivery, Usage
from gateway.errors import CallerLeft, EngineLost, LimitReached, NotHttp, UnknownModel
from gateway.fleet.replica import Health, Load, Replica, Snapshot
from gateway.http1 import Address
from gateway.telemetry.lag import LoopLag
from gateway.telemetry.metrics import GAP_S, Metrics
from gateway.telemetry.record import CallRecord
from tests.unit.calls import a_call
from tests.unit.splitting import thorough

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass
class Lease:
    delivery: Delivery = field(default_factory=Delivery)
    charged: Usage | None = None
    cost_micros: int = 0
    waited_s: float = 0.0


def call(*, stream: bool = True) -> Call:
    return a_call(model="tiny", stream=stream)


def metrics(*replicas: Replica, running: int = 0) -> Metrics:
    return Metrics(lambda: Snapshot({"tiny": replicas}), lambda: running, tuple)


def series(subject: Metrics) -> Series:
    """Every series as a scrape sees it, without the creation times of the client library."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(subject.exposition().decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def value(subject: Metrics, name: str, **labels: str) -> float:
    return series(subject)[name, tuple(sorted(labels.items()))]


@thorough
@given(st.lists(st.one_of(st.sampled_from(GAP_S), st.floats(0, 100)), max_size=50))
def test_gaps_equal_a_real_histogram(gaps: list[float]) -> None:
    """Cheaper for each chunk, and the same to whoever reads it: buckets, count and sum."""
    ours, registry = metrics(), CollectorRegistry()
    real = Histogram("pagegate_inter_token_latency_seconds", "x", ["model"], buckets=GAP_S, registry=registry).labels(
        "tiny"
    )
    observe = ours.gaps("tiny").observe
    for gap_s in gaps:
        observe(gap_s)
        real.observe(gap_s)
    found = {name: number for name, number in series(ours).items() if "inter_token" in name[0]}
    expected = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert found == pytest.approx(expected)
    assert len(found) == len(GAP_S) + 3


def test_a_call_that_ended_well_is_counted_everywhere() -> None:
    """Rate, latency, first token, the gateway's own share, tokens."""
    subject = metrics()
    lease = Lease(Delivery(first_at_s=10.3, complete=True), Usage(7, 2, 3))
    subject.ended(CallRecord("r", 10.0, call=call(), lease=lease, upstream_s=0.25), 1.5)
    assert value(subject, "pagegate_calls_total", model="tiny", outcome="ok") == 1
    assert value(subject, "pagegate_call_duration_seconds_sum", model="tiny", outcome="ok") == 1.5
    assert value(subject, "pagegate_time_to_first_token_seconds_sum", model="tiny") == pytest.approx(0.3)
    assert value(subject, "pagegate_overhead_seconds_sum", model="tiny") == pytest.approx(0.05)
    tokens = [value(subject, "pagegate_tokens_total", model="tiny", kind=kind) for kind in ("prompt", "completion")]
    assert [*tokens, value(subject, "pagegate_tokens_total", model="tiny", kind="cached")] == [7, 2, 3]
    assert not [name for name, _ in series(subject) if name == "pagegate_errors_total"]


def test_a_plain_reply_has_no_first_token() -> None:
    """It has an overhead all the same."""
    subject = metrics()
    lease = Lease(Delivery(first_at_s=10.3, complete=True), Usage(7, 2))
    subject.ended(CallRecord("r", 10.0, call=call(stream=False), lease=lease, upstream_s=0.5), 1.5)
    assert value(subject, "pagegate_overhead_seconds_sum", model="tiny") == 0  # Clocks are read one after the other.
    assert not [name for name, _ in series(subject) if name.startswith("pagegate_time_to_first_token")]


def test_a_call_that_did_not_is_counted_by_its_error() -> None:
    """One outcome, one error."""
    subject = metrics()
    subject.ended(CallRecord("r", 0.0, call=call(), error=EngineLost()), 1.0)
    subject.ended(CallRecord("r", 0.0, call=call(), error=CallerLeft()), 1.0)
    assert value(subject, "pagegate_calls_total", model="tiny", outcome="severed") == 1
    assert value(subject, "pagegate_errors_total", model="tiny", error="EngineLost") == 1
    assert value(subject, "pagegate_calls_total", model="tiny", outcome="cancelled") == 1


def test_replicas_are_read_off_when_somebody_looks() -> None:
    """As they are at that moment."""
    a = Replica("a", "tiny", Address("h", 1), health=Health.UP, load=Load(kv_usage=0.25), in_flight=3)
    b = Replica("b", "tiny", Address("h", 2), health=Health.DOWN)
    subject = metrics(a, b, running=4)
    assert value(subject, "pagegate_running_calls") == 4
    assert value(subject, "pagegate_replica_up", model="tiny", replica="a") == 1
    assert value(subject, "pagegate_replica_up", model="tiny", replica="b") == 0
    assert value(subject, "pagegate_replica_in_flight", model="tiny", replica="a") == 3
    assert value(subject, "pagegate_replica_kv_usage", model="tiny", replica="a") == 0.25
    b.health = Health.UP
    assert value(subject, "pagegate_replica_up", model="tiny", replica="b") == 1


def test_callers_cannot_make_series() -> None:
    """A thousand models that do not exist are one series, and so are their errors."""
    subject = metrics()
    for number in range(1000):
        subject.ended(CallRecord(f"r{number}", 0.0, error=UnknownModel(f"model-{number}")), 0.1)
    before = len(series(subject))
    assert value(subject, "pagegate_calls_total", model="none", outcome="bad_call") == 1000
    for number in range(1000):
        subject.ended(CallRecord(f"r{number}", 0.0, error=UnknownModel(f"other-{number}")), 0.1)
    assert len(series(subject)) == before


def test_two_gateways_count_apart() -> None:
    """Nothing is registered globally."""
    one, two = metrics(), metrics()
    one.ended(CallRecord("r", 0.0, call=call()), 1.0)
    one.attempt("tiny", "a", "answered")
    assert value(one, "pagegate_attempts_total", model="tiny", replica="a", result="answered") == 1
    assert not [name for name, _ in series(two) if name.startswith(("pagegate_calls", "pagegate_attempts"))]


# What dashboards and alerts are built on: name, type, labels, the bounds of buckets, and the text.
FAMILIES = [
    ("pagegate_calls", "counter", "model outcome", "", "Calls that ended, by outcome."),
    ("pagegate_errors", "counter", "error model", "", "Calls that did not end well, by error."),
    ("pagegate_limits_reached", "counter", "limit model", "", "Calls that a limit refused, by the limit."),
    ("pagegate_tokens", "counter", "kind model", "", "Tokens charged; cached is a part of prompt."),
    ("pagegate_cost_micros", "counter", "model", "", "What calls cost, in millionths of the cost unit."),
    ("pagegate_attempts", "counter", "model replica result", "", "Attempts on replicas."),
    ("pagegate_refused_heads", "counter", "error", "", "What came on a connection and never became a call, by error."),
    (
        "pagegate_call_duration_seconds",
        "histogram",
        "model outcome",
        "0.01 0.02 0.04 0.08 0.16 0.32 0.64 1.28 2.56 5.12 10.24 20.48 40.96 81.92 +Inf",
        "From a call's arrival to its end.",
    ),
    (
        "pagegate_time_to_first_token_seconds",
        "histogram",
        "model",
        "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 30.0 60.0 +Inf",
        "From a streamed call's arrival to its first event.",
    ),
    (
        "pagegate_queue_seconds",
        "histogram",
        "model",
        "0.01 0.02 0.04 0.08 0.16 0.32 0.64 1.28 2.56 5.12 10.24 20.48 40.96 81.92 +Inf",
        "How long calls waited for their turn, of those that did.",
    ),
    (
        "pagegate_overhead_seconds",
        "histogram",
        "model",
        "0.0001 0.00025 0.0005 0.001 0.0025 0.005 0.01 0.025 0.1 1.0 +Inf",
        "The gateway's own share of the time to the first byte.",
    ),
    (
        "pagegate_inter_token_latency_seconds",
        "histogram",
        "model",
        "0.001 0.0025 0.005 0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.5 1.0 2.5 10.0 60.0 +Inf",
        "Between two reads of a stream's events.",
    ),
    (
        "pagegate_event_loop_lag_seconds",
        "histogram",
        "",
        "0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 5.0 +Inf",
        "How late the event loop does what is due.",
    ),
    ("pagegate_connections", "gauge", "", "", "Open connections of callers."),
    ("pagegate_running_calls", "gauge", "", "", "Calls that hold a lease."),
    ("pagegate_replica_up", "gauge", "model replica", "", "1 while calls are sent to the replica."),
    (
        "pagegate_replica_in_flight",
        "gauge",
        "model replica",
        "",
        "Attempts of this gateway that are open on the replica.",
    ),
    ("pagegate_replica_kv_usage", "gauge", "model replica", "", "Used share of the replica's KV cache, 0 to 1."),
]


def exposed(subject: Metrics) -> list[Metric]:
    return list(text_string_to_metric_families(subject.exposition().decode()))


def test_the_families_are_what_they_were() -> None:
    """Names, types, labels, buckets and texts are a contract with whoever watches us."""
    subject = metrics(Replica("a", "tiny", Address("h", 1)))
    lease = Lease(Delivery(first_at_s=10.3), Usage(7, 2, 3), waited_s=0.2)
    subject.ended(CallRecord("r", 10.0, call=call(), lease=lease, error=EngineLost()), 1.5)
    refused = LimitReached("tokens_per_minute", 5, "key k", 1.0)
    subject.ended(CallRecord("r", 10.0, call=call(), error=refused), 1.5)
    subject.attempt("tiny", "a", "answered")
    subject.gaps("tiny").observe(0.1)
    subject.head_refused(NotHttp())
    found = [
        (
            family.name,
            family.type,
            " ".join(sorted({label for sample in family.samples for label in sample.labels} - {"le"})),
            " ".join(dict.fromkeys(sample.labels["le"] for sample in family.samples if "le" in sample.labels)),
            family.documentation,
        )
        for family in exposed(subject)
        if family.name.startswith("pagegate_")
    ]
    assert found == FAMILIES


def test_before_the_first_call_every_family_is_named() -> None:
    """A reader learns what there will be; and no series is there before something was counted in it."""
    families = {family.name: family for family in exposed(metrics())}
    assert {name for name, *_ in FAMILIES} <= set(families)
    assert families["pagegate_calls"].samples == families["pagegate_overhead_seconds"].samples == []


def test_every_metric_is_explained() -> None:
    """What a scrape shows, its reader understands."""
    for family in exposed(metrics()):
        assert family.documentation, family.name
        assert family.name.startswith(("pagegate_", "process_", "python_gc_"))


def test_the_process_is_told_too() -> None:
    """Memory, descriptors and processor time, as they are when somebody looks."""
    subject = metrics()
    assert value(subject, "process_open_fds") > 0
    assert value(subject, "process_resident_memory_bytes") > 2**20
    assert value(subject, "process_cpu_seconds_total") > 0
    assert value(subject, "python_gc_collections_total", generation="0") >= 0


class Clock:
    """A clock that is read off a list."""

    def __init__(self, *readings_s: float) -> None:
        self._readings_s = list(readings_s)

    def __call__(self) -> float:
        return self._readings_s.pop(0)


@pytest.mark.anyio
async def test_the_lag_of_the_loop_is_how_late_a_timer_is_called() -> None:
    """From its time to its turn; one that is early is not late. Nothing goes on after the block."""
    subject, all_told = metrics(), asyncio.Event()
    told: list[float] = []

    def tell(lag_s: float) -> None:
        told.append(lag_s)
        subject.loop_lag.observe(lag_s)
        if len(told) == 2:
            all_told.set()

    async with LoopLag(tell, Clock(100.0, 100.35, 200.0, 200.05, 300.0)):
        await all_told.wait()
    assert told == [pytest.approx(0.25), 0.0]
    assert value(subject, "pagegate_event_loop_lag_seconds_count") == 2
    assert value(subject, "pagegate_event_loop_lag_seconds_bucket", le="0.1") == 1
    later = asyncio.Event()
    async with LoopLag(lambda _: later.set(), Clock(0.0, 0.0, 0.0)):
        await later.wait()
    assert len(told) == 2
