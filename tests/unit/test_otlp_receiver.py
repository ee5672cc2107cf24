"""The OTLP receiver, against the real exporter."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from tests.otlp_receiver import OtlpReceiver
from tests.wire_client import WireClient

pytestmark = pytest.mark.anyio


@contextmanager
def tracer(endpoint: str, compression: Compression = Compression.NoCompression) -> Iterator[Tracer]:
    """A real SDK whose every span is exported as it ends, on the thread that ends it."""
    provider = TracerProvider(resource=Resource({"service.name": "tests"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint, compression=compression, timeout=5)))
    yield provider.get_tracer("tests")
    provider.shutdown()


def tell(endpoint: str, compression: Compression = Compression.NoCompression) -> str:
    """Export a trace of two spans; its id."""
    with (
        tracer(endpoint, compression) as trace,
        trace.start_as_current_span("edge", kind=SpanKind.SERVER) as edge,
    ):
        with trace.start_as_current_span("attempt", kind=SpanKind.CLIENT) as attempt:
            attempt.set_attribute("replica", "a")
            attempt.set_attribute("tokens", 7)
            attempt.set_attribute("share", 0.5)
            attempt.set_attribute("cached", True)
            attempt.set_attribute("reasons", ["stop", "length"])
            attempt.add_event("first token", {"after_s": 0.25}, timestamp=5)
            attempt.set_status(Status(StatusCode.ERROR, "severed"))
        return f"{edge.get_span_context().trace_id:032x}"


@pytest.mark.parametrize("compression", list(Compression))
async def test_spans_of_the_real_exporter_arrive_whole(compression: Compression) -> None:
    """Names, kinds, parents, attributes of every type, events, status and resource, compressed or not."""
    async with OtlpReceiver() as otlp:
        trace_id = await asyncio.to_thread(tell, otlp.traces_endpoint, compression)
        edge, attempt = await otlp.spans(trace_id, {"edge", "attempt"})
    assert (edge.name, edge.kind, edge.parent_id, edge.status) == ("edge", "SERVER", None, "UNSET")
    assert (attempt.name, attempt.kind, attempt.parent_id) == ("attempt", "CLIENT", edge.span_id)
    assert (attempt.trace_id, attempt.status) == (trace_id, "ERROR")
    assert edge.start_ns <= attempt.start_ns <= attempt.end_ns <= edge.end_ns
    assert attempt.attributes == {
        "replica": "a",
        "tokens": 7,
        "share": 0.5,
        "cached": True,
        "reasons": ["stop", "length"],
    }
    (event,) = attempt.events
    assert (event.name, event.at_ns, event.attributes) == ("first token", 5, {"after_s": 0.25})
    assert edge.resource["service.name"] == "tests"


async def test_spans_are_waited_for_by_name_and_trace() -> None:
    """The wait ends with the last of the names; other traces do not count."""
    async with OtlpReceiver() as otlp:
        other = await asyncio.to_thread(tell, otlp.traces_endpoint)
        waiting = asyncio.ensure_future(otlp.spans(names={"edge", "later"}))
        await asyncio.sleep(0)
        assert not waiting.done()

        def later() -> str:
            with tracer(otlp.traces_endpoint) as trace, trace.start_as_current_span("later") as span:
                return f"{span.get_span_context().trace_id:032x}"

        trace_id = await asyncio.to_thread(later)
        assert {span.name for span in await waiting} == {"edge", "attempt", "later"}
        assert [span.name for span in await otlp.spans(trace_id)] == ["later"]
        assert len(await otlp.spans(other, ["edge"])) == 2
        assert repr(otlp) == "<OtlpReceiver 3 spans: ['attempt', 'edge', 'later']>"


async def test_spans_that_never_come_are_an_error_with_what_came() -> None:
    """Not a bare timeout."""
    async with OtlpReceiver() as otlp:
        await asyncio.to_thread(tell, otlp.traces_endpoint)
        with pytest.raises(AssertionError, match=r"\['nowhere'\].*\['attempt', 'edge'\]"):
            await otlp.spans(names={"nowhere"}, within_s=0.02)


@pytest.mark.parametrize(
    ("path", "kind", "body", "status"),
    [
        ("/v1/metrics", "application/x-protobuf", b"", 404),
        ("/v1/traces", "application/json", b"{}", 415),
        ("/v1/traces", "application/x-protobuf", b"\xff\xff", 400),
        ("/v1/traces", "application/x-protobuf", b"", 200),
    ],
)
async def test_only_traces_in_protobuf_are_taken(path: str, kind: str, body: bytes, status: int) -> None:
    """As a collector would."""
    async with OtlpReceiver() as otlp, WireClient(otlp.endpoint) as client:
        reply = await client.post(path, body=body, headers={"Content-Type": kind})
        assert reply.status == status
        assert otlp.seen == []
        assert otlp.posts == (status == 200)


async def test_broken_compression_is_refused() -> None:
    """A body that does not unpack is the sender's fault, whatever the packing."""
    async with OtlpReceiver() as otlp, WireClient(otlp.endpoint) as client:
        for encoding in ("gzip", "deflate"):
            headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": encoding}
            assert (await client.post("/v1/traces", body=b"\x1f\x8b\x08nope", headers=headers)).status == 400
