"""gateway/telemetry: what a call leaves behind: its record, its spans, its log line; and never what was said in it."""

import asyncio
import io
import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from pydantic import ValidationError

from gateway import errors
from gateway.call import Call, Delivery, Usage
from gateway.errors import GatewayError
from gateway.fleet.replica import Blame, Replica, Snapshot
from gateway.http1 import Address
from gateway.identity.principal import Principal, Tenant
from gateway.settings import Limits, ReplicaSettings, TelemetrySettings
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import CallRecord, Outcome
from gateway.telemetry.spans import is_chosen, parse, traceparent
from gateway.telemetry.telemetry import Telemetry
from tests.unit.splitting import thorough

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CANARY = "canary-of-a-prompt"


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        pytest.param(f"00-{TRACE}-{SPAN}-01", True, id="sampled"),
        pytest.param(f"00-{TRACE}-{SPAN}-00", False, id="not sampled"),
        pytest.param(f"00-{TRACE}-{SPAN}-03", True, id="other flags do not matter"),
        pytest.param(f"00-{TRACE}-{SPAN}-02", False, id="nor do they sample"),
        pytest.param(f"01-{TRACE}-{SPAN}-01", True, id="a version to come"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01-what-ever", True, id="with more behind it"),
        pytest.param(f"00-{TRACE}-{SPAN}-01-more", None, id="today's has no more"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01more", None, id="more without a dash"),
        pytest.param(f"ff-{TRACE}-{SPAN}-01", None, id="a version that cannot be"),
        pytest.param(f"00-{'0' * 32}-{SPAN}-01", None, id="no trace"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", None, id="no span"),
        pytest.param(f"00-{TRACE.upper()}-{SPAN}-01", None, id="in capitals"),
        pytest.param(f"00-{TRACE[1:]}-{SPAN}-01", None, id="too short"),
        pytest.param(f"00-{TRACE}-{SPAN}", None, id="without flags"),
        pytest.param(f" 00-{TRACE}-{SPAN}-01", None, id="a space"),
        pytest.param(f"00-{TRACE}-{SPAN}-01\n", None, id="a line end"),
        pytest.param(f"00-{TRACE}-{SPAN}-0x", None, id="no hexadecimal"),
        pytest.param("\u0660\u0660-" + TRACE, None, id="other digits"),
        pytest.param("", None, id="empty"),
        pytest.param(None, None, id="none"),
    ],
)
def test_a_traceparent_is_read_as_the_standard_says(header: str | None, sampled: bool | None) -> None:
    """W3C Trace Context; what is not one is as good as none."""
    context = parse(header)
    if sampled is None:
        assert context is None
    else:
        assert context is not None
        assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (TRACE, SPAN)
        assert context.trace_flags.sampled is sampled
        assert context.is_remote


@thorough
@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_sent_on_reads_back(trace_id: int, span_id: int, sampled: bool) -> None:
    """Engines and gateways behind this one understand it."""
    context = parse(traceparent(f"{trace_id:032x}", f"{span_id:016x}", sampled=sampled))
    assert context is not None
    assert (context.trace_id, context.span_id, bool(context.trace_flags.sampled)) == (trace_id, span_id, sampled)


@thorough
@given(st.text(max_size=70))
def test_no_header_is_too_odd(header: str) -> None:
    """It comes from callers."""
    assert parse(header) is None or len(header) >= 55


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 1.0])
def test_the_sampled_share_is_the_share_that_was_asked_for(ratio: float) -> None:
    """Decided by the trace's identifier alone, so that every gateway agrees."""
    rng = random.Random(1)
    chosen = sum(is_chosen(rng.getrandbits(128), ratio) for _ in range(20_000))
    assert chosen == pytest.approx(20_000 * ratio, abs=200 if 0 < ratio < 1 else 0)


