"""Replies and errors to HTTP. Holds the one table from error to status, type and code.

Before the first byte an error is a status; after it, an event in the stream, followed by no `[DONE]`.
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson

from gateway import errors
from gateway.call import Reply, Streamed
from gateway.errors import BadCall, GatewayError, LimitReached, Refused, Severed, Unserved
from gateway.wire.events import encode_json

Send = Callable[[Any], Awaitable[None]]


class Answer(NamedTuple):
    """How an error looks to an OpenAI client."""

    status: int
    type: str
    code: str | None = None
    headers: Mapping[str, str] = {}


INVALID = "invalid_request_error"
NEVER_RETRY = {"x-should-retry": "false"}
CLOSE = {"connection": "close"}
# When to come back where a reply could not be begun, and no error says it better.
RETRY_AFTER_S = 1.0

# The nearest class wins, so a class that is not named looks like its parent.
ANSWERS: Mapping[type[BaseException], Answer] = {
    errors.BadCall: Answer(400, INVALID),
    errors.UnsupportedParameter: Answer(400, INVALID, "unsupported_parameter"),
    errors.UnsupportedMediaType: Answer(415, INVALID),
    errors.BodyTooLarge: Answer(413, INVALID, "request_too_large", CLOSE),
    errors.BodyTooSlow: Answer(408, INVALID, None, CLOSE),
    errors.NotHttp: Answer(400, INVALID, None, CLOSE),
    errors.HeadTooLarge: Answer(431, INVALID, None, CLOSE),
    errors.HeadTooSlow: Answer(408, INVALID, None, CLOSE),
    errors.ContextTooLong: Answer(400, INVALID, "context_length_exceeded"),
    errors.UnknownModel: Answer(404, INVALID, "model_not_found"),
    errors.NoSuchRoute: Answer(404, INVALID),
    errors.WrongMethod: Answer(405, INVALID),
    errors.NoKey: Answer(401, INVALID, None, {"www-authenticate": "Bearer"}),
    errors.UnknownKey: Answer(401, INVALID, "invalid_api_key", {"www-authenticate": "Bearer"}),
    errors.LimitReached: Answer(429, "requests", "rate_limit_exceeded"),
    errors.Unserved: Answer(503, "service_unavailable_error", "server_is_overloaded"),
    errors.Draining: Answer(503, "service_unavailable_error", "server_is_overloaded", CLOSE),
    errors.EngineMisconfigured: Answer(500, "server_error", None, NEVER_RETRY),
    errors.Severed: Answer(503, "service_unavailable_error", "server_is_overloaded"),
    Exception: Answer(500, "server_error"),
}


def answer_to(error: BaseException) -> Answer:
    """The status, type and code of an error."""
    found = next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)
    if isinstance(error, LimitReached) and error.limit.startswith("tokens"):
        return found._replace(type="tokens")
    return found


def error_body(error: BaseException) -> dict[str, Any]:
    """The body of an error, always with all four keys. Of an error that is not ours nothing is told."""
    known = isinstance(error, GatewayError)
    answer = answer_to(error)
    return {
        "error": {
            "message": str(error) if known else "The gateway failed; the operator's log says why.",
            "type": answer.type,
            "param": error.param if isinstance(error, BadCall) else None,
            "code": answer.code,
        }
    }


def error_headers(error: BaseException) -> dict[str, str]:
    found = dict(answer_to(error).headers)
    if isinstance(error, errors.WrongMethod):
        found["allow"] = error.allowed
    retry_after_s = error.retry_after_s if isinstance(error, (Refused, Unserved)) else None
    if isinstance(error, Severed):
        retry_after_s = RETRY_AFTER_S
    if retry_after_s is not None:
        found["retry-after"] = str(math.ceil(retry_after_s))
        found["retry-after-ms"] = str(math.ceil(retry_after_s * 1000))
    elif isinstance(error, LimitReached):
        found.update(NEVER_RETRY)
    return found


def last_words(error: GatewayError, call_id: str) -> bytes:
    """A whole HTTP message for a connection that has no exchange to answer in."""
    status, body = answer_to(error).status, orjson.dumps(error_body(error))
    headers = encoded(call_id, {**error_headers(error), **CLOSE, **_document(body)})
    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, HTTPStatus(status).phrase.encode(), lines, body)


def encoded(call_id: str, headers: Mapping[str, str]) -> Iterable[tuple[bytes, bytes]]:
    """Headers as they are sent: those that every answer has, and `headers`."""
    everywhere = {"x-request-id": call_id, "cache-control": "no-store"}
    return [(name.encode(), value.encode("latin-1")) for name, value in {**everywhere, **headers}.items()]


def _document(body: bytes) -> dict[str, str]:
    return {"content-type": "application/json", "content-length": str(len(body))}


class Response:
    """The one HTTP response of an exchange: remembers whether it has started, so that errors take the right form.

    `unread` says whether some of the body is still to be read: such an exchange is the last one on its connection.
    """

    def __init__(self, send: Send, call_id: str, unread: Callable[[], bool]) -> None:
        self._send = send
        self._call_id = call_id
        self._unread = unread
        self.started = False

    async def reply(self, reply: Reply, headers: Mapping[str, str]) -> None:
        """Sends a reply; a stream chunk by chunk, each when the caller has room for it."""
        if not isinstance(reply.content, Streamed):
            await self.whole(200, reply.content.body, headers)
            return
        await self._start(
            200, {**headers, "content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        )
        async with aclosing(reply.content.chunks) as chunks:
            async for chunk in chunks:
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._end(b"")

    async def error(self, error: BaseException, headers: Mapping[str, str]) -> None:
        """Tells the caller what went wrong, in the form that is still possible."""
        if self.started:
            await self._end(encode_json(error_body(error)))
        else:
            found = {**headers, **error_headers(error)}
            await self.whole(answer_to(error).status, orjson.dumps(error_body(error)), found)

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Sends one document: JSON, unless `headers` say otherwise."""
        await self._start(status, {**_document(body), **headers})
        await self._end(body)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        closing = CLOSE if self._unread() else {}
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": encoded(self._call_id, {**headers, **closing}),
            }
        )

    async def _end(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
