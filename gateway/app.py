"""The composition root: builds every object from the settings. The only module that sees every folder.

`running` read downwards is start-up, read upwards it is shutdown. Nothing here is global: two gateways run in one
process.
"""

import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gateway.admission.appraisal import Appraiser
from gateway.admission.gate import Gate
from gateway.admission.limits import LocalLimits
from gateway.admission.line import Line
from gateway.admission.pricing import Pricing
from gateway.admission.rulebook import Rulebook
from gateway.admission.shared import SharedLimits
from gateway.attachments import TokenWatch, administered, judging, limiting
from gateway.catalog import Catalog
from gateway.edge.arrival import ReadingLimits, Room
from gateway.edge.probes import Probes
from gateway.edge.routes import Calls, Models, Surface, described
from gateway.fleet.capacity import has_room, room
from gateway.fleet.fleet import Fleet
from gateway.fleet.replica import Health, Replica
from gateway.fleet.scrape import Scraper
from gateway.http1 import Connections
from gateway.identity.directory import Directory
from gateway.identity.failures import Failures
from gateway.identity.identities import Identities
from gateway.lifetime import OpenCalls
from gateway.pipeline import Pipeline
from gateway.routing.router import Router as ReplicaRouter
from gateway.settings import Settings, secret_of
from gateway.telemetry import logs, metrics
from gateway.telemetry.accounting import Accounting
from gateway.telemetry.export import exporting
from gateway.telemetry.lag import LoopLag
from gateway.telemetry.logs import Log
from gateway.telemetry.metrics import Reading
from gateway.telemetry.telemetry import Telemetry
from gateway.upstream.counting import Counting
from gateway.upstream.dispatch import Dispatcher
from gateway.upstream.engines import HttpEngines
from gateway.wire import openapi

if TYPE_CHECKING:
    from gateway.usage.ledger import Ledger

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that is ready to be served: its listeners' apps, and the parts that a server or a test looks at."""

    public: Surface
    operations: Surface
    admin: Surface
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
    wall: Clock = time.time,
    rng: random.Random | None = None,
) -> AsyncIterator[Gateway]:
    """Everything that a gateway consists of, while the block runs. Raises SettingsError for an unreadable secret."""
    log = log or logs.make(settings.telemetry)
    rng = rng or random.Random()
    secret = secret_of(settings.identity)
    open_calls = OpenCalls(settings.upstream.call_timeout_s)
    directory = Directory(
        settings.identity,
        settings.admin.keys,
        secret,
        wall,
        complete=settings.store.url is None,
        unreadable=lambda what: log.error("row_unreadable", what=what),
    )
    catalog = Catalog.of(settings.models)
    async with AsyncExitStack() as up:
        up.enter_context(logs.libraries(log))
        up.callback(open_calls.close)
        instance = f"{socket.gethostname()}-{os.getpid()}-{rng.getrandbits(32):08x}"
        tracer = await up.enter_async_context(exporting(settings.telemetry, instance))
        limiter = await up.enter_async_context(limiting(settings.redis, instance, log, clock, wall, rng))
        books = None
        if settings.store.url is not None:
            from gateway import books as bookkeeping

            books = await up.enter_async_context(bookkeeping.kept(settings.store, directory, limiter, wall, log))
        watch = TokenWatch(log)
        tokens = await up.enter_async_context(judging(settings.identity, watch, clock, wall, rng))
        identities = Identities(directory, tokens, Failures(settings.identity.failures_per_minute, clock))
        engines = await up.enter_async_context(HttpEngines(settings.upstream))
        probing = await up.enter_async_context(
            Connections(settings.fleet.probe_timeout_s, settings.upstream.idle_connection_s)
        )
        fleet: Fleet
        lines = {
            model.name: Line(model.name, settings.queue, partial(_has_room, lambda: fleet, model.name, settings), clock)
            for model in settings.models
        }
        for line in lines.values():
            up.callback(line.close)
        fleet = await up.enter_async_context(
            Fleet(
                settings.models,
                settings.fleet,
                Scraper(probing, settings.fleet.probe_timeout_s),
                _noting(log),
                lambda replica: lines[replica.model].stir(),
                clock,
            )
        )
        gate = Gate(
            settings.admission,
            Rulebook(settings.models, settings.limits),
            limiter,
            Appraiser(
                settings.admission,
                Pricing(settings.models, settings.pricing),
                Counting(engines, lambda model: fleet.snapshot().of(model)),
            ),
            lines.__getitem__,
        )
        instruments = metrics.Metrics(
            fleet.snapshot,
            lambda: gate.running,
            partial(_readings, lines, limiter, books.ledger if books is not None else None, watch),
        )
        await up.enter_async_context(LoopLag(instruments.loop_lag.observe, clock))
        accounting = Accounting(books.ledger.add, wall) if books is not None else None
        pipeline = Pipeline(
            identities=identities,
            catalog=catalog,
            gate=gate,
            fleet=fleet,
            router=ReplicaRouter(settings.routing, rng, lambda replica: room(replica, settings.queue) >= 1),
            dispatcher=Dispatcher(settings.upstream, engines, fleet),
            telemetry=Telemetry(settings.telemetry, tracer, instruments, log, clock, rng, accounting),
            open_calls=open_calls,
            max_event_bytes=settings.upstream.max_reply_bytes,
            clock=clock,
        )
        probes = Probes(lambda: readiness(pipeline), instruments.exposition, metrics.CONTENT_TYPE)
        models = Models(identities, catalog, int(wall()))
        with_metrics, reading = settings.server.metrics_port is None, _reading(settings)
        document = openapi.document(
            version("pagegate"), reading.max_choices, also_allowed=reading.also_allowed, with_metrics=with_metrics
        )
        admin_routes = []
        if books is not None:
            parts = {"gate": gate, "fleet": fleet, "ledger": books.ledger, "limits": limiter, "identities": identities}
            admin_routes = administered(
                settings, books, secret, identities, wall, lambda: {name: repr(part) for name, part in parts.items()}
            )
        documents = [*models.routes(), *probes.routes(with_metrics=with_metrics), described(document)]
        yield Gateway(
            public=Surface(Calls(pipeline).by_path(), documents, reading, log),
            operations=Surface({}, probes.routes(with_metrics=True), reading, log),
            admin=Surface({}, admin_routes, reading, log),
            pipeline=pipeline,
            metrics=instruments,
            log=log,
            new_id=partial(call_id, rng),
            clock=clock,
        )


