"""From an engine's answer to the caller's reply. Holds at most one read of the engine; the socket holds the rest.

What is learnt on the way goes into the lease's delivery. A stream that breaks off raises: the edge tells the caller.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

import orjson

from gateway.call import Call, Delivery, Streamed, Whole
from gateway.errors import EngineFailed
from gateway.relay.watch import CUT_OFF, StreamWatch, usage_of

Clock = Callable[[], float]
Gap = Callable[[float], None]


class Answer(Protocol):
    """An engine's answer that has begun: `first` is there, `read` gives the rest, b"" at its end. Raises Severed."""

    first: bytes

    async def read(self) -> bytes: ...
    async def finish(self) -> None: ...


# What a token of a whole reply is taken for where the engine does not count them.
BYTES_PER_TOKEN = 4


def relay(
    answer: Answer, call: Call, delivery: Delivery, clock: Clock, gap: Gap, max_event_bytes: int
) -> Whole | Streamed:
    """What goes back to the caller. `gap` is told the seconds between two reads of a stream.

    Raises EngineFailed for a whole reply in which a choice does not say why it ended, or that it was cut off.
    """
    if call.stream:
        watch = StreamWatch(call, delivery, max_event_bytes)
        return Streamed(_stream(answer, watch, delivery, clock, gap))
    document = orjson.loads(answer.first)
    choices = [choice for choice in _listed(document.get("choices")) if isinstance(choice, dict)]
    reasons = [choice["finish_reason"] for choice in choices if isinstance(choice.get("finish_reason"), str)]
    if len(reasons) < call.choices or not CUT_OFF.isdisjoint(reasons):
        raise EngineFailed("it cut the reply off")
    delivery.first_at_s = delivery.last_at_s = clock()
    delivery.usage = usage_of(document)
    if delivery.usage is None:
        delivery.events = len(orjson.dumps(choices)) // BYTES_PER_TOKEN
    delivery.finish_reasons += reasons
    return Whole(answer.first)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


async def _stream(
    answer: Answer, watch: StreamWatch, delivery: Delivery, clock: Clock, gap: Gap
) -> AsyncGenerator[bytes, None]:
    data = answer.first
    delivery.first_at_s = delivery.last_at_s = clock()
    while data:
        passed = watch.pass_on(data)
        if passed:
            yield passed
        if watch.fault:
            raise watch.fault
        if watch.done:
            delivery.complete = True
            await answer.finish()
            return
        data = await answer.read()
        now_s = clock()
        gap(now_s - delivery.last_at_s)
        delivery.last_at_s = now_s
    yield watch.end()
    delivery.complete = True
