"""JSON lines on standard error. Nothing but named fields is logged: never a prompt, a reply or a key."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import orjson
import structlog

from gateway.settings import TelemetrySettings

Log = structlog.typing.FilteringBoundLogger
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def make(settings: TelemetrySettings, out: BinaryIO | None = None) -> Log:
    """A logger of its own: nothing global is configured."""
    logger: Log = structlog.wrap_logger(
        structlog.BytesLogger(out or sys.stderr.buffer),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[settings.log_level]),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return logger


def _dumps(fields: Any, **_: Any) -> bytes:
    head = {name: fields.pop(name) for name in ("timestamp", "level", "event") if name in fields}
    return orjson.dumps({**head, **{name: value for name, value in fields.items() if value is not None}}, default=repr)


class _Forward(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        exc_info = record.exc_info if record.exc_info and record.exc_info[0] else None
        self._log.log(record.levelno, "library", logger=record.name, message=record.getMessage(), exc_info=exc_info)


@contextmanager
def libraries(log: Log) -> Iterator[None]:
    """While the block runs, what libraries log as a warning or worse goes through `log` too."""
    root, handler = logging.getLogger(), _Forward(log)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