def _readings(
    lines: Mapping[str, Line],
    limiter: LocalLimits | SharedLimits,
    ledger: "Ledger | None",
    watch: TokenWatch,
) -> Iterator[Reading]:
    """What a scrape reads off the parts that only some gateways have."""
    waiting: dict[tuple[str, ...], float] = {(model,): line.waiting for model, line in lines.items()}
    yield Reading("pagegate_waiting_calls", "Calls that wait for their turn.", ("model",), waiting)
    refused: dict[tuple[str, ...], float] = {place: float(times) for place, times in watch.refused.items()}
    yield Reading(
        "pagegate_tokens_refused", "Tokens (JWT) that were refused, by fault.", ("issuer", "fault"), refused, grows=True
    )
    missed: dict[tuple[str, ...], float] = {(issuer,): times for issuer, times in watch.not_fetched.items()}
    yield Reading(
        "pagegate_issuer_keys_not_fetched", "Failed fetches of issuers' keys.", ("issuer",), missed, grows=True
    )
    if isinstance(limiter, SharedLimits):
        yield Reading("pagegate_redis_up", "1 while limits are shared through Redis.", (), {(): not limiter.away})
    if ledger is not None:
        fates: dict[tuple[str, ...], float] = {("written",): ledger.written, ("lost",): ledger.lost}
        yield Reading("pagegate_usage_records", "Records of usage, by what came of them.", ("fate",), fates, grows=True)
        yield Reading(
            "pagegate_usage_records_waiting", "Records of usage not in the database yet.", (), {(): ledger.waiting}
        )


def _has_room(fleet: Callable[[], Fleet], model: str, settings: Settings, on_the_way: int) -> bool:
    return has_room(fleet().snapshot().of(model), on_the_way, settings.queue)


def call_id(rng: random.Random) -> str:
    """An identifier for a call, unlike any other's."""
    return f"req_{rng.getrandbits(128):032x}"


def readiness(pipeline: Pipeline) -> tuple[bool, dict[str, Any]]:
    """Ready while some model has a replica that is up, keys are known and the gateway is not draining; with the counts
    a model."""
    models = {
        model: {"up": sum(replica.health is Health.UP for replica in pool), "replicas": len(pool)}
        for model, pool in pipeline.fleet.snapshot().pools.items()
    }
    keys = pipeline.identities.ready
    ready = keys and not pipeline.draining and any(counts["up"] for counts in models.values())
    return ready, {"draining": pipeline.draining, "keys_known": keys, "models": models}


def _reading(settings: Settings) -> ReadingLimits:
    return ReadingLimits(
        settings.server.max_body_bytes,
        settings.server.body_timeout_s,
        settings.admission.max_choices,
        Room(settings.server.max_arriving_bytes),
        frozenset(settings.admission.allowed_fields),
        settings.server.trusted_proxies,
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
