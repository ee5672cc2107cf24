"""Trace contexts as they travel, and the spans of a call that is sampled; for one that is not, nothing here is made.

Span names of stages are the stages' folders; the attempt on an engine is named and attributed as OpenTelemetry's
GenAI conventions ask, and the engine's own span hangs below it.
"""

import re
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from gateway.call import Call
from gateway.errors import CallerLeft
from gateway.fleet.replica import Replica
from gateway.telemetry.record import CallRecord, Outcome

Entered = TypeVar("Entered")
TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def traceparent(trace_id: str, span_id: str, *, sampled: bool) -> str:
    """A W3C trace context header, of identifiers in hexadecimal."""
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"


def parse(header: str | None) -> SpanContext | None:
    """The span context in a W3C traceparent; None for anything that is not one."""
    match = TRACEPARENT.fullmatch(header or "")
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    # What is read here has the same place in all versions; only those to come may have more behind it.
    if version == "ff" or (version == "00" and more):
        return None
    sampled = TraceFlags(int(flags, 16) & TraceFlags.SAMPLED)
    context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=sampled)
    return context if context.is_valid else None


def is_chosen(trace_id: int, ratio: float) -> bool:
    """Whether a trace is among the sampled share: decided by its identifier, so that every gateway agrees."""
    return trace_id & (2**64 - 1) < ratio * 2**64


class Stage:
    """A stage of a call that is not sampled: nothing. Also what a sampled stage looks like to the pipeline."""

    __slots__ = ()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def receipt(self, told: Callable[[], str]) -> None:
        """Notes how a decision came about; `told` is only called where somebody will read it."""


UNSEEN = Stage()


class SpanStage(Stage):
    """A stage with a span."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self._span, error)

    def receipt(self, told: Callable[[], str]) -> None:
        self._span.set_attribute("pagegate.receipt", told())


class Entering(Generic[Entered]):
    """Gives the entry of a context manager, not its body, a stage of its own."""

    __slots__ = ("_manager", "_stage")

    def __init__(self, stage: Stage, manager: AbstractAsyncContextManager[Entered]) -> None:
        self._stage = stage
        self._manager = manager

    async def __aenter__(self) -> Entered:
        with self._stage:
            return await self._manager.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, trace)


class Spans:
    """The spans of one sampled call: a root, below the caller's span where it brought one, and what hangs below it."""

    __slots__ = ("_context", "_root", "_tracer")

    def __init__(self, tracer: Tracer, name: str, parent: SpanContext | None) -> None:
        above = Context() if parent is None else set_span_in_context(NonRecordingSpan(parent))
        self._tracer = tracer
        self._root = tracer.start_span(name, above, kind=SpanKind.SERVER)
        self._context = set_span_in_context(self._root, Context())

    @property
    def trace_id(self) -> str:
        """In hexadecimal."""
        return f"{self._root.get_span_context().trace_id:032x}"

    def stage(self, name: str) -> SpanStage:
        return SpanStage(self._tracer.start_span(name, self._context))

    def attempt(self, call: Call, replica: Replica) -> Span:
        attributes = request_attributes(call, replica)
        return self._tracer.start_span(f"chat {call.model}", self._context, SpanKind.CLIENT, attributes)

    def end(self, record: CallRecord) -> None:
        """Ends the root with what the record holds by now."""
        self._root.set_attributes(root_attributes(record))
        end(self._root, None if record.outcome is Outcome.OK else record.error)


def end(span: Span, error: BaseException | None) -> None:
    """Ends a span. A caller who left is no fault; an error is named by its class, its text stays here."""
    if error is not None:
        cancelled = isinstance(error, (CallerLeft, CancelledError, GeneratorExit))
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(StatusCode.UNSET if cancelled else StatusCode.ERROR)
    span.end()


def request_attributes(call: Call, replica: Replica) -> dict[str, Any]:
    """What a call asks of an engine, in the names of the GenAI conventions."""
    body = call.body
    found = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": call.model,
        "gen_ai.request.stream": call.stream,
        "gen_ai.request.max_tokens": call.max_tokens,
        "gen_ai.request.temperature": body.get("temperature"),
        "gen_ai.request.top_p": body.get("top_p"),
        "gen_ai.request.seed": body.get("seed"),
        "gen_ai.request.choice.count": call.choices if call.choices > 1 else None,
        "server.address": replica.address.host,
        "server.port": replica.address.port,
        "pagegate.replica": replica.name,
    }
    return {name: value for name, value in found.items() if value is not None}


def response_attributes(record: CallRecord, begun_s: float) -> dict[str, Any]:
    """What the engine gave, as far as it came."""
    if record.call is None or record.lease is None or record.lease.delivery.first_at_s is None:
        return {}
    delivery, first_at_s = record.lease.delivery, record.lease.delivery.first_at_s
    found: dict[str, Any] = {"gen_ai.response.finish_reasons": list(delivery.finish_reasons)}
    if record.call.stream:
        found["gen_ai.response.time_to_first_chunk"] = first_at_s - begun_s
    if delivery.usage is not None:
        found["gen_ai.usage.input_tokens"] = delivery.usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = delivery.usage.completion_tokens
        found["gen_ai.usage.cache_read.input_tokens"] = delivery.usage.cached_tokens
    return found


def root_attributes(record: CallRecord) -> dict[str, Any]:
    """Who called for what, and how it ended."""
    found: dict[str, Any] = {"pagegate.call": record.id, "pagegate.outcome": record.outcome.value}
    if record.principal is not None:
        found |= {"pagegate.tenant": record.principal.tenant.name, "pagegate.key": record.principal.name}
    if record.call is not None:
        found |= {"gen_ai.request.model": record.call.model, "pagegate.attempts": record.attempts}
    return found