def test_the_extremes_sample_all_or_nothing() -> None:
    """Also for identifiers at the ends of their range."""
    for trace_id in (1, 2**64 - 1, 2**64, 2**128 - 1):
        assert is_chosen(trace_id, 1.0)
        assert not is_chosen(trace_id, 0.0)


CALL = Call(
    id="req_1",
    path="/v1/chat/completions",
    model="tiny",
    body={"model": "tiny", "messages": [{"role": "user", "content": CANARY}], "temperature": 0.5, "seed": 7},
    stream=True,
    wants_usage=False,
    choices=2,
    max_tokens=20,
    prompt_bytes=100,
    received_at_s=100.0,
)
PRINCIPAL = Principal("key/mine", "mine", Tenant("team", Limits(), "salt-canary"), ("*",))
REPLICA = Replica("a", "tiny", Address("10.0.0.7", 9101, api_key="key-canary"))


@dataclass
class Lease:
    """What a call was admitted under."""

    delivery: Delivery = field(default_factory=Delivery)
    charged: Usage | None = None
    cost_micros: int = 0
    waited_s: float = 0.0


OUTCOMES: dict[type[BaseException], Outcome] = {
    errors.BadCall: Outcome.BAD_CALL,
    errors.Refused: Outcome.REFUSED,
    errors.Unserved: Outcome.UNSERVED,
    errors.Severed: Outcome.SEVERED,
    errors.CallerLeft: Outcome.CANCELLED,
}


def all_errors(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    for error in kind.__subclasses__():
        yield error
        yield from all_errors(error)


@pytest.mark.parametrize("kind", sorted(set(all_errors()), key=str))
def test_every_error_has_an_outcome(kind: type[GatewayError]) -> None:
    """By whose fault it is; the error itself is named by its class, which callers cannot invent."""
    error = kind.__new__(kind)
    (expected,) = [outcome for fault, outcome in OUTCOMES.items() if issubclass(kind, fault)]
    record = CallRecord("r", 0.0, error=error)
    assert record.outcome is expected
    assert record.error_type == kind.__name__


@pytest.mark.parametrize(
    ("error", "complete", "outcome"),
    [
        pytest.param(None, True, Outcome.OK, id="well"),
        pytest.param(None, False, Outcome.OK, id="nothing went wrong"),
        pytest.param(errors.CallerLeft(), True, Outcome.OK, id="left with the whole reply"),
        pytest.param(errors.ShuttingDown(), True, Outcome.OK, id="shut down after the whole reply"),
        pytest.param(errors.CallerLeft(), False, Outcome.CANCELLED, id="left before"),
        pytest.param(RuntimeError("x"), False, Outcome.FAILED, id="a fault of ours"),
        pytest.param(asyncio.CancelledError(), False, Outcome.FAILED, id="ended by force"),
    ],
)
def test_how_a_call_ended(error: BaseException | None, complete: bool, outcome: Outcome) -> None:
    """A caller who has the whole reply has been served, however his connection ended after that."""
    record = CallRecord("r", 0.0, lease=Lease(Delivery(complete=complete)), error=error)
    assert record.outcome is outcome
    assert (record.error_type is None) is (outcome is Outcome.OK)


def test_a_record_that_knows_nothing_yet() -> None:
    """A call that was refused at its head has no model, no usage and no first token."""
    record = CallRecord("r", 5.0)
    assert (record.model, record.usage, record.first_token_s) == ("none", None, None)
    record.call, record.lease = CALL, Lease(Delivery(first_at_s=7.5), Usage(1, 2))
    assert (record.model, record.usage, record.first_token_s) == ("tiny", Usage(1, 2), 2.5)


# A call as the pipeline takes it, told in spans, metrics and a log line.


@dataclass
class Arrival:
    """A call that has only begun."""

    id: str = "req_1"
    method: str = "POST"
    path: str = "/v1/chat/completions"
    received_at_s: float = 100.0
    traceparent: str | None = None


@dataclass
class Ticking:
    """A clock on which half a second passes between two looks."""

    now_s: float = 100.0

    def __call__(self) -> float:
        self.now_s += 0.5
        return self.now_s


@dataclass
class Observed:
    """Telemetry of one call after another, and all that it told."""

    telemetry: Telemetry
    exporter: InMemorySpanExporter
    out: io.BytesIO
    metrics: Metrics
    clock: Ticking
    held: list[str] = field(default_factory=list)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.out.getvalue().splitlines()]


