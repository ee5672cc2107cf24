"""Records of usage as lines of JSON in a file: where a gateway leaves what it could not write, for the next one.

A file appears whole or not at all, readable by its owner alone. Lines may be taken in by several gateways at once:
the database counts a record once.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import uuid4

from gateway.store.rows import UsageRecord


class Page(NamedTuple):
    """Lines of a file, as far as they can be read; `end` is where the next ones begin, None after the last."""

    records: list[UsageRecord]
    unreadable: int
    end: int | None


@dataclass(frozen=True)
class Spool:
    """The files `NAME.usage-….jsonl` in a folder. Its functions wait for the disk and raise OSError."""

    folder: Path
    name: str = "pagegate"

    @classmethod
    def beside(cls, database: Path) -> Self:
        """Where it belongs with a database that is a file."""
        return cls(database.parent, database.name)

    def keep(self, records: Iterable[UsageRecord]) -> None:
        """Writes a new file, and returns when it is safe on the disk."""
        file = self.folder / f"{self.name}.usage-{uuid4().hex}.jsonl"
        partial = file.with_suffix(".part")
        try:
            with open(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as lines:
                lines.writelines(line_of(record) for record in records)
                lines.flush()
                os.fsync(lines.fileno())
            partial.rename(file)
        finally:
            partial.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Those that wait to be taken in."""
        begin = f"{self.name}.usage-"
        return sorted(it for it in self.folder.iterdir() if it.name.startswith(begin) and it.suffix == ".jsonl")

    def read(self, file: Path, start: int, count: int) -> Page:
        """At most `count` lines of a file, from a place in it."""
        records, unreadable = list[UsageRecord](), 0
        with file.open("rb") as lines:
            lines.seek(start)
            for _ in range(count):
                line = lines.readline()
                if not line:
                    return Page(records, unreadable, None)
                try:
                    records.append(record_of(line))
                except (KeyError, TypeError, ValueError):
                    unreadable += 1
            return Page(records, unreadable, lines.tell())

    def drop(self, file: Path, unreadable: int) -> None:
        """Removes a file that was taken in; one with unreadable lines stays, under another name."""
        if unreadable:
            file.rename(file.with_suffix(".unreadable"))
        else:
            file.unlink(missing_ok=True)


def line_of(record: UsageRecord) -> str:
    """One line, of ASCII alone: it holds every text."""
    return json.dumps(asdict(record) | {"at": record.at.isoformat()}, separators=(",", ":")) + "\n"


def record_of(line: bytes) -> UsageRecord:
    """Raises KeyError, TypeError or ValueError if it is not one."""
    fields: dict[str, Any] = json.loads(line)
    at = datetime.fromisoformat(fields.pop("at"))
    if at.tzinfo is None:
        raise ValueError("a time without a time zone")
    return UsageRecord(at=at, **fields)
