"""HTTP to one engine: send a call, wait until it answers, read on. Its failures become ours here.

What counts as an answer: for a stream the first event, for a whole reply the whole document. Until then a failure
is an `AttemptFailed`, and another replica may be tried; after that it is a `Severed`.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import orjson

from gateway.call import Call
from gateway.deadlines import Deadlines
from gateway.errors import (
    BadCall,
    ContextTooLong,
    EngineFailed,
    EngineLost,
    EngineMisconfigured,
    EnginesBusy,
    EngineStalled,
    GatewayError,
    GatewayFull,
    TimedOut,
)
from gateway.fleet.replica import Blame, Replica
from gateway.http1 import Address, Broken, Connection, Connections, OutOfFiles, Sink
from gateway.settings import UpstreamSettings
from gateway.wire.events import Cutter, Event, decode, split

EVENT_STREAM = b"text/event-stream"
LONGEST_EXPLANATION = 64 * 1024
# What of a chat decides how many tokens its prompt has.
TOKENIZED = ("messages", "tools", "chat_template_kwargs")
# An engine may quote its caller at length; of what it says only the beginning is looked over, and less is told.
LOOKED_OVER_CHARS = 4000
TOLD_CHARS = 500
# An engine's words may name its files and addresses; a caller learns neither.
PRIVATE = re.compile(
    r"""(?ix) (?<![a-z0-9+.-])[a-z][a-z0-9+.-]*+://\S+  # a URL
          | (?<!\w)[a-z]:[\\/]\S*              # a path of Windows
          | [/\\][\w.~/\\@:%?=&-]{2,}          # any other path
          | (?<![\w.-])[\w-]++(?:\.[\w-]++)++:\d+\S*  # host and port
          | \b\d{1,3}(?:\.\d{1,3}){3}\b\S*      # an address"""
)


class AttemptFailed(Exception):
    """One attempt gave no answer. `fault` is what the caller is told if no other attempt succeeds.

    `begun` where the engine may have worked on the call: it may be the call that broke it.
    """

    def __init__(self, blame: Blame, fault: GatewayError, *, retryable: bool = True, begun: bool = False) -> None:
        super().__init__(str(fault))
        self.blame = blame
        self.fault = fault
        self.retryable = retryable
        self.begun = begun


def _failed(why: str) -> AttemptFailed:
    """The engine had the call and made nothing of it."""
    return AttemptFailed(Blame.FAULT, EngineFailed(why), begun=True)


class Answer(Protocol):
    """An engine's answer that has begun: `first` is there, `pour` gives the rest.

    Of a whole reply everything is there, and `document` is what it says.
    """

    replica: Replica
    first: bytes
    document: dict[str, Any]

    async def pour(self, sink: Sink) -> None:
        """Gives `sink` what comes, as it comes, until the end or until it wants no more. Raises Severed."""
        ...

    def pause(self) -> None:
        """Holds the engine back for now; that it is silent is not its fault then."""
        ...

    def resume(self) -> None: ...

    def finish(self) -> None:
        """The reply is complete, whatever the engine may still have to say."""
        ...

    def close(self) -> None: ...


class HttpAnswer:
    """The answer on a connection; the connection is kept for other calls when its message came to an end."""

    __slots__ = (
        "_connection",
        "_connections",
        "_finished",
        "_gap",
        "_paused",
        "_pouring",
        "_sink",
        "document",
        "first",
        "replica",
    )

    def __init__(
        self,
        replica: Replica,
        connection: Connection,
        connections: Connections,
        gap: Deadlines[Connection],
        first: bytes,
        document: dict[str, Any],
    ) -> None:
        self.replica = replica
        self.first = first
        self.document = document
        self._connection = connection
        self._connections = connections
        self._gap = gap
        self._finished = False
        self._pouring = False
        self._paused = False

    async def pour(self, sink: Sink) -> None:
        self._sink = sink
        self._pouring = True
        if not self._paused:
            self._gap.start(self._connection)
        try:
            await self._connection.pour(self._take)
        except Broken:
            raise EngineLost from None
        except TimeoutError:
            raise EngineStalled(self._gap.delay_s) from None
        finally:
            self._pouring = False
            self._gap.stop(self._connection)
            del self._sink  # It knows us, too.

    def _take(self, data: bytes) -> bool:
        # Comments keep a connection alive, and say nothing of the engine behind it: they do not count as headway.
        if not data.startswith(b":") or b"data" in data:
            self._gap.start(self._connection)
        return self._sink(data)

    def pause(self) -> None:
        self._paused = True
        self._gap.stop(self._connection)
        self._connection.pause()

    def resume(self) -> None:
        # Once it is closed, the connection may be another call's.
        if self._paused:
            self._paused = False
            self._connection.resume()
            if self._pouring:
                self._gap.start(self._connection)

    def finish(self) -> None:
        self._finished = True

    def close(self) -> None:
        self._paused = False
        if self._finished:
            self._connections.release_at_end(self._connection, self.replica.address)
        else:
            self._connections.release(self._connection, self.replica.address)