def observing(*, traced: bool = True, **given: Any) -> Observed:
    exporter, out = InMemorySpanExporter(), io.BytesIO()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = TelemetrySettings(**given)
    metrics = Metrics(lambda: Snapshot({"tiny": (REPLICA,)}), lambda: 0, tuple)
    clock = Ticking()
    telemetry = Telemetry(
        settings,
        provider.get_tracer("tests") if traced else None,
        metrics,
        logs.make(settings, out),
        clock,
        random.Random(7),
    )
    return Observed(telemetry, exporter, out, metrics, clock)


def follow(observed: Observed, arrival: Arrival | None = None, error: Exception | None = None) -> str | None:
    """A call through all its stages; the traceparent that its engine was sent."""
    try:
        with observed.telemetry.call(arrival or Arrival()) as trace:
            with trace.stage("identity"):
                trace.record.principal = PRINCIPAL
            with trace.stage("edge"):
                trace.record.call = CALL
            lease = trace.record.lease = Lease()
            with trace.stage("routing") as stage:
                stage.receipt(lambda: "a=1.000")
            attempt = trace.attempt(REPLICA, CALL)
            attempt.answered()
            with trace.stage("relay"):
                lease.delivery.first_at_s = observed.clock()
                lease.delivery.usage = lease.charged = Usage(7, 2, 3)
                lease.delivery.finish_reasons += ["stop", "length"]
                trace.gap(0.25)
                trace.headers()
            attempt.end(error, Blame.FAULT if error else None)
            if error:
                raise error
            lease.delivery.complete = True
            return attempt.traceparent
    except GatewayError:
        return None


def test_one_call_is_one_trace() -> None:
    """A root, a span for each stage and one for the attempt, named and attributed by the conventions."""
    observed = observing()
    sent = parse(follow(observed))
    spans = observed.spans
    assert set(spans) == {"POST /v1/chat/completions", "identity", "edge", "routing", "relay", "chat tiny"}
    root, attempt = spans["POST /v1/chat/completions"], spans["chat tiny"]
    assert root.parent is None
    for name, span in spans.items():
        assert span.context is not None
        assert root.context is not None
        assert span.context.trace_id == root.context.trace_id
        assert name == root.name or (span.parent and span.parent.span_id == root.context.span_id)
        assert span.status.status_code is StatusCode.UNSET
    assert sent is not None
    assert attempt.context is not None
    assert (sent.trace_id, sent.span_id) == (attempt.context.trace_id, attempt.context.span_id)
    assert sent.trace_flags.sampled
    assert dict(attempt.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.choice.count": 2,
        "server.address": "10.0.0.7",
        "server.port": 9101,
        "pagegate.replica": "a",
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "gen_ai.response.time_to_first_chunk": 1.0,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 3,
    }
    assert dict(root.attributes or {}) == {
        "pagegate.call": "req_1",
        "pagegate.outcome": "ok",
        "pagegate.tenant": "team",
        "pagegate.key": "mine",
        "gen_ai.request.model": "tiny",
        "pagegate.attempts": 1,
    }
    assert dict(spans["routing"].attributes or {}) == {"pagegate.receipt": "a=1.000"}


