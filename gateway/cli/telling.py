"""How commands tell what they found: tables for people, JSON for machines, and one message for every mistake.

What was found is text of others: nothing in it steers a terminal.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import typer

PLAIN_WIDTH = 10_000


def fail(*lines: str) -> NoReturn:
    """Says what is wrong on standard error, and leaves with status 1."""
    for line in lines:
        print(f"pagegate: {line}", file=sys.stderr)
    raise typer.Exit(1)


def print_json(value: object) -> None:
    """JSON in lines that people can read too. Its texts are escaped, so they cannot steer a terminal."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], empty: str) -> None:
    """A row a line under the columns' names; `empty` on standard error where there are none."""
    found = [[shown(row.get(column)) for column in columns] for row in rows]
    if not found:
        print(empty, file=sys.stderr)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for cells in found:
        table.add_row(*map(Text, cells))
    # Whoever reads it from a pipe wants a row a line, however long.
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    console.print(table)


def print_facts(facts: Mapping[str, Any], *, to_errors: bool = False) -> None:
    """A fact a line; those that are not there are left out."""
    known = {name.replace("_", " "): shown(value) for name, value in facts.items() if value not in (None, {}, [])}
    width = max(map(len, known), default=0)
    for name, value in known.items():
        print(f"{name:<{width}}  {value}", file=sys.stderr if to_errors else sys.stdout)


def shown(value: object) -> str:
    """A value in a word or a few."""
    match value:
        case None:
            text = "-"
        case bool():
            text = "yes" if value else "no"
        case float():
            text = f"{value:.6f}".rstrip("0").rstrip(".")
        case list():
            text = ", ".join(map(shown, value)) or "-"
        case dict():
            text = ", ".join(f"{name}={shown(inner)}" for name, inner in value.items()) or "-"
        case _:
            text = str(value)
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
