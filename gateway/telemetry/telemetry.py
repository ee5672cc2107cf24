"""What every call leaves behind, whatever way it ends: one trace where it is sampled, its metrics, one log line."""

import random
from collections.abc import Callable
from typing import Any, Protocol

from opentelemetry.trace import Tracer

from gateway.settings import TelemetrySettings
from gateway.telemetry.accounting import Accounting
from gateway.telemetry.logs import Level, Log
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import CallRecord, Outcome
from gateway.telemetry.spans import Spans, is_chosen, parse
from gateway.telemetry.trace import CallTrace

TRACE_DIGITS, SPAN_DIGITS = 32, 16
ID_BITS = 4 * (TRACE_DIGITS + SPAN_DIGITS)
# Identifiers that are zero mean that there is none: in ours the last bit is always set.
NOT_ZERO = 1 << 4 * SPAN_DIGITS | 1
WARNED_OF = frozenset({Outcome.FAILED, Outcome.SEVERED})


class Arriving(Protocol):
    """What telemetry needs of a call that has only begun."""

    id: str
    method: str
    path: str
    received_at_s: float

    @property
    def traceparent(self) -> str | None: ...


class Telemetry:
    """Follows calls. `tracer` is None where nobody collects traces, `accounting` where nobody keeps what calls used."""

    def __init__(
        self,
        settings: TelemetrySettings,
        tracer: Tracer | None,
        metrics: Metrics,
        log: Log,
        clock: Callable[[], float],
        rng: random.Random,
        accounting: Accounting | None = None,
    ) -> None:
        self._joins = settings.join_callers_trace
        self._ratio = settings.sample_ratio
        self._log = log if settings.log_calls else None
        self._tracer = tracer
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._accounting = accounting

    def call(self, arrival: Arriving) -> CallTrace:
        """Follows one call while the block runs, and then tells what came of it."""
        bits = self._rng.getrandbits(ID_BITS) | NOT_ZERO
        digits = f"{bits:048x}"
        trace_id, spans = digits[:TRACE_DIGITS], None
        header = arrival.traceparent if self._joins else None
        parent = parse(header) if header is not None else None
        if parent is not None:
            trace_id = f"{parent.trace_id:032x}"
        if self._tracer is not None and (
            is_chosen(bits >> 4 * SPAN_DIGITS, self._ratio) if parent is None else parent.trace_flags.sampled
        ):
            spans = Spans(self._tracer, f"{arrival.method} {arrival.path}", parent)
            trace_id = spans.trace_id
        record = CallRecord(arrival.id, arrival.received_at_s)
        return CallTrace(record, trace_id, digits[TRACE_DIGITS:], spans, self._metrics, self._clock, self._tell)

    def _tell(self, trace: CallTrace) -> None:
        record, duration_s = trace.record, self._clock() - trace.record.received_at_s
        self._metrics.ended(record, duration_s)
        if self._accounting is not None:
            self._accounting.ended(record, trace.trace_id, duration_s)
        if self._log is not None:
            outcome = record.outcome
            level: Level = "warning" if outcome in WARNED_OF else "info"
            self._log.line(level, "call", _line(record, outcome, trace.trace_id, duration_s))


def _line(record: CallRecord, outcome: Outcome, trace_id: str, duration_s: float) -> dict[str, Any]:
    """What is logged of a call, in this order; what is not known is left out."""
    principal, call, usage, first_token_s = record.principal, record.call, record.usage, record.first_token_s
    told: dict[str, Any] = {"call": record.id, "trace_id": trace_id, "outcome": outcome}
    if outcome is not Outcome.OK:
        told["error"] = record.error_type
    if principal is not None:
        told["tenant"] = principal.tenant.name
        told["key"] = principal.name
    if call is not None:
        told["model"] = call.model
        told["stream"] = call.stream
    if record.replica is not None:
        told["replica"] = record.replica
    told["attempts"] = record.attempts
    if usage is not None:
        told["prompt_tokens"] = usage.prompt_tokens
        told["completion_tokens"] = usage.completion_tokens
        told["cached_tokens"] = usage.cached_tokens
        told["measured"] = usage.measured
    if first_token_s is not None:
        told["first_token_ms"] = _ms(first_token_s)
    if record.waited_s:
        told["queue_ms"] = _ms(record.waited_s)
    told["engine_ms"] = _ms(record.upstream_s)
    told["duration_ms"] = _ms(duration_s)
    return told


def _ms(seconds: float) -> float:
    """Milliseconds to the hundredth, at half of what `round` costs."""
    return int(seconds * 100_000 + 0.5) / 100
