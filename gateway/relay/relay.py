"""From an engine's answer to the caller's reply. Holds nothing: what the caller has no room for, the sockets hold.

What is learnt on the way goes into the lease's delivery. A stream that breaks off raises: the edge tells the caller.
"""

from collections.abc import Callable
from typing import Any, Protocol

import orjson

from gateway.call import Call, Delivery, Streamed, Taker, Whole
from gateway.errors import EngineFailed
from gateway.relay.watch import CUT_OFF, StreamWatch, usage_of

Clock = Callable[[], float]
Gap = Callable[[float], None]


class Answer(Protocol):
    """An engine's answer that has begun: `first` is there, `pour` gives the rest. Raises Severed."""

    first: bytes
    document: dict[str, Any]

    async def pour(self, sink: Callable[[bytes], bool]) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def finish(self) -> None: ...


# What a token of a whole reply is taken for where the engine does not count them.
BYTES_PER_TOKEN = 4


def relay(
    answer: Answer, call: Call, delivery: Delivery, clock: Clock, gap: Gap, max_event_bytes: int
) -> Whole | Streamed:
    """What goes back to the caller. `gap` is told the seconds between two reads of a stream.

    Raises EngineFailed for a whole reply in which a choice does not say why it ended, or that it was cut off.
    """
    if call.stream:
        return Stream(answer, StreamWatch(call, delivery, max_event_bytes), delivery, clock, gap)
    document = answer.document
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


class Stream:
    """A streamed reply. What one read of the engine brought goes to the caller in one write, as it comes."""

    __slots__ = ("_answer", "_clock", "_delivery", "_gap", "_taker", "_watch")

    def __init__(self, answer: Answer, watch: StreamWatch, delivery: Delivery, clock: Clock, gap: Gap) -> None:
        self._answer = answer
        self._watch = watch
        self._delivery = delivery
        self._clock = clock
        self._gap = gap
        delivery.first_at_s = delivery.last_at_s = clock()

    async def pour(self, taker: Taker) -> None:
        """Writes the reply to `taker`. Raises Severed where it breaks off."""
        self._taker = taker
        watch, answer = self._watch, self._answer
        if self._pass(answer.first):
            await answer.pour(self._take)
        if watch.fault:
            raise watch.fault
        if watch.done:
            answer.finish()
        else:
            taker.write(watch.end())
        await taker.room()
        self._delivery.complete = True

    def _take(self, data: bytes) -> bool:
        """What one read brought; whether more is wanted."""
        delivery, now_s = self._delivery, self._clock()
        if delivery.last_at_s is not None:
            self._gap(now_s - delivery.last_at_s)
        delivery.last_at_s = now_s
        return self._pass(data)

    def _pass(self, data: bytes) -> bool:
        watch, taker = self._watch, self._taker
        passed = watch.pass_on(data)
        if passed:
            taker.write(passed)
        if watch.done or watch.fault:
            return False
        if taker.full:
            self._answer.pause()
            taker.when_room(self._answer.resume)
        return True
