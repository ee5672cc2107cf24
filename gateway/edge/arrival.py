"""A call as it comes in: what its headers say, before and while its body is read.

A caller is authenticated on an arrival; the body of a caller without a key is never read. Reading happens under
limits of size and time, and gives a `Call` in which everything was checked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.call import Call
from gateway.edge.callers import EXTENSION
from gateway.errors import BodyTooLarge, BodyTooSlow, CallerLeft, GatewayError, RepeatedHeader, UnsupportedMediaType
from gateway.wire import json_text, openai

# Headers that decide something: of two, a proxy before us may have looked at the other one.
SINGLE = (b"authorization", b"content-type", b"host", b"traceparent")

Receive = Callable[[], Awaitable[Any]]
Resolve = Callable[[str], str]
"""A model's canonical name; raises UnknownModel for one that the caller may not call."""


@dataclass(frozen=True, slots=True)
class ReadingLimits:
    """How much is read of a caller, for how long, and which fields are passed on beyond the usual ones."""

    max_body_bytes: int
    body_timeout_s: float
    max_choices: int
    also_allowed: frozenset[str] = frozenset()


class Caller(Protocol):
    """The connection that an exchange came on."""

    def departure(self) -> GatewayError | None:
        """Why the caller is not there any more; None while he is."""
        ...


class Arrival:
    """One HTTP exchange that has only begun. `received_at_s` is monotonic.

    `standing` gives the headers about the caller's limits, once it is known who calls.
    """

    def __init__(self, scope: Any, receive: Receive, call_id: str, received_at_s: float, limits: ReadingLimits) -> None:
        self.id = call_id
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.received_at_s = received_at_s
        self.standing: Callable[[], Mapping[str, str]] = dict
        self._receive = receive
        self._caller: Caller = scope["extensions"][EXTENSION]
        self._limits = limits
        self._names = [name for name, _ in scope["headers"]]
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._read = self._header(b"content-length") in ("", "0") and not self._header(b"transfer-encoding")

    @property
    def credential(self) -> str | None:
        """The bearer token (RFC 6750), where there is one. Never from the URL. Raises RepeatedHeader."""
        for name in SINGLE:
            if self._names.count(name) > 1:
                raise RepeatedHeader(name.decode())
        scheme, _, token = self._header(b"authorization").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    @property
    def traceparent(self) -> str | None:
        """The caller's trace context (W3C), unparsed."""
        return self._header(b"traceparent") or None

    def unread(self) -> bool:
        """Whether some of the body is still to be read."""
        return not self._read

    async def departure(self) -> GatewayError | None:
        """Waits until the caller has left, and says how; None when he first had his reply. The body must be read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        return self._caller.departure()

    async def read(self, resolve: Resolve, cache_salt: str) -> Call:
        """The call, read and checked. Raises BadCall in its many forms, and CallerLeft."""
        self._check_head()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                raw = await self._body()
        except TimeoutError:
            raise BodyTooSlow(self._limits.body_timeout_s) from None
        fields = openai.read_chat(json_text.parse(raw), self._limits.max_choices, self._limits.also_allowed)
        model = resolve(fields.model)
        body = fields.body | {"model": model, "cache_salt": cache_salt}
        if fields.stream:
            # The engine is always asked for the usage; the relay takes it out where the caller did not ask.
            body["stream_options"] = {"include_usage": True}
        return Call(
            id=self.id,
            path=openai.CHAT_PATH,
            model=model,
            body=body,
            payload=json_text.dump(body),
            stream=fields.stream,
            wants_usage=fields.wants_usage,
            choices=fields.choices,
            max_tokens=fields.max_tokens,
            prompt_bytes=len(raw),
            received_at_s=self.received_at_s,
        )

    def _check_head(self) -> None:
        content_type = self._header(b"content-type")
        kind, _, parameters = content_type.lower().partition(";")
        if kind.strip() != "application/json" or parameters.strip() not in (
            "",
            "charset=utf-8",
            'charset="utf-8"',
        ):
            raise UnsupportedMediaType(content_type)
        declared = self._header(b"content-length")
        if declared.isdecimal() and int(declared) > self._limits.max_body_bytes:
            raise BodyTooLarge(self._limits.max_body_bytes)

    async def _body(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise CallerLeft
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.max_body_bytes:
                raise BodyTooLarge(self._limits.max_body_bytes)
            if not message.get("more_body", False):
                self._read = True
                return b"".join(parts)

    def _header(self, name: bytes) -> str:
        return self._headers.get(name, b"").decode("latin-1")