def test_a_call_leaves_one_line() -> None:
    """With the identifiers that lead from it to its trace and back."""
    observed = observing()
    follow(observed)
    (line,) = observed.lines
    root = observed.spans["POST /v1/chat/completions"].context
    assert root is not None
    assert list(line) == [
        *("timestamp", "level", "event", "call", "trace_id", "outcome", "tenant", "key", "model", "stream", "replica"),
        *("attempts", "prompt_tokens", "completion_tokens", "cached_tokens", "measured"),
        *("first_token_ms", "engine_ms", "duration_ms"),
    ]
    assert line["trace_id"] == f"{root.trace_id:032x}"
    assert {name: line[name] for name in ("level", "event", "call", "outcome", "tenant", "key", "model")} == {
        "level": "info",
        "event": "call",
        "call": "req_1",
        "outcome": "ok",
        "tenant": "team",
        "key": "mine",
        "model": "tiny",
    }
    assert (line["prompt_tokens"], line["completion_tokens"], line["cached_tokens"]) == (7, 2, 3)
    assert (line["attempts"], line["replica"], line["stream"], line["measured"]) == (1, "a", True, True)
    assert line["duration_ms"] > line["first_token_ms"] > line["engine_ms"] > 0
    assert "error" not in line


@pytest.mark.parametrize(
    ("error", "level", "status"),
    [
        (errors.EngineLost(), "warning", StatusCode.ERROR),
        (errors.NoReplica("tiny"), "info", StatusCode.ERROR),
        (errors.BadCall(CANARY), "info", StatusCode.ERROR),
        (errors.CallerLeft(), "info", StatusCode.UNSET),
    ],
)
def test_a_call_that_failed_names_its_error_and_not_its_words(
    error: GatewayError, level: str, status: StatusCode
) -> None:
    """By class, in the spans and in the line; a caller who left is nobody's fault."""
    observed = observing()
    follow(observed, error=error)
    (line,) = observed.lines
    assert (line["level"], line["error"]) == (level, type(error).__name__)
    for name in ("POST /v1/chat/completions", "chat tiny"):
        span = observed.spans[name]
        assert (span.attributes or {})["error.type"] == type(error).__name__
        assert span.status.status_code is status
        assert span.status.description is None
        assert not span.events


@pytest.mark.parametrize(
    ("header", "given", "sampled", "joined"),
    [
        pytest.param(None, {}, True, False, id="all, unless told otherwise"),
        pytest.param(None, {"sample_ratio": 0}, False, False, id="none"),
        pytest.param(f"00-{TRACE}-{SPAN}-01", {"sample_ratio": 0}, True, True, id="the caller samples"),
        pytest.param(f"00-{TRACE}-{SPAN}-00", {"sample_ratio": 1}, False, True, id="the caller does not"),
        pytest.param(
            f"00-{TRACE}-{SPAN}-01", {"sample_ratio": 0, "join_callers_trace": False}, False, False, id="is not asked"
        ),
        pytest.param(f"00-{TRACE}-{SPAN}-01", {"join_callers_trace": False}, True, False, id="nor joined"),
        pytest.param("nonsense", {}, True, False, id="nonsense is no trace"),
    ],
)
def test_which_calls_are_traced(header: str | None, given: dict[str, Any], sampled: bool, joined: bool) -> None:
    """An engine is always told; one whose call is not sampled starts no trace of its own."""
    observed = observing(**given)
    sent = parse(follow(observed, Arrival(traceparent=header)))
    assert bool(observed.spans) is sampled
    assert sent is not None
    assert bool(sent.trace_flags.sampled) is sampled
    assert (f"{sent.trace_id:032x}" == TRACE) is joined
    assert observed.lines[0]["trace_id"] == f"{sent.trace_id:032x}"
    if sampled and joined:
        parent = observed.spans["POST /v1/chat/completions"].parent
        assert parent is not None
        assert f"{parent.span_id:016x}" == SPAN


def test_without_a_collector_nothing_is_traced_and_all_is_counted() -> None:
    """Identifiers there are all the same."""
    observed = observing(traced=False)
    sent = parse(follow(observed))
    assert sent is not None
    assert not sent.trace_flags.sampled
    assert not observed.spans
    assert b'pagegate_calls_total{model="tiny",outcome="ok"} 1.0' in observed.metrics.exposition()


