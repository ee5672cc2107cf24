"""`pagegate audit`: who administered what."""

from typing import Annotated

import typer

from gateway.cli.files import Output, save
from gateway.cli.remote import Desk, remote
from gateway.cli.telling import print_json, print_table
from gateway.cli.usage import Since, Until

commands = typer.Typer(help="Who administered what.", no_args_is_help=True)

COLUMNS = ("at", "actor", "role", "action", "target", "outcome", "details", "address", "call_id")

Actor = Annotated[str | None, typer.Option(help="What this administrator did.")]
Action = Annotated[str | None, typer.Option(help="Acts of this kind, e.g. keys.create.")]
Target = Annotated[str | None, typer.Option(help="What was done to this key or tenant.")]


@commands.command("list")
@remote
def list_(
    desk: Desk,
    since: Since = None,
    until: Until = None,
    actor: Actor = None,
    action: Action = None,
    target: Target = None,
    last: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
) -> None:
    """List acts, the newest first."""
    query = {"since": since, "until": until, "actor": actor, "action": action, "target": target}
    found = desk.api.rows("/audit", query, last)
    if desk.as_json:
        print_json(found)
    else:
        print_table(COLUMNS, found, "there are no such acts")


@commands.command()
@remote
def export(
    desk: Desk,
    since: Since = None,
    until: Until = None,
    actor: Actor = None,
    action: Action = None,
    target: Target = None,
    output: Output = None,
) -> None:
    """Write the audit log to a file, as JSON lines."""
    query = {"since": since, "until": until, "actor": actor, "action": action, "target": target}
    save(desk.api, "/audit/export", query, output)
