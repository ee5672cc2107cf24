"""Rows as CSV (RFC 4180) or JSON lines, a page at a time.

A cell that a spreadsheet would take for a formula begins with an apostrophe instead.
"""

import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import orjson

from gateway.admin.views import View

Format = Literal["csv", "jsonl"]
CONTENT_TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

Row = TypeVar("Row")


async def written(
    pages: AsyncIterator[Sequence[Row]], view: Callable[[Row], View], columns: Sequence[str], form: Format
) -> AsyncIterator[bytes]:
    """The pages as text; a CSV begins with its columns, also where there are no rows."""
    if form == "csv":
        yield _table([columns])
    async for page in pages:
        views = [view(row) for row in page]
        if form == "csv":
            yield _table([_cell(found[column]) for column in columns] for found in views)
        else:
            yield b"".join(orjson.dumps(found) + b"\n" for found in views)


def _table(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str() if value.startswith(FORMULA):
            return f"'{value}"
        case _:
            return value