class Unlucky(random.Random):
    """Dice that always show zeros."""

    def getrandbits(self, k: int, /) -> int:
        return 0


def test_no_identifier_is_zero() -> None:
    """Zeros mean that there is none (W3C): the engine would begin a trace of its own."""
    settings = TelemetrySettings(log_calls=False)
    metrics = Metrics(lambda: Snapshot({}), lambda: 0, tuple)
    telemetry = Telemetry(settings, None, metrics, logs.make(settings, io.BytesIO()), Ticking(), Unlucky())
    with telemetry.call(Arrival()) as trace:
        assert parse(trace.attempt(REPLICA, CALL).traceparent) is not None


def test_the_line_can_be_switched_off() -> None:
    """Metrics and traces go on."""
    observed = observing(log_calls=False)
    follow(observed)
    assert observed.lines == []
    assert observed.spans


@pytest.mark.parametrize(("level", "told"), [("info", ["info", "warning"]), ("warning", ["warning"]), ("error", [])])
def test_the_line_of_a_call_has_a_level_like_every_other(level: str, told: list[str]) -> None:
    """Those below the lowest are not written."""
    observed = observing(log_level=level)
    follow(observed)
    follow(observed, error=errors.EngineLost())
    assert [line["level"] for line in observed.lines] == told


@pytest.mark.parametrize(
    ("took_s", "told_ms"), [(0.0, 0.0), (0.00123456, 1.23), (0.001235001, 1.24), (12.5, 12500.0), (3600.0, 3600000.0)]
)
def test_times_are_told_to_the_hundredth_of_a_millisecond(took_s: float, told_ms: float) -> None:
    """More would be noise."""
    observed = observing(traced=False)
    observed.clock.now_s = 0.0
    with observed.telemetry.call(Arrival(received_at_s=0.5 - took_s)):
        pass
    assert observed.lines[0]["duration_ms"] == told_ms


def test_a_log_that_was_closed_costs_no_call() -> None:
    """Its line is lost; what is counted stays."""
    observed = observing()
    observed.out.close()
    assert follow(observed) is not None
    assert b'pagegate_calls_total{model="tiny",outcome="ok"} 1.0' in observed.metrics.exposition()


def test_a_call_that_crashed_is_told_and_the_crash_goes_on() -> None:
    """The last resort is the edge's."""
    observed = observing()
    with pytest.raises(KeyError), observed.telemetry.call(Arrival()) as trace, trace.stage("edge"):
        raise KeyError(CANARY)
    (line,) = observed.lines
    assert (line["outcome"], line["error"], line["level"]) == ("failed", "KeyError", "warning")
    assert observed.spans["edge"].status.status_code is StatusCode.ERROR


def test_headers_split_the_time_into_ours_and_the_engines() -> None:
    """So that nobody has to guess whose latency it is."""
    observed = observing()
    with observed.telemetry.call(Arrival()) as trace:
        attempt = trace.attempt(REPLICA, CALL)
        attempt.answered()
        headers = dict(line.split(": ", 1) for line in trace.headers().decode().splitlines())
    assert list(headers) == ["openai-processing-ms", "server-timing", "x-pagegate-replica", "x-pagegate-trace"]
    assert headers["x-pagegate-replica"] == "a"
    assert headers["x-pagegate-trace"] == observed.lines[0]["trace_id"]
    ours, engines = (float(part.partition("dur=")[2]) for part in headers["server-timing"].split(", "))
    assert engines == 500.0
    assert ours + engines == pytest.approx(float(headers["openai-processing-ms"]), abs=1)


def test_headers_are_whole_lines_from_the_beginning() -> None:
    """Also of a call that no engine was asked for."""
    observed = observing(traced=False)
    with observed.telemetry.call(Arrival()) as trace:
        lines = trace.headers()
    assert lines == (
        b"openai-processing-ms: 500\r\n"
        b"server-timing: gateway;dur=500.00, engine;dur=0.00\r\n"
        b"x-pagegate-replica: \r\n"
        b"x-pagegate-trace: " + trace.trace_id.encode() + b"\r\n"
    )


