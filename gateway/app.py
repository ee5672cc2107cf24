"""The composition root: builds every object from the settings. The only module that sees every folder.

`running` read downwards is start-up, read upwards it is shutdown. Nothing here is global: two gateways run in one
process.
"""

import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

from gateway.admission.gate import Gate
from gateway.catalog import Catalog
from gateway.edge.arrival import ReadingLimits, Room
from gateway.edge.probes import Probes
from gateway.edge.routes import Calls, Models, Surface, described
from gateway.fleet.fleet import Fleet
from gateway.fleet.replica import Health, Replica
from gateway.fleet.scrape import Scraper
from gateway.http1 import Connections
from gateway.identity.keys import Keys
from gateway.lifetime import OpenCalls
from gateway.pipeline import Pipeline
from gateway.routing.router import Router as ReplicaRouter
from gateway.settings import Settings, secret_of
from gateway.telemetry import logs, metrics
from gateway.telemetry.export import exporting
from gateway.telemetry.lag import LoopLag
from gateway.telemetry.logs import Log
from gateway.telemetry.telemetry import Telemetry
from gateway.upstream.dispatch import Dispatcher
from gateway.upstream.engines import HttpEngines
from gateway.wire import openapi

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that is ready to be served: its listeners' apps, and the parts that a server or a test looks at."""

    public: Surface
    operations: Surface
    pipeline: Pipeline
    metrics: metrics.Metrics
    log: Log
    new_id: Callable[[], str]
    clock: Clock


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    log: Log | None = None,
    clock: Clock = time.monotonic,
    rng: random.Random | None = None,
) -> AsyncIterator[Gateway]:
    """Everything that a gateway consists of, while the block runs. Raises SettingsError for an unreadable secret."""
    log = log or logs.make(settings.telemetry)
    rng = rng or random.Random()
    secret = secret_of(settings.identity)
    open_calls = OpenCalls(settings.upstream.call_timeout_s)
    gate = Gate(settings.admission, clock)
    keys = Keys.load(settings.identity, secret)
    catalog = Catalog.of(settings.models)
    async with AsyncExitStack() as up:
        up.enter_context(logs.libraries(log))
        up.callback(open_calls.close)
        tracer = await up.enter_async_context(exporting(settings.telemetry, f"{socket.gethostname()}-{os.getpid()}"))
        engines = await up.enter_async_context(HttpEngines(settings.upstream))
        probing = await up.enter_async_context(
            Connections(settings.fleet.probe_timeout_s, settings.upstream.idle_connection_s)
        )
        fleet = await up.enter_async_context(
            Fleet(
                settings.models,
                settings.fleet,
                Scraper(probing, settings.fleet.probe_timeout_s),
                _noting(log),
            )
        )
        instruments = metrics.Metrics(fleet.snapshot, lambda: gate.running)
        await up.enter_async_context(LoopLag(instruments.loop_lag.observe, clock))
        pipeline = Pipeline(
            keys=keys,
            catalog=catalog,
            gate=gate,
            fleet=fleet,
            router=ReplicaRouter(settings.routing, rng),
            dispatcher=Dispatcher(settings.upstream, engines, fleet),
            telemetry=Telemetry(settings.telemetry, tracer, instruments, log, clock, rng),
            open_calls=open_calls,
            max_event_bytes=settings.upstream.max_reply_bytes,
            clock=clock,
        )
        probes = Probes(lambda: readiness(pipeline), instruments.exposition, metrics.CONTENT_TYPE)
        models = Models(keys, catalog, int(datetime.now(UTC).timestamp()))
        with_metrics, reading = settings.server.metrics_port is None, _reading(settings)
        document = openapi.document(
            version("pagegate"), reading.max_choices, also_allowed=reading.also_allowed, with_metrics=with_metrics
        )
        documents = [*models.routes(), *probes.routes(with_metrics=with_metrics), described(document)]
        yield Gateway(
            public=Surface(Calls(pipeline).by_path(), documents, reading, log),
            operations=Surface({}, probes.routes(with_metrics=True), reading, log),
            pipeline=pipeline,
            metrics=instruments,
            log=log,
            new_id=partial(call_id, rng),
            clock=clock,
        )


def call_id(rng: random.Random) -> str:
    """An identifier for a call, unlike any other's."""
    return f"req_{rng.getrandbits(128):032x}"


def readiness(pipeline: Pipeline) -> tuple[bool, dict[str, Any]]:
    """Ready while some model has a replica that is up and the gateway is not draining; with the counts a model."""
    models = {
        model: {"up": sum(replica.health is Health.UP for replica in pool), "replicas": len(pool)}
        for model, pool in pipeline.fleet.snapshot().pools.items()
    }
    ready = not pipeline.draining and any(counts["up"] for counts in models.values())
    return ready, {"draining": pipeline.draining, "models": models}


def _reading(settings: Settings) -> ReadingLimits:
    return ReadingLimits(
        settings.server.max_body_bytes,
        settings.server.body_timeout_s,
        settings.admission.max_choices,
        Room(settings.server.max_arriving_bytes),
        frozenset(settings.admission.allowed_fields),
    )


def _noting(log: Log) -> Callable[[Replica], None]:
    def note(replica: Replica) -> None:
        up = replica.health is Health.UP
        tell = log.info if up else log.warning
        tell(
            "replica_up" if up else "replica_down",
            model=replica.model,
            replica=replica.name,
            why=replica.why_down,
        )

    return note