class Envelope(NamedTuple):
    """The heads of the messages that go to engines: built from constants and our own identifiers alone."""

    call_id: str
    traceparent: str | None

    def head(self, address: Address, path: str, body_bytes: int) -> bytes:
        trace = f"traceparent: {self.traceparent}\r\n" if self.traceparent else ""
        key = f"authorization: Bearer {address.api_key}\r\n" if address.api_key else ""
        return (
            f"POST {path} HTTP/1.1\r\nhost: {address}\r\n"
            "content-type: application/json\r\naccept-encoding: identity\r\n"
            f"content-length: {body_bytes}\r\nx-request-id: {self.call_id}\r\n{trace}{key}\r\n"
        ).encode("latin-1")


class HttpEngines:
    """Sends calls to engines over HTTP/1.1. Use as `async with`."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._max_reply_bytes = settings.max_reply_bytes
        self._connections = Connections(settings.connect_timeout_s, settings.idle_connection_s)
        self._asked = self._connections.patience(settings.connect_timeout_s)
        self._called = self._connections.patience(settings.call_timeout_s)
        self._started = self._connections.patience(settings.first_token_timeout_s)
        self._gap = self._connections.patience(settings.gap_timeout_s)

    async def __aenter__(self) -> "HttpEngines":
        await self._connections.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._connections.__aexit__(*exc)

    async def answer(self, replica: Replica, call: Call, envelope: Envelope) -> HttpAnswer:
        """Sends the call and waits for the engine's answer. Raises AttemptFailed; the replica is left alone then."""
        payload = call.payload
        message = envelope.head(replica.address, call.path, len(payload)) + payload
        connection = await self._acquire(replica)
        kept = connection.exchanges > 0
        try:
            try:
                return await self._first(connection, call, replica, message, envelope)
            except Broken as broken:
                if not (kept and broken.silent):
                    raise
                # Most likely the engine closed an idle connection as we sent. It may also have died of the call, so
                # if it cannot be reached now, the call counts as begun.
                connection.abort()
                connection = await self._acquire(replica, fresh=True)
                return await self._first(connection, call, replica, message, envelope)
        except Broken as broken:
            connection.abort()
            raise _failed(str(broken)) from broken
        except BaseException:
            # Kept only if the engine's message came to its end: a rejection is no reason to part.
            self._connections.release(connection, replica.address)
            raise

    async def _acquire(self, replica: Replica, *, fresh: bool = False) -> Connection:
        try:
            return await self._connections.acquire(replica.address, fresh=fresh)
        except OutOfFiles as full:
            raise AttemptFailed(Blame.NONE, GatewayFull(), retryable=False) from full
        except Broken as broken:
            raise AttemptFailed(Blame.UNREACHABLE, EngineFailed(str(broken)), begun=fresh) from broken

    async def _first(
        self, connection: Connection, call: Call, replica: Replica, message: bytes, envelope: Envelope
    ) -> HttpAnswer:
        """A good answer as far as it must be there: the first event of a stream, all of a whole reply."""
        patience = self._started if call.stream else self._called
        patience.start(connection)
        connection.send(message)
        try:
            head = await connection.head()
            if head.status != 200:
                explanation = await _all(connection, LONGEST_EXPLANATION)
                raise await self._rejection(head.status, explanation, call, replica, envelope)
            streamed = head.headers.get(b"content-type", b"").startswith(EVENT_STREAM)
            if streamed != call.stream or b"content-encoding" in head.headers:
                raise _failed("an answer of another kind than was asked for")
            document: dict[str, Any] = {}
            if call.stream:
                first, event = await _first_event(connection, self._max_reply_bytes)
                error = _leading_error(event)
                if error is not None:
                    raise await self._rejection(error.status, error.explanation, call, replica, envelope)
            else:
                first = await _all(connection, self._max_reply_bytes)
                document = _document(first)
        except TimeoutError:
            what = TimedOut("answer from the engine", patience.delay_s)
            raise AttemptFailed(Blame.SLOW, what, begun=True) from None
        finally:
            patience.stop(connection)
        return HttpAnswer(replica, connection, self._connections, self._gap, first, document)

    async def _rejection(
        self, status: int, explanation: bytes, call: Call, replica: Replica, envelope: Envelope
    ) -> AttemptFailed:
        """What a status other than 200 means. Read by the status and by our own count, never by the text."""
        match status:
            case 400 | 413 | 422:
                too_long = await self._context_too_long(call, replica, envelope)
                return AttemptFailed(
                    Blame.NONE,
                    too_long or BadCall(_explained(explanation), _param(explanation)),
                    retryable=False,
                )
            case 401 | 403:
                return AttemptFailed(Blame.FAULT, EngineMisconfigured(status))
            case 404:
                return AttemptFailed(Blame.FAULT, EngineMisconfigured(status))
            case 429 | 503:
                return AttemptFailed(Blame.BUSY, EnginesBusy())
            case _:
                return _failed(f"status {status}")

    async def _context_too_long(self, call: Call, replica: Replica, envelope: Envelope) -> ContextTooLong | None:
        """Whether a rejected call did not fit the context, as counted by the engine's own tokenizer."""
        counted = await self.prompt_tokens(replica, call, envelope) if replica.context_tokens else None
        completion = call.max_tokens or 0
        if counted is None or counted + max(1, completion) <= (replica.context_tokens or 0):
            return None
        return ContextTooLong(replica.context_tokens or 0, counted, completion)

    async def prompt_tokens(self, replica: Replica, call: Call, envelope: Envelope) -> int | None:
        """Tokens of a chat's prompt, as the engine's own tokenizer and template make them; None if it cannot say."""
        if "messages" not in call.body:
            return None
        asked = {"model": call.model} | {name: call.body[name] for name in TOKENIZED if name in call.body}
        body = orjson.dumps(asked)
        try:
            connection = await self._connections.acquire(replica.address)
        except Broken:
            return None
        try:
            self._asked.start(connection)
            connection.send(envelope.head(replica.address, "/tokenize", len(body)) + body)
            head = await connection.head()
            answer = orjson.loads(await _all(connection, self._max_reply_bytes))
            counted = answer["count"] if head.status == 200 else None
        except (Broken, TimeoutError, AttemptFailed, ValueError, KeyError, TypeError):
            return None
        finally:
            self._asked.stop(connection)
            self._connections.release(connection, replica.address)
        return counted if isinstance(counted, int) and counted >= 0 else None


