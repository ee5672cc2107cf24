"""A call's whole path, stage by stage, in one function. The stages know nothing of each other."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from gateway.admission.gate import Gate
from gateway.call import Reply
from gateway.catalog import Catalog
from gateway.edge.arrival import Arrival
from gateway.fleet.fleet import Fleet
from gateway.identity.identities import Identities
from gateway.lifetime import Guard, OpenCalls
from gateway.relay.relay import relay
from gateway.routing.router import Router
from gateway.telemetry.telemetry import Telemetry
from gateway.upstream.dispatch import Dispatcher


@dataclass(slots=True)
class Pipeline:
    """Everything a call passes; built once by `app.py`. `draining` tells load balancers to send calls elsewhere."""

    identities: Identities
    catalog: Catalog
    gate: Gate
    fleet: Fleet
    router: Router
    dispatcher: Dispatcher
    telemetry: Telemetry
    open_calls: OpenCalls
    max_event_bytes: int
    clock: Callable[[], float]
    draining: bool = False

    @asynccontextmanager
    async def open(self, arrival: Arrival) -> AsyncIterator[Reply]:
        """Takes a call from its headers to its reply. Leaving the block ends the call, whatever the way.

        Raises a GatewayError: before the reply for what can still be a status, inside the block for what cannot.
        """
        with self.telemetry.call(arrival) as trace, Guard(self.open_calls) as guard:
            arrival.trace_id = trace.trace_id
            with trace.stage("identity"):
                principal = await self.identities.authenticate(arrival.credential, arrival.address)
                trace.record.principal = principal
                arrival.allowance = partial(self.gate.lines, principal)
            with trace.stage("edge"):
                resolve = partial(self.catalog.resolve, may_call=principal.may_call)
                call = trace.record.call = await arrival.read(resolve, principal.tenant.cache_salt)
            arrival.allowance = partial(self.gate.lines, principal, call.model)
            guard.watch(arrival)
            async with trace.entering("admission", self.gate.admit(principal, call)) as lease:
                trace.record.lease, call = lease, lease.call
                with trace.stage("routing") as span:
                    ranking = self.router.rank(call, self.fleet.snapshot())
                    span.receipt(ranking.receipt)
                async with trace.entering(
                    "upstream", self.dispatcher.send(call, ranking.replicas, lease.delivery, trace)
                ) as answer:
                    with trace.stage("relay"):
                        content = relay(answer, call, lease.delivery, self.clock, trace.gap, self.max_event_bytes)
                        yield Reply(content, lease.lines() + trace.headers())
                        lease.delivery.complete = True
