"""Words of a command line to values: `90d`, `requests_per_minute=60`, `a,b`. Raises typer.BadParameter."""

import re
from collections.abc import Iterable
from typing import Any

import typer

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DURATION = re.compile(r"([0-9]+)([smhdw]?)")


def seconds(text: str) -> int:
    """`90d`, `12h`, `30m`, `45s`, `2w`; a bare number is seconds."""
    found = DURATION.fullmatch(text.strip())
    if not found:
        raise typer.BadParameter(f"{text!r} is no duration; write e.g. 30m, 12h or 90d")
    return int(found[1]) * UNITS_S[found[2] or "s"]


def listed(text: str) -> list[str]:
    """`a,b` as its parts."""
    return text.split(",") if text else []


def numbers(assignments: Iterable[str], *, may_remove: bool) -> dict[str, Any]:
    """`NAME=NUMBER` each; `NAME=` takes away, where something can be taken away."""
    return {name: _number(name, value) if value else None for name, value in _pairs(assignments, may_remove)}


def texts(assignments: Iterable[str], *, may_remove: bool) -> dict[str, Any]:
    """`NAME=TEXT` each; likewise."""
    return {name: value or None for name, value in _pairs(assignments, may_remove)}


def _pairs(assignments: Iterable[str], may_remove: bool) -> Iterable[tuple[str, str]]:
    for text in assignments:
        name, equals, value = text.partition("=")
        if not (name and equals) or not (value or may_remove):
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
        yield name, value


def _number(name: str, text: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise typer.BadParameter(f"{name} must be a number (was {text!r})")
