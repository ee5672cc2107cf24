"""A call's whole path, stage by stage, in one function. The stages know nothing of each other."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.admission.gate import Gate
from gateway.call import Reply
from gateway.catalog import Catalog
from gateway.edge.arrival import Arrival
from gateway.errors import Draining, UnknownModel
from gateway.fleet.fleet import Fleet
from gateway.identity.keys import Keys
from gateway.lifetime import Guard, OpenCalls
from gateway.relay.relay import relay
from gateway.routing.router import Router
from gateway.telemetry.telemetry import Telemetry
from gateway.upstream.dispatch import Dispatcher


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, in seconds, and how much may be held, in bytes."""

    call_s: float
    slow_reader_s: float
    event_bytes: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A reply under way. Send it under the guard, inside the block that opened it."""

    reply: Reply
    guard: Guard


@dataclass(slots=True)
class Pipeline:
    """Everything a call passes; built once by `app.py`. `draining` refuses new calls."""

    keys: Keys
    catalog: Catalog
    gate: Gate
    fleet: Fleet
    router: Router
    dispatcher: Dispatcher
    telemetry: Telemetry
    open_calls: OpenCalls
    patience: Patience
    clock: Callable[[], float]
    draining: bool = False

    @asynccontextmanager
    async def open(self, arrival: Arrival) -> AsyncIterator[Opened]:
        """Takes a call from its headers to its reply. Leaving the block ends the call, whatever the way.

        Raises a GatewayError: before the reply for what can still be a status, inside the block for what cannot.
        """
        with self.telemetry.call(arrival) as trace:
            if self.draining:
                raise Draining
            with trace.stage("identity"):
                principal = trace.record.principal = self.keys.authenticate(arrival.credential)
            with trace.stage("edge"):
                call = trace.record.call = await arrival.read(self.catalog, principal.tenant.cache_salt)
                if not principal.may_call(call.model):
                    raise UnknownModel(call.model)
            with Guard(self.open_calls, arrival.receive, self.patience.call_s, self.patience.slow_reader_s) as guard:
                async with trace.entering("admission", self.gate.admit(principal, call)) as lease:
                    trace.record.lease = lease
                    with trace.stage("routing") as span:
                        ranking = self.router.rank(call, self.fleet.snapshot())
                        span.receipt(ranking.receipt)
                    async with trace.entering(
                        "upstream", self.dispatcher.send(call, ranking.replicas, trace)
                    ) as answer:
                        with trace.stage("relay"):
                            content = relay(
                                answer, call, lease.delivery, self.clock, trace.gap, self.patience.event_bytes
                            )
                            yield Opened(Reply(content, lease.headers() | trace.headers()), guard)
