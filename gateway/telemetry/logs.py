"""JSON lines on standard error. Nothing but named fields is logged: never a prompt, a reply or a key."""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import orjson
import structlog

from gateway.settings import TelemetrySettings

Log = structlog.typing.FilteringBoundLogger
EventDict = structlog.typing.EventDict
LONGEST_MESSAGE = 300
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def make(settings: TelemetrySettings, out: BinaryIO | None = None) -> Log:
    """A logger of its own: nothing global is configured."""
    logger: Log = structlog.wrap_logger(
        structlog.BytesLogger(out or sys.stderr.buffer),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _places,
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[settings.log_level]),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return logger


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


def _dumps(fields: Any, **_: Any) -> bytes:
    head = {name: fields.pop(name) for name in ("timestamp", "level", "event") if name in fields}
    told = {**head, **{name: value for name, value in fields.items() if value is not None}}
    return orjson.dumps(told, default=_class)


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
