"""What every call leaves behind, whatever way it ends: one trace where it is sampled, its metrics, one log line."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from opentelemetry.trace import Tracer

from gateway.settings import TelemetrySettings
from gateway.telemetry.logs import Log
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import CallRecord, Outcome
from gateway.telemetry.spans import CallTrace, is_chosen, parse


class Arriving(Protocol):
    """What telemetry needs of a call that has only begun."""

    id: str
    method: str
    path: str
    received_at_s: float

    @property
    def traceparent(self) -> str | None: ...


class Telemetry:
    """Follows calls. `tracer` is None where nobody collects traces."""

    def __init__(
        self,
        settings: TelemetrySettings,
        tracer: Tracer | None,
        metrics: Metrics,
        log: Log,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._tracer = tracer
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._rng = rng

    @contextmanager
    def call(self, arrival: Arriving) -> Iterator[CallTrace]:
        """Follows one call to its end, and then tells what came of it."""
        trace = self._begin(arrival)
        try:
            yield trace
        except BaseException as error:
            trace.record.error = error
            raise
        finally:
            self._end(trace)

    def _begin(self, arrival: Arriving) -> CallTrace:
        parent = parse(arrival.traceparent) if self._settings.join_callers_trace else None
        trace_id = parent.trace_id if parent else self._rng.getrandbits(128) or 1
        record = CallRecord(arrival.id, arrival.received_at_s)
        trace = CallTrace(record, self._metrics, self._clock, trace_id, self._rng.getrandbits(64) or 1)
        chosen = parent.trace_flags.sampled if parent else is_chosen(trace_id, self._settings.sample_ratio)
        if self._tracer is not None and chosen:
            trace.sample(self._tracer, f"{arrival.method} {arrival.path}", parent)
        return trace

    def _end(self, trace: CallTrace) -> None:
        record = trace.record
        duration_s = self._clock() - record.received_at_s
        trace.end()
        self._metrics.ended(record, duration_s)
        if not self._settings.log_calls:
            return
        principal, call, usage, first_token_s = record.principal, record.call, record.usage, record.first_token_s
        log = self._log.warning if record.outcome in (Outcome.FAILED, Outcome.SEVERED) else self._log.info
        log(
            "call",
            call=record.id,
            trace_id=f"{trace.trace_id:032x}",
            outcome=record.outcome.value,
            error=record.error_type,
            tenant=principal.tenant.name if principal else None,
            key=principal.name if principal else None,
            model=call.model if call else None,
            stream=call.stream if call else None,
            replica=record.replica,
            attempts=record.attempts,
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            measured=usage.measured if usage else None,
            first_token_ms=None if first_token_s is None else round(first_token_s * 1000, 2),
            engine_ms=round(record.upstream_s * 1000, 2),
            duration_ms=round(duration_s * 1000, 2),
        )
