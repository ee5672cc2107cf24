"""JSON lines on standard error. Nothing but named fields is logged: never a prompt, a reply or a key.

What happens now and then goes through structlog; the fields of a call's line are put together by whoever knows the
call, and only rendered here. How lines reach the stream is `lines.py`'s business.
"""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, BinaryIO, Literal, Protocol

import orjson
import structlog

from gateway.settings import TelemetrySettings
from gateway.telemetry.lines import Lines

EventDict = structlog.typing.EventDict
Level = Literal["debug", "info", "warning", "error"]
LONGEST_MESSAGE = 300
LEVELS: dict[Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
JSON_LINE = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE


class Log(structlog.typing.FilteringBoundLogger, Protocol):
    """Where the gateway tells what happens."""

    def line(self, level: Level, event: str, fields: dict[str, Any]) -> None:
        """Logs an event past structlog, for a fraction of the cost. All fields are known, and have JSON."""


class _WholeLines:
    _logger: Lines
    _lowest: int

    def line(self, level: Level, event: str, fields: dict[str, Any]) -> None:
        if LEVELS[level] >= self._lowest:
            self._logger.write(_rendered(level, event, fields))


def make(settings: TelemetrySettings, out: BinaryIO | None = None) -> Log:
    """A logger of its own: nothing global is configured."""
    lowest = LEVELS[settings.log_level]
    filtering = structlog.make_filtering_bound_logger(lowest)
    logger: Log = structlog.wrap_logger(
        Lines(out or sys.stderr.buffer, _lost),
        processors=[_places, _known],
        wrapper_class=type("Logger", (_WholeLines, filtering), {"_lowest": lowest}),
        context_class=dict,
    ).bind()
    return logger


def _lost(lines: int) -> bytes:
    return _rendered("warning", "log_lines_lost", {"lines": lines})


def _known(logger: Any, method: str, fields: EventDict) -> bytes:
    """What is known of an event, as a line."""
    event = fields.pop("event")
    return _rendered(method, event, {name: value for name, value in fields.items() if value is not None})


def _rendered(level: str, event: str, fields: dict[str, Any]) -> bytes:
    told = {"timestamp": datetime.now(UTC), "level": level, "event": event, **fields}
    return orjson.dumps(told, default=_class, option=JSON_LINE)


def _places(logger: Any, method: str, fields: EventDict) -> EventDict:
    """Names an error's class and the places that it came through; its own words may quote a prompt or a key."""
    error = fields.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        fields["exception"] = "".join(_told(error))
    return fields


def _told(error: BaseException, known: frozenset[int] = frozenset()) -> Iterator[str]:
    """The error's story, what led to it first; each error of it once."""
    known |= {id(error)}
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and id(earlier) not in known:
        yield from _told(earlier, known)
        yield "then\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__module__}.{type(error).__qualname__}\n"
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield "in it\n"
            yield from _told(inner, known)


def _class(value: object) -> str:
    return f"<{type(value).__qualname__}>"


class _Forward(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        # Only the first line: what follows it are the representations of things.
        message, _, _ = record.getMessage().partition("\n")
        message = message[:LONGEST_MESSAGE].encode("utf-8", "replace").decode()
        self._log.log(record.levelno, "library", logger=record.name, message=message, exc_info=record.exc_info)


@contextmanager
def libraries(log: Log) -> Iterator[None]:
    """While the block runs, what libraries log as a warning or worse goes through `log` too."""
    root, handler = logging.getLogger(), _Forward(log)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
