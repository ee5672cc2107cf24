"""What a stream's bytes tell as they pass: usage, finish, error, end. Bytes in, bytes out, no I/O.

Whole events pass unchanged, as many at once as one read held. Only events that say something we need are looked
into. The one event that is taken out is the usage that we asked the engine for and the caller did not.
"""

from typing import Any, TypeGuard

import orjson

from gateway.call import Call, Delivery, Usage
from gateway.errors import EngineBroke, ReplyIncomplete, Severed
from gateway.wire.events import DONE, Event, cut, decode, split

# Any of these in a block and its events are looked into. In the text of a reply they stand escaped (\"usage\"),
# so ordinary tokens do not match; a false match costs microseconds.
REMARKABLE = (b'"usage"', b'"error"', b'finish_reason":"', b'finish_reason": "', b"[DONE]", b"event: error")


class StreamWatch:
    """Follows one stream. After `pass_on`, `fault` tells whether the engine reported that it broke."""

    def __init__(self, call: Call, delivery: Delivery, max_event_bytes: int) -> None:
        self._call = call
        self._delivery = delivery
        self._max_event_bytes = max_event_bytes
        self._tail = b""
        self._finished: set[int] = set()
        self.done = False
        self.fault: Severed | None = None

    def pass_on(self, data: bytes) -> bytes:
        """What of `data`, and of what was held back before it, goes to the caller now: whole events only."""
        whole, self._tail = cut(self._tail + data if self._tail else data)
        if len(self._tail) > self._max_event_bytes:
            self.fault = EngineBroke("The engine sent an event beyond the size limit.")
        self._delivery.events += whole.count(b"data:")
        for mark in REMARKABLE:
            if mark in whole:
                return self._sift(whole)
        return whole

    def end(self) -> bytes:
        """What is still to be sent after the engine's last byte. Raises ReplyIncomplete if the reply broke off."""
        if self.done:
            return b""
        if self._tail or not self.finished:
            raise ReplyIncomplete
        self.done = self._delivery.complete = True
        return DONE

    @property
    def finished(self) -> bool:
        """Whether every choice has said why it ended."""
        return len(self._finished) >= self._call.choices

    def _sift(self, whole: bytes) -> bytes:
        kept = []
        for raw in split(whole):
            event = decode(raw)
            if event is not None and not self._keep(event):
                self._delivery.events -= 1
                if self.fault or self.done:
                    break
                continue
            kept.append(raw)
            if self.done:
                break
        return b"".join(kept)

    def _keep(self, event: Event) -> bool:
        """Learns from an event; False if it is not for the caller."""
        if event.data == b"[DONE]":
            if self.finished:
                self.done = self._delivery.complete = True
            else:
                self.fault = ReplyIncomplete()
            return self.done
        try:
            chunk = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            return True
        if event.type == "error" or not isinstance(chunk, dict) or chunk.get("error"):
            self.fault = EngineBroke()
            return False
        choices = chunk.get("choices")
        if isinstance(choices, list):
            self._learn_finish(choices)
        usage = usage_of(chunk)
        if usage is None:
            return True
        known = self._delivery.usage
        self._delivery.usage = usage if known is None else max(known, usage)
        return bool(choices) or self._call.wants_usage

    def _learn_finish(self, choices: list[Any]) -> None:
        for choice in choices:
            if isinstance(choice, dict) and isinstance(choice.get("finish_reason"), str):
                index = choice.get("index")
                self._finished.add(index if isinstance(index, int) else 0)
                self._delivery.finish_reasons.append(choice["finish_reason"])


def usage_of(document: dict[str, Any]) -> Usage | None:
    """The usage that a reply or a chunk reports, where it reports a usable one."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not _is_count(prompt) or not _is_count(completion):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(prompt, completion, cached if _is_count(cached) else 0)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40
