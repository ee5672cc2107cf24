"""gateway/errors.py and edge/rendering.py: how every error looks to an OpenAI client, as one table."""

from collections.abc import Iterator

import orjson
import pytest

from gateway import errors
from gateway.edge.rendering import ANSWERS, answer_to, error_body, error_headers, last_words
from gateway.errors import GatewayError

INVALID = "invalid_request_error"
BUSY = (503, "service_unavailable_error", "server_is_overloaded", None)
OURS = (500, "server_error", None, None)
SOON = {"retry-after": "1", "retry-after-ms": "1000"}
LAST = {"connection": "close"}
NEVER = {"x-should-retry": "false"}
KEYLESS = {"www-authenticate": "Bearer"}

Row = tuple[GatewayError, tuple[int, str, str | None, str | None], dict[str, str]]

# An error, its (status, type, code, param), and its headers.
ROWS: tuple[Row, ...] = (
    # The caller's.
    (errors.BadCall("x", "n"), (400, INVALID, None, "n"), {}),
    (errors.BadCall("x"), (400, INVALID, None, None), {}),
    (errors.NotJson("x"), (400, INVALID, None, None), {}),
    (errors.UnsupportedParameter("best_of"), (400, INVALID, "unsupported_parameter", "best_of"), {}),
    (errors.UnsupportedMediaType("text/plain"), (415, INVALID, None, None), {}),
    (errors.RepeatedHeader("host"), (400, INVALID, None, None), {}),
    (errors.NotHttp(), (400, INVALID, None, None), LAST),
    (errors.HeadTooLarge(7), (431, INVALID, None, None), LAST),
    (errors.HeadTooSlow(7), (408, INVALID, None, None), LAST),
    (errors.TargetTooLong(7), (414, INVALID, None, None), LAST),
    (errors.ExpectationFailed(), (417, INVALID, None, None), LAST),
    (errors.BodyTooLarge(7), (413, INVALID, "request_too_large", None), LAST),
    (errors.BodyTooSlow(7), (408, INVALID, None, None), LAST),
    (errors.ContextTooLong(2048, 2000, 100), (400, INVALID, "context_length_exceeded", "messages"), {}),
    (errors.UnknownModel("m"), (404, INVALID, "model_not_found", None), {}),
    (errors.NoSuchRoute("GET", "/x"), (404, INVALID, None, None), {}),
    (errors.WrongMethod("GET", "POST"), (405, INVALID, None, None), {"allow": "POST"}),
    # Refusals.
    (errors.Refused("x"), OURS, {}),
    (errors.NoKey(), (401, INVALID, None, None), KEYLESS),
    (errors.UnknownKey(), (401, INVALID, "invalid_api_key", None), KEYLESS),
    (
        errors.LimitReached("requests_per_minute", 5, "key a", 12.0),
        (429, "requests", "rate_limit_exceeded", None),
        {"retry-after": "12", "retry-after-ms": "12000"},
    ),
    (
        errors.LimitReached("tokens_per_minute", 5, "key a", 0.0301),
        (429, "tokens", "rate_limit_exceeded", None),
        {"retry-after": "1", "retry-after-ms": "31"},
    ),
    (errors.LimitReached("tokens_per_minute", 5, "key a", None), (429, "tokens", "rate_limit_exceeded", None), NEVER),
    (
        errors.LimitReached("tokens_per_day", 5, "key a", 61.0),
        (429, "tokens", "rate_limit_exceeded", None),
        {"retry-after": "61", "retry-after-ms": "61000"} | NEVER,
    ),
    (
        errors.LimitReached("concurrent_calls", 5, "tenant a", 1.0),
        (429, "requests", "rate_limit_exceeded", None),
        SOON,
    ),
    (
        errors.TooManyFailures(2.5),
        (429, "requests", "rate_limit_exceeded", None),
        {"retry-after": "3", "retry-after-ms": "2500"} | LAST,
    ),
    (
        errors.BudgetSpent("budget_tokens_per_day", 5, "tenant a", 1.0),
        (429, "insufficient_quota", "insufficient_quota", None),
        SOON | NEVER,
    ),
    (errors.TenantQueueFull("a", 5, 1.0), (429, "requests", "rate_limit_exceeded", None), SOON),
    # Our side's, before the first byte.
    (errors.KeysUnknown(), BUSY, SOON),
    (errors.LimitsUnavailable(), BUSY, SOON),
    (errors.QueueFull("m", 1.0), BUSY, SOON),
    (errors.WaitTooLong("m", 1.0), BUSY, SOON),
    (errors.Unserved("x"), BUSY, SOON),
    (errors.GateClosed(), BUSY, SOON),
    (errors.TooManyConnections(), BUSY, SOON),
    (errors.GatewayFull(), BUSY, SOON),
    (errors.BodiesWaiting(), BUSY, SOON),
    (errors.Draining(), BUSY, SOON | LAST),
    (errors.NoReplica("m"), BUSY, SOON),
    (errors.EngineFailed("status 500"), BUSY, SOON),
    (errors.EnginesBusy(), BUSY, SOON),
    (errors.EngineMisconfigured(401), OURS, NEVER),
    (errors.TimedOut("answer", 7), BUSY, SOON),
    # Our side's, after the first byte; or just before it, where nothing was sent yet.
    (errors.Severed("x"), BUSY, SOON),
    (errors.EngineLost(), BUSY, SOON),
    (errors.EngineStalled(7), BUSY, SOON),
    (errors.EngineBroke(), BUSY, SOON),
    (errors.ReplyIncomplete(), BUSY, SOON),
    (errors.CallTimedOut(7), BUSY, SOON),
    (errors.ShuttingDown(), BUSY, SOON),
    # Of nobody who could be told.
    (errors.SlowReader(7), BUSY, SOON),
    (errors.CallerLeft(), OURS, {}),
    (GatewayError("x"), OURS, {}),
)


