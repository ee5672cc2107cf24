"""What a stream's bytes tell as they pass: usage, finish, error, end. Bytes in, bytes out, no I/O.

Whole events pass unchanged, as many at once as one read held. Only events that say something we need are looked
into. The one event that is taken out is the usage that we asked the engine for and the caller did not; an event
that is not JSON passes as it is, for the caller to judge.
"""

from typing import Any, TypeGuard

import orjson

from gateway.call import Call, Delivery, Usage
from gateway.errors import EngineBroke, ReplyIncomplete, Severed
from gateway.wire.events import DONE, Cutter, Event, decode, split

# With the first of any pair an event is looked into, unless the second says that there is nothing to see. In the text
# of a reply they stand escaped (\"usage\"), so ordinary tokens do not match; a false match costs microseconds.
FINISH, NO_FINISH = b'finish_reason"', b'finish_reason":null'
USAGE, NO_USAGE = b'"usage"', b'"usage":null'
ERROR, NO_ERROR = b'"error"', b'"error":null'
# A burst says such things at its end: about so much of it is looked into where the rest is plain.
TAIL_BYTES = 1024
# Why vLLM ended a choice that it did not finish: it shuts down, was paused, or lost the call.
CUT_OFF = frozenset({"abort", "error"})


class StreamWatch:
    """Follows one stream. After `pass_on`, `done` and `fault` tell whether it came to its end, or to a bad one."""

    def __init__(self, call: Call, delivery: Delivery, max_event_bytes: int) -> None:
        self._call = call
        self._delivery = delivery
        self._max_event_bytes = max_event_bytes
        self._cutter = Cutter()
        self._finished: set[int] = set()
        self.done = False
        self.fault: Severed | None = None

    def pass_on(self, data: bytes) -> bytes:
        """What of `data`, and of what was held back before it, goes to the caller now: whole events only."""
        if not self._cutter.held_bytes and data.endswith(b"\n\n") and _is_plain(data):
            # Whole events that say nothing to us: nearly every read of a stream.
            self._delivery.events += _data_events(data)
            return data
        whole = self._cutter.feed(data)
        passed = self._look(whole)
        if whole is not data and self._cutter.held_bytes > self._max_event_bytes and not self.done:
            self.fault = self.fault or EngineBroke("The engine sent an event beyond the size limit.")
        return passed

    def end(self) -> bytes:
        """What is still to be sent after the engine's last byte. Raises Severed if the reply broke off."""
        if self.done:
            return b""
        passed = self._look(self._cutter.finish())
        if self.fault:
            raise self.fault
        if self.done:
            return passed
        # An end mark may lack its empty line; any other beginning of an event is one that the caller does not get.
        broke_off = self._cutter.held.strip() not in (b"", b"data: [DONE]", b"data:[DONE]")
        if broke_off or not self.finished:
            raise ReplyIncomplete
        self.done = True
        return passed + DONE

    @property
    def finished(self) -> bool:
        """Whether every choice has said why it ended."""
        return len(self._finished) >= self._call.choices

    def _look(self, whole: bytes) -> bytes:
        if _is_plain(whole):
            self._delivery.events += _data_events(whole)
            return whole
        tail_at = whole.rfind(b"\n\n", 0, max(0, len(whole) - TAIL_BYTES)) + 2
        head = whole[:tail_at] if tail_at > 1 else b""
        if not head or not _is_plain(head):
            return self._sift(whole)
        self._delivery.events += _data_events(head)
        return head + self._sift(whole[tail_at:])

    def _sift(self, whole: bytes) -> bytes:
        kept = []
        for raw in split(whole):
            event = decode(raw)
            if event is None or self._keep(event):
                kept.append(raw)
            if self.done or self.fault:
                break
        return b"".join(kept)

    def _keep(self, event: Event) -> bool:
        """Learns from an event; False if it is not for the caller."""
        if event.data.startswith(b"[DONE]"):  # As SDKs look for it.
            self.done = self.finished
            self.fault = None if self.done else ReplyIncomplete()
            return self.done
        chunk = _object(event.data)
        if event.type == "error" or chunk.get("error"):
            self.fault = EngineBroke()
            return False
        choices, usage = chunk.get("choices"), chunk.get("usage")
        if isinstance(choices, list):
            self._learn_finish(choices)
        if isinstance(usage, dict):
            self._learn_usage(usage_of(chunk))
        if self.fault or (isinstance(usage, dict) and not choices and not self._call.wants_usage):
            return False
        self._delivery.events += 1
        return True

    def _learn_finish(self, choices: list[Any]) -> None:
        for choice in choices:
            reason = choice.get("finish_reason") if isinstance(choice, dict) else None
            if not isinstance(reason, str):
                continue
            if reason in CUT_OFF:
                self.fault = ReplyIncomplete()
            index = choice.get("index", 0)
            if isinstance(index, int) and 0 <= index < self._call.choices and index not in self._finished:
                self._finished.add(index)
                self._delivery.finish_reasons.append(reason)

    def _learn_usage(self, usage: Usage | None) -> None:
        """Counts only grow: a usage that is told twice, or in parts, is charged once."""
        known = self._delivery.usage or Usage(0, 0)
        if usage is not None:
            self._delivery.usage = Usage(
                max(known.prompt_tokens, usage.prompt_tokens),
                max(known.completion_tokens, usage.completion_tokens),
                max(known.cached_tokens, usage.cached_tokens),
            )


def _is_plain(block: bytes) -> bool:
    """Whether no event of the block says anything that has to be looked into."""
    count = block.count
    return (
        count(FINISH) == count(NO_FINISH)
        and (USAGE not in block or count(USAGE) == count(NO_USAGE))
        and (ERROR not in block or count(ERROR) == count(NO_ERROR))
        and b"[DONE]" not in block
        and b"event:" not in block
    )


def _data_events(block: bytes) -> int:
    count = block.startswith(b"data:") + block.count(b"\ndata:")
    return count + block.count(b"\rdata:") if b"\r" in block else count


def usage_of(document: dict[str, Any]) -> Usage | None:
    """The usage that a reply or a chunk reports, where it reports a usable one."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens") or 0
    if not _is_count(prompt) or not _is_count(completion):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(prompt, completion, cached if _is_count(cached) else 0)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40
