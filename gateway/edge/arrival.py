"""A call as it comes in: what its head says, before and while its body is read.

A caller is authenticated on an arrival; the body of a caller without a key is never read. Reading happens under
limits of size and time, and gives a `Call` in which everything was checked.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.call import Call
from gateway.edge.address import caller_address
from gateway.edge.exchange import Exchange, Told
from gateway.errors import BodiesWaiting, BodyTooLarge, GatewayError, UnsupportedMediaType
from gateway.settings import Network
from gateway.wire import json_text, openai

Resolve = Callable[[str], str]
"""A model's canonical name; raises UnknownModel for one that the caller may not call."""

# How long a caller waits for the next byte: our own header, in milliseconds, and what OpenAI's SDKs send, in seconds.
TIMEOUT_HEADERS = ((b"x-pagegate-timeout-ms", 0.001), (b"x-stainless-read-timeout", 1.0))
LONGEST_TIMEOUT_S = 86_400.0
CHARSETS = frozenset({b"", b"charset=utf-8", b'charset="utf-8"'})
PLAIN_JSON = b"application/json"


class Room:
    """Room for bodies that are still coming, shared by all of a listener's callers; `<Room 3 of 512 bytes taken>`.

    A body is read before a call is held to its limits, so these do not bound how many are being read.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._taken_bytes = 0

    @contextmanager
    def taken(self, body_bytes: int) -> Iterator[None]:
        """Sets room aside while the block runs. Raises BodiesWaiting where there is none."""
        if self._taken_bytes + body_bytes > self._most_bytes:
            raise BodiesWaiting
        self._taken_bytes += body_bytes
        try:
            yield
        finally:
            self._taken_bytes -= body_bytes

    def __repr__(self) -> str:
        return f"<Room {self._taken_bytes} of {self._most_bytes} bytes taken>"


@dataclass(frozen=True, slots=True)
class ReadingLimits:
    """How much is read of a caller, of all of them, for how long; and which fields are passed on beyond the usual."""

    max_body_bytes: int
    body_timeout_s: float
    max_choices: int
    room: Room
    also_allowed: frozenset[str] = frozenset()
    trusted_proxies: tuple[Network, ...] = ()


class Arrival:
    """A call that has only begun. `received_at_s` is monotonic.

    `trace_id` is set once the call is followed, and `allowance`, which tells of the caller's limits, once he is known.
    """

    __slots__ = ("_exchange", "_limits", "allowance", "id", "method", "path", "received_at_s", "trace_id")

    def __init__(self, exchange: Exchange, limits: ReadingLimits) -> None:
        self.id = exchange.id
        self.method = exchange.head.method
        self.path = exchange.head.path
        self.received_at_s = exchange.received_at_s
        self.trace_id = ""
        self.allowance: Callable[[], bytes] = bytes
        self._exchange = exchange
        self._limits = limits

    @property
    def credential(self) -> str | None:
        """The bearer token (RFC 6750), where there is one. Raises RepeatedHeader."""
        return self._exchange.head.bearer

    @property
    def address(self) -> str:
        """Where the caller is, as far as that can be believed: a proxy that we trust is believed."""
        return caller_address(self._exchange.address, self._exchange.head, self._limits.trusted_proxies)

    @property
    def traceparent(self) -> str | None:
        """The caller's trace context (W3C), unparsed."""
        raw = self._exchange.head.headers.get(b"traceparent")
        return raw.decode("latin-1") if raw else None

    def standing(self) -> bytes:
        """The header lines that tell of the call what is known, for an answer that is an error."""
        trace = f"x-pagegate-trace: {self.trace_id}\r\n".encode() if self.trace_id else b""
        return self.allowance() + trace

    @property
    def departed(self) -> GatewayError | None:
        """Why the caller is not there any more; None while he is."""
        return self._exchange.departed

    def when_departed(self, told: Told) -> None:
        """Calls `told` once if the caller leaves before he has his whole reply."""
        self._exchange.when_departed(told)

    async def read(self, resolve: Resolve, cache_salt: str) -> Call:
        """The call, read and checked. Raises BadCall in its many forms, and CallerLeft."""
        declared_bytes = self._check_head()
        exchange, limits = self._exchange, self._limits
        if exchange.unread:
            # Of a body whose length is not said there may be as much as is taken of any.
            with limits.room.taken(limits.max_body_bytes if declared_bytes is None else declared_bytes):
                raw = await exchange.body(limits.max_body_bytes, limits.body_timeout_s)
        else:
            raw = await exchange.body(limits.max_body_bytes, limits.body_timeout_s)
        fields = openai.read_chat(json_text.parse(raw), self._limits.max_choices, self._limits.also_allowed)
        model = resolve(fields.model)
        body = fields.body | {"model": model, "cache_salt": cache_salt}
        if fields.stream:
            # The engine is always asked for the usage; the relay takes it out where the caller did not ask.
            body["stream_options"] = {"include_usage": True}
            if fields.wants_usage_always:
                body["stream_options"]["continuous_usage_stats"] = True
        return Call(
            id=self.id,
            path=openai.CHAT_PATH,
            model=model,
            body=body,
            stream=fields.stream,
            wants_usage=fields.wants_usage,
            choices=fields.choices,
            max_tokens=fields.max_tokens,
            prompt_bytes=len(raw),
            received_at_s=self.received_at_s,
            deadline_s=self.received_at_s + self._patience_s(),
            yielding=fields.yielding,
        )

    def _patience_s(self) -> float:
        """How long the caller says that he waits for his reply to begin. What cannot be understood says nothing."""
        headers = self._exchange.head.headers
        for name, unit_s in TIMEOUT_HEADERS:
            raw = headers.get(name)
            if raw is not None:
                try:
                    patience_s = float(raw) * unit_s
                except ValueError:
                    continue
                if 0 < patience_s <= LONGEST_TIMEOUT_S:
                    return patience_s
        return math.inf

    def _check_head(self) -> int | None:
        """How long the body is said to be. Raises UnsupportedMediaType, BodyTooLarge."""
        headers = self._exchange.head.headers
        content_type = headers.get(b"content-type", b"")
        if content_type != PLAIN_JSON:
            kind, _, parameters = content_type.lower().partition(b";")
            if kind.strip() != PLAIN_JSON or parameters.strip() not in CHARSETS:
                raise UnsupportedMediaType(content_type.decode("latin-1"))
        encoding = headers.get(b"content-encoding", b"").strip().lower()
        if encoding not in (b"", b"identity"):
            raise UnsupportedMediaType(content_type.decode("latin-1"), encoding.decode("latin-1"))
        declared = headers.get(b"content-length", b"")
        if not declared.isdigit():
            return None
        if int(declared) > self._limits.max_body_bytes:
            raise BodyTooLarge(self._limits.max_body_bytes)
        return int(declared)
