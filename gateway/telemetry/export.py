"""Where spans go: the OpenTelemetry SDK with an OTLP exporter, imported only where an endpoint is configured."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

from opentelemetry.trace import Tracer

from gateway.settings import TelemetrySettings

FLUSH_S = 5.0


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
    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint}/v1/traces", timeout=FLUSH_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider.get_tracer("pagegate", version("pagegate"))
    finally:
        await _for_a_while(provider.shutdown, FLUSH_S)


async def _for_a_while(work: Callable[[], None], seconds: float) -> None:
    """Does `work` in a thread and waits for it, but not for longer; a process that ends does not wait for it either."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        work()
        with suppress(RuntimeError):  # Nobody waited so long.
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="flush-spans", daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await done.wait()
