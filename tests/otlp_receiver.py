"""A real OTLP/HTTP receiver on loopback: it decodes the spans that exporters send and lets tests wait for
them.

It owns the port and what arrived. Which spans there should be, and how they hang together, is left to the
test.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.loopback import Connection, Loopback, Message
from tests.vllm_wire import plain_reply


@dataclass(frozen=True, slots=True)
class SpanEvent:
    name: str
    at_ns: int
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span. Ids are lower-case hex; a root has no parent; `kind` and `status` as in `SERVER`, `ERROR`."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    status: str
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    events: Sequence[SpanEvent]


class OtlpReceiver:
    """Receives `POST /v1/traces` in protobuf, plain or compressed: `async with OtlpReceiver() as otlp`."""

    def __init__(self) -> None:
        self.seen: list[ReceivedSpan] = []
        self.posts = 0
        self._loopback = Loopback(self)

    async def __aenter__(self) -> Self:
        await self._loopback.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._loopback.__aexit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<OtlpReceiver {len(self.seen)} spans: {sorted({span.name for span in self.seen})}>"

    @property
    def endpoint(self) -> str:
        """What `OTEL_EXPORTER_OTLP_ENDPOINT` wants: exporters add the path."""
        return self._loopback.url

    @property
    def traces_endpoint(self) -> str:
        """What an exporter wants that takes its address as it is, as vLLM's."""
        return f"{self.endpoint}/v1/traces"

    async def spans(
        self, trace_id: str | None = None, names: Iterable[str] = (), within_s: float = 10.0
    ) -> list[ReceivedSpan]:
        """Wait until spans of all these names arrived, and return every span of the trace, in order of start.

        Without a trace id, spans of any trace count; without names, one span is enough.
        """
        wanted = set(names)
        await self._loopback.facts.until(
            lambda: bool(spans := self._of(trace_id)) and wanted <= {span.name for span in spans},
            within_s,
            lambda: f"{sorted(wanted)} of trace {trace_id} in {self}",
        )
        return sorted(self._of(trace_id), key=lambda span: span.start_ns)

    def _of(self, trace_id: str | None) -> list[ReceivedSpan]:
        return [span for span in self.seen if trace_id in (None, span.trace_id)]

    # What comes in.

    def received(self, connection: Connection, message: Message) -> None:
        connection.write(self._answer(message))
        if not message.keep_alive:
            connection.close()
        self._loopback.facts.changed()
        connection.next_message()

    def malformed(self, connection: Connection) -> None:
        connection.write(plain_reply(400))
        connection.close()

    def writable(self, connection: Connection) -> None:
        """Its replies are small: nothing ever waits to be written."""

    def lost(self, connection: Connection) -> None:
        """Nothing belongs to a connection."""

    def _answer(self, message: Message) -> bytes:
        if (message.method, message.path) != ("POST", "/v1/traces"):
            return plain_reply(404)
        if message.header("content-type") != "application/x-protobuf":
            return plain_reply(415)
        try:
            export = ExportTraceServiceRequest.FromString(message.content())
        except (DecodeError, OSError, EOFError, zlib.error):
            return plain_reply(400)
        self.posts += 1
        self.seen += _spans(export)
        reply = ExportTraceServiceResponse().SerializeToString()
        return plain_reply(200, reply, content_type="application/x-protobuf")


def _spans(export: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for of_resource in export.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield _span(span, resource)


def _span(span: Span, resource: Mapping[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        attributes=_attributes(span.attributes),
        resource=resource,
        events=tuple(SpanEvent(e.name, e.time_unix_nano, _attributes(e.attributes)) for e in span.events),
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(one) for one in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case kind:
            return getattr(value, kind)
