"""How many tokens a prompt has, exactly: asked of an engine, whose tokenizer and template are the ones that count."""

from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.call import Call, Counted
from gateway.fleet.replica import Health, Replica
from gateway.upstream.engines import Envelope


class Engines(Protocol):
    """Can be asked to count; says None where it cannot say."""

    async def prompt_tokens(self, replica: Replica, call: Call, envelope: Envelope) -> int | None: ...


class Counting:
    """Asks the replica of a call's model that has least to do."""

    def __init__(self, engines: Engines, pool: Callable[[str], Sequence[Replica]]) -> None:
        self._engines = engines
        self._pool = pool

    async def __call__(self, call: Call) -> Counted | None:
        """The tokens of the call's prompt, and how many more its context takes; None where no engine could say."""
        able = [replica for replica in self._pool(call.model) if replica.health is Health.UP]
        if not able:
            return None
        replica = min(able, key=lambda each: each.in_flight)
        tokens = await self._engines.prompt_tokens(replica, call, Envelope(call.id, None))
        if tokens is None:
            return None
        return Counted(tokens, None if replica.context_tokens is None else replica.context_tokens - tokens)