def all_errors(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    yield kind
    for error in kind.__subclasses__():
        yield from all_errors(error)


@pytest.mark.parametrize(
    ("error", "expected", "headers"), [pytest.param(*row, id=f"{type(row[0]).__name__}") for row in ROWS]
)
def test_how_an_error_looks_to_a_client(
    error: GatewayError, expected: tuple[int, str, str | None, str | None], headers: dict[str, str]
) -> None:
    """Status, type, code and param as the contract has them, and when to come back."""
    status, kind, code, param = expected
    assert answer_to(error).status == status
    assert error_body(error) == {"error": {"message": error.message, "type": kind, "param": param, "code": code}}
    assert answer_to(error).ends == (headers.items() >= LAST.items())
    assert error_headers(error) == {name: value for name, value in headers.items() if name not in LAST}


def test_every_error_has_a_row() -> None:
    """An error that is added needs a row here; so does every line of the table."""
    rows = {type(error) for error, _, _ in ROWS}
    assert {error for error in all_errors() if error.__module__ == errors.__name__} == rows
    assert set(ANSWERS) - {Exception} <= rows


@pytest.mark.parametrize("error", [error for error, _, _ in ROWS], ids=lambda error: type(error).__name__)
def test_an_error_tells_its_caller_what_to_do_and_nothing_of_us(error: GatewayError) -> None:
    """One printable line that says something; no number is without its unit, no address and no path is in it."""
    assert error.message == str(error)
    assert error.message.isprintable()
    assert 0 < len(error.message) < 300
    assert "://" not in error.message


def test_of_an_error_that_is_not_ours_nothing_is_told() -> None:
    """Its words are for the operator, and even there only its class and place are told."""
    body = error_body(ValueError("canary: /srv/models at http://10.0.0.7"))
    assert body["error"] == {
        "message": "The gateway failed; the operator's log says why.",
        "type": "server_error",
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize(
    "error",
    [
        errors.UnsupportedParameter("x" * 64),
        errors.UnsupportedMediaType("x" * 100_000),
        errors.UnknownModel("x" * 100_000),
        errors.NoSuchRoute("X" * 100_000, "/" * 100_000),
        errors.WrongMethod("X" * 100_000, "POST"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_caller_sent_is_repeated_in_part_at_most(error: GatewayError) -> None:
    """A small answer to a large mistake."""
    assert len(orjson.dumps(error_body(error))) < 500


def test_an_error_that_could_never_fit_says_so() -> None:
    """The one hint that helps: ask for less."""
    assert "larger than the limit" in errors.LimitReached("tokens_per_minute", 5, "key a", None).message
    assert "larger than the limit" not in errors.LimitReached("tokens_per_minute", 5, "key a", 1.0).message


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errors.ContextTooLong(2048, 2000, 100), "2000 in the messages and 100 for the completion"),
        (errors.ContextTooLong(2048, 3000, 0), "3000 in the messages."),
    ],
)
def test_a_context_that_is_too_long_is_counted(error: GatewayError, told: str) -> None:
    """By how much is what the caller has to know."""
    assert told in error.message
    assert "2048 tokens" in error.message


def test_last_words_are_a_whole_http_message() -> None:
    """For a connection that never had an exchange: a status line, headers, the body, and the end."""
    message = last_words(errors.HeadTooLarge(65536), "req_1")
    head, _, body = message.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0].startswith("HTTP/1.1 431 ")
    headers = dict(line.split(": ") for line in lines[1:])
    assert headers["x-request-id"] == "req_1"
    assert headers["connection"] == "close"
    assert int(headers["content-length"]) == len(body)
    assert orjson.loads(body) == error_body(errors.HeadTooLarge(65536))
