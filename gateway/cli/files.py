"""Exports to standard output or to a file that is there whole or not at all."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.client import AdminClient, Query
from gateway.cli.place import Lost

Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to a file; else to standard output.")
]


def save(api: AdminClient, path: str, query: Query, output: Path | None) -> None:
    """Writes what an export answers. Raises Lost."""
    if output is None:
        for block in api.blocks(path, query):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
        return
    draft = output.with_name(f"{output.name}.part")
    try:
        with draft.open("wb") as file:
            for block in api.blocks(path, query):
                file.write(block)
        draft.replace(output)
    except OSError as error:
        raise Lost(f"{output}: cannot be written: {error.strerror or error}.") from None
    finally:
        draft.unlink(missing_ok=True)
