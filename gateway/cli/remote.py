"""Commands that go through the admin API: each gets the same options that say where it is, and how to tell."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Concatenate, NamedTuple

import typer

from gateway import settings as configuration
from gateway.cli.client import AdminClient
from gateway.cli.place import DEFAULT_STATE, KEY, KEY_FILE, STATE, URL, Lost, Options, find
from gateway.cli.telling import fail, shown

PANEL = "The admin API"

AdminUrl = Annotated[
    str | None,
    typer.Option("--admin-url", help=f"Where it is ({URL}; else where `pagegate up` runs it).", rich_help_panel=PANEL),
]
AdminKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--admin-key-file",
        help=f"File with an administrator's key ({KEY_FILE}; or the key itself in {KEY}).",
        rich_help_panel=PANEL,
    ),
]
StateFolder = Annotated[
    Path | None,
    typer.Option("--state", help=f"Folder of `pagegate up` ({STATE}; else {DEFAULT_STATE}).", rich_help_panel=PANEL),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Send the key unencrypted to another machine.", rich_help_panel=PANEL),
]
AsJson = Annotated[bool, typer.Option("--json", help="Tell in JSON, for machines.")]


class Desk(NamedTuple):
    """What a command works with: the admin API, and whether a machine reads what it tells."""

    api: AdminClient
    as_json: bool


def remote(command: Callable[Concatenate[Desk, ...], None]) -> Callable[..., None]:
    """The command with the options of the admin API in place of its desk; what goes wrong ends it with a message."""

    @functools.wraps(command)
    def with_desk(**given: Any) -> None:
        as_json = given.pop("as_json")
        options = Options(**{name: given.pop(name) for name in Options._fields})
        try:
            place = find(options, configuration.environment())
            command(Desk(AdminClient(place), as_json), **given)
        except Lost as lost:
            fail(*map(shown, lost.lines))

    added = {
        "as_json": (AsJson, False),
        "url": (AdminUrl, None),
        "key_file": (AdminKeyFile, None),
        "state": (StateFolder, None),
        "insecure": (Insecure, False),
    }
    signature = inspect.signature(command)
    own = list(signature.parameters.values())[1:]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in added.items()
    ]
    # Typer reads these, and not what the function is made of.
    with_desk.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    with_desk.__annotations__ = {each.name: each.annotation for each in (*own, *more)} | {"return": None}
    return with_desk
