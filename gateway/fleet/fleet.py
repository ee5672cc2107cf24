"""The owner of membership and health. Watches every replica, takes in what calls show, hands out snapshots."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from typing import Protocol

from gateway.fleet.capacity import learnt, of_others
from gateway.fleet.replica import Blame, Health, Load, Replica, Snapshot
from gateway.fleet.scrape import ProbeFailed, Served, WrongModel
from gateway.fleet.sharing import Sharing
from gateway.http1 import Address, OutOfFiles
from gateway.lifetime import background
from gateway.settings import FleetSettings, ModelSettings


class Looking(Protocol):
    """Looks at one engine; each raises ProbeFailed."""

    async def health(self, address: Address) -> None: ...
    async def served(self, address: Address) -> Served: ...
    async def load(self, address: Address) -> Load: ...


Told = Callable[[Replica], None]


class Fleet:
    """All pools. Use as `async with`: probing runs inside the block. `<Fleet tiny: a up, b down>`."""

    def __init__(
        self,
        models: Iterable[ModelSettings],
        settings: FleetSettings,
        look: Looking,
        on_change: Told,
        on_probe: Told,
        clock: Callable[[], float],
    ) -> None:
        """`on_change` is told of replicas that come and go, `on_probe` of each look at one, whatever it showed."""
        self._settings = settings
        self._look = look
        self._on_change = on_change
        self._on_probe = on_probe
        self._clock = clock
        self._pools = {
            model.name: tuple(
                Replica(
                    name=replica.name,
                    model=model.name,
                    address=Address.of(
                        replica.url,
                        replica.api_key.get_secret_value() if replica.api_key is not None else None,
                    ),
                    calls_at_once=model.calls_per_replica,
                )
                for replica in model.replicas
            )
            for model in models
        }
        self._failures: dict[Replica, int] = {}
        self._sharing = {replica: Sharing() for pool in self._pools.values() for replica in pool}
        self._wake = {replica: asyncio.Event() for pool in self._pools.values() for replica in pool}
        self._changed = asyncio.Event()

    async def __aenter__(self) -> "Fleet":
        async with AsyncExitStack() as up:
            group = await up.enter_async_context(background())
            for replica in self._wake:
                up.callback(group.create_task(self._watch(replica)).cancel)
            self._down = up.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._down.aclose()

    def snapshot(self) -> Snapshot:
        return Snapshot(self._pools)

    async def until(self, condition: Callable[[Snapshot], bool]) -> None:
        """Waits until a snapshot fulfils `condition`. Looks after each probe that an engine answered."""
        while not condition(self.snapshot()):
            self._changed.clear()
            await self._changed.wait()

    # What calls show.

    def begun(self, replica: Replica) -> float:
        """An attempt begins on the replica; what `ended` wants to be given."""
        replica.in_flight += 1
        return self._sharing[replica].enter(self._clock())

    def ended(self, replica: Replica, begun: float) -> float:
        """It has ended; the seconds of the replica that were its share."""
        replica.in_flight -= 1
        return self._sharing[replica].leave(begun, self._clock())

    def failed(self, replica: Replica, blame: Blame, why: str) -> None:
        """An engine that nobody can connect to is down at once; of one that misbehaves a probe is taken at once.

        One that refuses a call, being full, is given none until that probe.
        """
        if blame is Blame.UNREACHABLE:
            self._set(replica, Health.DOWN, why)
        replica.refused = replica.refused or blame is Blame.BUSY
        if blame in (Blame.UNREACHABLE, Blame.FAULT, Blame.BUSY):
            self._wake[replica].set()

    # What probes show.

    async def _watch(self, replica: Replica) -> None:
        wake = self._wake[replica]
        while True:
            wake.clear()
            await self._probe(replica)
            self._on_probe(replica)
            # The least between two probes, or failing calls would make a storm of them.
            await asyncio.sleep(self._settings.probe_interval_s / 10)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.probe_interval_s * 0.9):
                    await wake.wait()

    async def _probe(self, replica: Replica) -> None:
        try:
            await self._look.health(replica.address)
            # Each time: an engine may have been restarted with another model between two probes.
            served = await self._look.served(replica.address)
            if replica.model not in served.names:
                raise WrongModel(served.names)
            replica.context_tokens = served.context_tokens
            before = replica.in_flight
            load = await self._look.load(replica.address)
        except OutOfFiles:
            return  # It is we who cannot look: what was known of it still holds.
        except WrongModel as wrong:
            self._set(replica, Health.DOWN, str(wrong))
        except ProbeFailed as failed:
            self._failures[replica] = self._failures.get(replica, 0) + 1
            if replica.health is not Health.UP or self._failures[replica] >= self._settings.failures_to_down:
                self._set(replica, Health.DOWN, str(failed))
        except Exception as error:
            # Whatever an engine answers, it must not end the watching of all of them.
            self._set(replica, Health.DOWN, f"its probes cannot be read ({type(error).__name__})")
        else:
            self._failures[replica] = 0
            replica.load, replica.refused = load, False
            replica.learnt = learnt(replica.learnt, load)
            # Calls that began or ended while the engine was asked are ours as well.
            replica.of_others = of_others(load, max(before, replica.in_flight))
            self._set(replica, Health.UP, "")
            self._changed.set()

    def _set(self, replica: Replica, health: Health, why: str) -> None:
        changed = replica.health is not health
        replica.health, replica.why_down = health, why
        if changed:
            self._on_change(replica)
            self._changed.set()

    def __repr__(self) -> str:
        pools = (
            f"{model}: " + ", ".join(f"{replica.name} {replica.health.value}" for replica in pool)
            for model, pool in self._pools.items()
        )
        return f"<Fleet {'; '.join(pools)}>"
