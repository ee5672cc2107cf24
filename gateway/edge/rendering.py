"""Replies and errors to HTTP. Holds the one table from error to status, type and code.

Before the first byte an error is a status; after it, an event in the stream, followed by no `[DONE]`.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from gateway import errors
from gateway.call import Reply, Whole
from gateway.edge.exchange import CLOSE, STATUS_LINES, Exchange
from gateway.errors import BadCall, GatewayError, LimitReached, Refused, Severed, Unserved
from gateway.wire.events import encode_json

JSON = b"content-type: application/json\r\n"
EVENT_STREAM = b"content-type: text/event-stream; charset=utf-8\r\nx-accel-buffering: no\r\n"


class Answer(NamedTuple):
    """How an error looks to an OpenAI client; `ends` where its connection cannot be used again."""

    status: int
    type: str
    code: str | None = None
    headers: Mapping[str, str] = {}
    ends: bool = False


INVALID = "invalid_request_error"
# SDKs that are told to wait longer take a time of their own, and are back at once.
LONGEST_WORTH_S = 60.0
NEVER_RETRY = {"x-should-retry": "false"}
# When to come back where a reply could not be begun, and no error says it better.
RETRY_AFTER_S = 1.0

# The nearest class wins, so a class that is not named looks like its parent.
ANSWERS: Mapping[type[BaseException], Answer] = {
    errors.BadCall: Answer(400, INVALID),
    errors.UnsupportedParameter: Answer(400, INVALID, "unsupported_parameter"),
    errors.UnsupportedMediaType: Answer(415, INVALID),
    errors.BodyTooLarge: Answer(413, INVALID, "request_too_large", ends=True),
    errors.BodyTooSlow: Answer(408, INVALID, None, ends=True),
    errors.NotHttp: Answer(400, INVALID, None, ends=True),
    errors.HeadTooLarge: Answer(431, INVALID, None, ends=True),
    errors.HeadTooSlow: Answer(408, INVALID, None, ends=True),
    errors.TargetTooLong: Answer(414, INVALID, None, ends=True),
    errors.ExpectationFailed: Answer(417, INVALID, None, ends=True),
    errors.ContextTooLong: Answer(400, INVALID, "context_length_exceeded"),
    errors.UnknownModel: Answer(404, INVALID, "model_not_found"),
    errors.NoSuchRoute: Answer(404, INVALID),
    errors.WrongMethod: Answer(405, INVALID),
    errors.NoKey: Answer(401, INVALID, None, {"www-authenticate": "Bearer"}),
    errors.UnknownKey: Answer(401, INVALID, "invalid_api_key", {"www-authenticate": "Bearer"}),
    errors.TooManyFailures: Answer(429, "requests", "rate_limit_exceeded", ends=True),
    errors.LimitReached: Answer(429, "requests", "rate_limit_exceeded"),
    errors.BudgetSpent: Answer(429, "insufficient_quota", "insufficient_quota", NEVER_RETRY),
    errors.Unserved: Answer(503, "service_unavailable_error", "server_is_overloaded"),
    errors.Draining: Answer(503, "service_unavailable_error", "server_is_overloaded", ends=True),
    errors.EngineMisconfigured: Answer(500, "server_error", None, NEVER_RETRY),
    errors.Severed: Answer(503, "service_unavailable_error", "server_is_overloaded"),
    Exception: Answer(500, "server_error"),
}


def answer_to(error: BaseException) -> Answer:
    """The status, type and code of an error."""
    found = next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)
    if found.type == "requests" and isinstance(error, LimitReached) and error.limit.startswith("tokens"):
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
        if retry_after_s > LONGEST_WORTH_S:
            found.update(NEVER_RETRY)
    elif isinstance(error, LimitReached):
        found.update(NEVER_RETRY)
    return found


def lines(headers: Mapping[str, str]) -> bytes:
    """Headers as lines of a head, each with its CR LF. Names and values are our own: they hold no line ends."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


async def send(exchange: Exchange, reply: Reply) -> None:
    """Answers with a reply; a stream as it comes. Raises what breaks the stream off."""
    if isinstance(reply.content, Whole):
        exchange.whole(200, JSON + reply.lines, reply.content.body)
        return
    exchange.speaks_events = True
    exchange.begin(200, EVENT_STREAM + reply.lines)
    await reply.content.pour(exchange)
    exchange.end()


def tell(exchange: Exchange, error: BaseException, standing: bytes) -> None:
    """Answers with what went wrong, in the form that is still possible; `standing` are more header lines."""
    if exchange.ended:
        return
    if exchange.started:
        # What is no stream of events has no form for an error: it stays without an end, and its connection is cut.
        if exchange.speaks_events:
            exchange.end(encode_json(error_body(error)))
        return
    answer = answer_to(error)
    if answer.ends:
        exchange.end_connection()
    exchange.whole(answer.status, JSON + standing + lines(error_headers(error)), orjson.dumps(error_body(error)))


def last_words(error: GatewayError, call_id: str) -> bytes:
    """A whole HTTP message for a connection that has no exchange to answer in."""
    body = orjson.dumps(error_body(error))
    own = {"x-request-id": call_id, "cache-control": "no-store", "content-length": str(len(body))}
    return b"%b%b%b%b\r\n%b" % (
        STATUS_LINES[answer_to(error).status],
        JSON,
        lines(own | error_headers(error)),
        CLOSE,
        body,
    )