@pytest.mark.parametrize("name", ["a\r\nx-injected: 1", "a\n", "a\r", "\n", "a\0", "a b", "caf\xe9", "a\u2028b", ""])
def test_no_replicas_name_can_end_a_line(name: str) -> None:
    """It stands in a header as it is in the settings."""
    with pytest.raises(ValidationError):
        ReplicaSettings(name=name, url="http://127.0.0.1:1")


@asynccontextmanager
async def held(observed: Observed, error: Exception | None = None) -> AsyncIterator[str]:
    """A stage that holds something, or fails to get hold of it."""
    observed.held.append("held")
    if error:
        raise error
    yield "what is held"
    observed.held.append("let go")


@pytest.mark.anyio
@pytest.mark.parametrize("given", [{}, {"sample_ratio": 0}])
async def test_the_span_of_a_stage_that_holds_something_ends_when_it_holds_it(given: dict[str, Any]) -> None:
    """How long it took to be admitted is not how long the call ran."""
    observed = observing(**given)
    with observed.telemetry.call(Arrival()) as trace:
        async with trace.entering("admission", held(observed)) as got:
            assert got == "what is held"
            assert set(observed.spans) == (set() if given else {"admission"})
            assert observed.held == ["held"]
    assert observed.held == ["held", "let go"]


@pytest.mark.anyio
async def test_a_stage_that_cannot_be_entered_has_a_span_that_failed() -> None:
    """And the error goes on."""
    observed = observing()
    with pytest.raises(errors.EnginesBusy), observed.telemetry.call(Arrival()) as trace:
        async with trace.entering("upstream", held(observed, errors.EnginesBusy())):
            raise AssertionError
    assert observed.spans["upstream"].status.status_code is StatusCode.ERROR


def test_an_attempt_on_which_nothing_came_tells_of_no_answer() -> None:
    """Only what was asked; and whether the engine failed, or its caller left."""
    observed = observing()
    with observed.telemetry.call(Arrival()) as trace:
        trace.record.call, trace.record.lease = CALL, Lease()
        trace.attempt(REPLICA, CALL).end(errors.EngineFailed("x"), Blame.UNREACHABLE)
        trace.attempt(REPLICA, CALL).end(errors.CallerLeft())
    assert not [name for name in observed.spans["chat tiny"].attributes or {} if "response" in name or "usage" in name]
    text = observed.metrics.exposition().decode()
    assert 'pagegate_attempts_total{model="tiny",replica="a",result="unreachable"} 1.0' in text
    assert 'pagegate_attempts_total{model="tiny",replica="a",result="left"} 1.0' in text
    assert observed.lines[0]["attempts"] == 2


# The log.


def logged(**given: Any) -> tuple[logs.Log, io.BytesIO]:
    out = io.BytesIO()
    return logs.make(TelemetrySettings(**given), out), out


def raised(error: BaseException) -> BaseException:
    """The error after it was raised from another, as a handler sees it."""
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as earlier:
            raise error from earlier
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        ValueError(CANARY),
        KeyError(CANARY),
        ExceptionGroup(CANARY, [ValueError(CANARY), RuntimeError(CANARY)]),
        errors.BadCall(CANARY),
        UnicodeEncodeError("utf-8", CANARY, 0, 1, CANARY),
    ],
)
def test_an_error_is_logged_without_its_words(error: Exception) -> None:
    """They may quote a prompt or a key. The class and the places are what a fault is found by."""
    log, out = logged()
    log.error("call_failed", exc_info=raised(error))
    assert CANARY.encode() not in out.getvalue()
    (line,) = map(orjson.loads, out.getvalue().splitlines())
    assert type(error).__name__ in line["exception"]
    assert "KeyError" in line["exception"]
    assert "in raised" in line["exception"]
    assert "exc_info" not in line


