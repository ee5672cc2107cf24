"""One call under way: its record, its attempts, and its spans where it is sampled.

A call that is not sampled costs these and its identifiers; no span is made for it. What comes of a call in the end is
`telemetry.py`'s business.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from opentelemetry.trace import Span

from gateway.call import Call
from gateway.fleet.replica import Blame, Replica
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import CallRecord
from gateway.telemetry.spans import UNSEEN, Entered, Entering, Spans, Stage, end, response_attributes, traceparent


class AttemptSpan:
    """One attempt: from sending the call to an engine to the end of its answer.

    `traceparent` is what the engine continues the trace from; for a call that is not sampled it says so, which
    keeps the engine from starting a trace of its own.
    """

    __slots__ = ("_begun_s", "_clock", "_metrics", "_model", "_record", "_replica", "_span", "_waiting", "traceparent")

    def __init__(
        self,
        model: str,
        replica: str,
        record: CallRecord,
        metrics: Metrics,
        clock: Callable[[], float],
        span: Span | None,
        traceparent: str,
    ) -> None:
        self._model = model
        self._replica = replica
        self._record = record
        self._metrics = metrics
        self._clock = clock
        self._span = span
        self.traceparent: str | None = traceparent
        self._begun_s = clock()
        self._waiting = True
        record.attempts += 1
        record.replica = replica

    def answered(self) -> None:
        """The engine's answer has begun."""
        if self._waiting:
            self._waiting = False
            self._record.upstream_s += self._clock() - self._begun_s

    def end(self, error: BaseException | None, blame: Blame | None = None) -> None:
        """The attempt failed, or its answer was read or left."""
        given_up = "left" if self._waiting else "answered"
        self.answered()
        self._metrics.attempt(self._model, self._replica, given_up if blame is None else blame.value)
        if self._span is not None:
            self._span.set_attributes(response_attributes(self._record, self._begun_s))
            end(self._span, error)


class CallTrace:
    """One call under way, as a block: its record, and its spans where it is sampled. `trace_id` is hexadecimal."""

    __slots__ = ("_clock", "_metrics", "_span_id", "_spans", "_tell", "record", "trace_id")

    def __init__(
        self,
        record: CallRecord,
        trace_id: str,
        span_id: str,
        spans: Spans | None,
        metrics: Metrics,
        clock: Callable[[], float],
        tell: Callable[["CallTrace"], None],
    ) -> None:
        self.record = record
        self.trace_id = trace_id
        self._span_id = span_id
        self._spans = spans
        self._metrics = metrics
        self._clock = clock
        self._tell = tell

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.record.error = error
        if self._spans is not None:
            self._spans.end(self.record)
        self._tell(self)

    def stage(self, name: str) -> Stage:
        """The span of a stage, as a block."""
        return UNSEEN if self._spans is None else self._spans.stage(name)

    def entering(
        self, name: str, manager: AbstractAsyncContextManager[Entered]
    ) -> AbstractAsyncContextManager[Entered]:
        """The same for a stage that holds something while the later ones run: its span ends once it holds it."""
        return manager if self._spans is None else Entering(self._spans.stage(name), manager)

    def attempt(self, replica: Replica, call: Call) -> AttemptSpan:
        """An attempt that begins now."""
        if self._spans is None:
            span, sent = None, traceparent(self.trace_id, self._span_id, sampled=False)
        else:
            span = self._spans.attempt(call, replica)
            sent = traceparent(self.trace_id, f"{span.get_span_context().span_id:016x}", sampled=True)
        return AttemptSpan(call.model, replica.name, self.record, self._metrics, self._clock, span, sent)

    @property
    def gap(self) -> Callable[[float], None]:
        """Where the relay tells the time between two reads of a stream."""
        return self._metrics.gaps(self.record.model).observe

    def headers(self) -> bytes:
        """Header lines: the trace, the replica, and how long the call took until now (Server-Timing, W3C), split
        into our share, the time in the queue and the engine's.

        The names of replicas are as the settings have them: without anything that could end a line.
        """
        record = self.record
        total_ms = (self._clock() - record.received_at_s) * 1000
        engine_ms, queue_ms = record.upstream_s * 1000, record.waited_s * 1000
        queue = f" queue;dur={queue_ms:.2f}," if queue_ms else ""
        own_ms = max(0.0, total_ms - engine_ms - queue_ms)
        return (
            f"openai-processing-ms: {total_ms:.0f}\r\n"
            f"server-timing: gateway;dur={own_ms:.2f},{queue} engine;dur={engine_ms:.2f}\r\n"
            f"x-pagegate-replica: {record.replica or ''}\r\n"
            f"x-pagegate-trace: {self.trace_id}\r\n"
        ).encode("ascii")