async def _first_event(connection: Connection, limit_bytes: int) -> tuple[bytes, Event]:
    """What came up to the first event, with all that came along with it; and that event. Comments are no events."""
    cutter, received = Cutter(), bytearray()
    while len(received) <= limit_bytes:
        data = await connection.read()
        received += data
        event = next(filter(None, map(decode, split(cutter.feed(data)))), None)
        if not data or (event is not None and event.data == b"[DONE]"):
            raise _failed("an empty stream")
        if event is not None:
            return bytes(received), event
    raise _failed("an event beyond the size limit")


async def _all(connection: Connection, limit_bytes: int) -> bytes:
    parts, size = [], 0
    while part := await connection.read():
        parts.append(part)
        size += len(part)
        if size > limit_bytes:
            raise _failed("an answer beyond the size limit")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _document(body: bytes) -> dict[str, Any]:
    """What `body` says, if it is a JSON object that reports no error; an engine may report one inside a 200."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _failed("an answer that is not JSON") from None
    if not isinstance(document, dict) or document.get("error"):
        raise _failed("an error inside a 200")
    return document


class _EarlyError(NamedTuple):
    status: int
    explanation: bytes


def _leading_error(event: Event) -> _EarlyError | None:
    """The error that a stream begins with, where it does: nothing was passed on, so it is still an honest status."""
    if event.type != "error" and not _tells_of_an_error(event.data):
        return None
    code = _error_of(event.data).get("code")
    return _EarlyError(code if isinstance(code, int) and 400 <= code < 600 else 500, event.data)


def _tells_of_an_error(data: bytes) -> bool:
    """Whether a chunk has an `error`; that word may as well be what the model says."""
    if b'"error"' not in data:
        return False
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return isinstance(chunk, dict) and bool(chunk.get("error"))


def _error_of(document: bytes) -> Mapping[str, Any]:
    try:
        parsed = orjson.loads(document)
    except orjson.JSONDecodeError:
        return {}
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else None
    return error if isinstance(error, dict) else {}


def _explained(document: bytes) -> str:
    """The engine's reason for rejecting a call, without what only operators may know."""
    message = _error_of(document).get("message")
    if not isinstance(message, str) or not message.strip():
        return "The engine rejected the call."
    return PRIVATE.sub("…", message.strip()[:LOOKED_OVER_CHARS])[:TOLD_CHARS]


def _param(document: bytes) -> str | None:
    param = _error_of(document).get("param")
    return param[:128] if isinstance(param, str) else None