def test_an_error_that_is_its_own_cause_is_told_once() -> None:
    """Nothing goes round in circles."""
    error = RuntimeError(CANARY)
    error.__cause__ = error
    log, out = logged()
    log.error("call_failed", exc_info=error)
    assert out.getvalue().count(b"RuntimeError") == 1


def test_a_line_is_json_whatever_is_in_it() -> None:
    """Of a thing that has no JSON only the class is told; what is None is not told."""
    log, out = logged()
    log.info("event", b=1, a=None, thing=object(), text="a\nb\u2028")
    (line,) = map(orjson.loads, out.getvalue().splitlines())
    assert {name: line[name] for name in line if name != "timestamp"} == {
        "level": "info",
        "event": "event",
        "b": 1,
        "thing": "<object>",
        "text": "a\nb\u2028",
    }


def test_what_is_below_the_level_is_not_logged() -> None:
    """Nor computed."""
    log, out = logged(log_level="warning")
    log.info("quiet")
    log.warning("loud")
    assert [orjson.loads(line)["event"] for line in out.getvalue().splitlines()] == ["loud"]


def test_a_whole_line_is_a_line_like_every_other() -> None:
    """Only cheaper: same names, same order, same form of time."""
    log, out = logged()
    log.info("event", b=1, a="x", outcome=Outcome.OK)
    log.line("info", "event", {"b": 1, "a": "x", "outcome": Outcome.OK})
    first, second = [orjson.loads(line) for line in out.getvalue().splitlines()]
    assert list(first) == list(second) == ["timestamp", "level", "event", "b", "a", "outcome"]
    for line in (first, second):
        timestamp = line.pop("timestamp")
        assert timestamp.endswith("Z")
        assert abs(datetime.now(UTC) - datetime.fromisoformat(timestamp)) < timedelta(minutes=1)
    assert first == second


def test_two_logs_do_not_know_each_other() -> None:
    """Two gateways run in one process."""
    (one, first), (two, second) = logged(log_level="error"), logged()
    one.info("a")
    two.info("b")
    assert first.getvalue() == b""
    assert second.getvalue().count(b"\n") == 1


def test_libraries_are_heard_while_a_gateway_runs_and_say_little() -> None:
    """Warnings and worse; of an error no words, of a message the first line, as the rest shows what things hold."""
    log, out = logged()
    library = logging.getLogger("some.library")
    with logs.libraries(log):
        library.info("nothing")
        library.warning("Task %s\nfuture: <Task exception=ValueError('%s')>", "failed", CANARY)
        library.error("odd \udcff %s", "x" * 1000)
        try:
            raise ValueError(CANARY)
        except ValueError:
            library.exception("it broke")
    library.warning("nobody listens any more")
    lines = [orjson.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["level"], line["event"], line["logger"]) for line in lines] == [
        ("warning", "library", "some.library"),
        ("error", "library", "some.library"),
        ("error", "library", "some.library"),
    ]
    assert lines[0]["message"] == "Task failed"
    assert len(lines[1]["message"]) == logs.LONGEST_MESSAGE
    assert "ValueError" in lines[2]["exception"]
    assert CANARY.encode() not in out.getvalue()


def test_nothing_of_a_call_is_told_that_was_said_in_it() -> None:
    """Neither prompt nor key nor salt, in log, metrics and trace, however the call ends."""
    observed = observing(log_level="debug")
    for error in (None, errors.EngineLost(), errors.BadCall(CANARY), errors.UnknownModel(CANARY)):
        follow(observed, error=error)
    told = observed.out.getvalue() + observed.metrics.exposition()
    told += b"".join(span.to_json().encode() for span in observed.exporter.get_finished_spans())
    for hidden in (CANARY, "salt-canary", "key-canary"):
        assert hidden.encode() not in told
