"""Where spans go: the OpenTelemetry SDK with an OTLP exporter, imported only where an endpoint is configured."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from opentelemetry.trace import Tracer

from gateway.settings import TelemetrySettings

FLUSH_MS = 5_000


@asynccontextmanager
async def exporting(settings: TelemetrySettings, instance: str) -> AsyncIterator[Tracer | None]:
    """A tracer while the block runs, None without an endpoint. On leaving, what is left is sent, for a few seconds.

    Spans are sent in batches by a thread of the SDK; a collector that is away costs spans, never a call.
    """
    if settings.otlp_endpoint is None:
        yield None
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    provider = TracerProvider(
        # Which calls are sampled is decided before a span is made.
        sampler=ALWAYS_ON,
        resource=Resource(
            {
                "service.name": settings.service_name,
                "service.version": version("pagegate"),
                "service.instance.id": instance,
            }
        ),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint}/v1/traces", timeout=FLUSH_MS / 1000)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider.get_tracer("pagegate", version("pagegate"))
    finally:
        await asyncio.to_thread(provider.shutdown)
