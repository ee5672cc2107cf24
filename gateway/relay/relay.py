"""From an engine's answer to the caller's reply. Holds at most one read of the engine; the socket holds the rest.

What is learnt on the way goes into the lease's delivery. A stream that breaks off raises: the edge tells the caller.
"""

from collections.abc import AsyncIterator, Callable

import orjson

from gateway.call import Call, Delivery, Streamed, Whole
from gateway.relay.watch import StreamWatch, usage_of
from gateway.upstream.engines import Answer

Clock = Callable[[], float]
Gap = Callable[[float], None]


def relay(
    answer: Answer, call: Call, delivery: Delivery, clock: Clock, gap: Gap, max_event_bytes: int
) -> Whole | Streamed:
    """What goes back to the caller. `gap` is told the seconds between two reads of a stream."""
    if call.stream:
        watch = StreamWatch(call, delivery, max_event_bytes)
        return Streamed(_stream(answer, watch, delivery, clock, gap))
    delivery.first_at_s = delivery.last_at_s = clock()
    document = orjson.loads(answer.first)
    delivery.usage = usage_of(document)
    delivery.finish_reasons += [
        choice["finish_reason"]
        for choice in document.get("choices") or ()
        if isinstance(choice, dict) and isinstance(choice.get("finish_reason"), str)
    ]
    delivery.complete = True
    return Whole(answer.first)


async def _stream(
    answer: Answer, watch: StreamWatch, delivery: Delivery, clock: Clock, gap: Gap
) -> AsyncIterator[bytes]:
    data = answer.first
    delivery.first_at_s = delivery.last_at_s = clock()
    while data:
        passed = watch.pass_on(data)
        if passed:
            yield passed
        if watch.fault:
            raise watch.fault
        if watch.done:
            await answer.finish()
            return
        data = await answer.read()
        now_s = clock()
        gap(now_s - delivery.last_at_s)
        delivery.last_at_s = now_s
    yield watch.end()
