"""`pagegate usage`: what was used, by whom and of which model: sums, single calls, and files of both."""

import enum
from typing import Annotated

import typer

from gateway.cli.files import Output, save
from gateway.cli.remote import Desk, remote
from gateway.cli.telling import print_json, print_table

commands = typer.Typer(help="What was used.", no_args_is_help=True)

SUMS = ("calls", "prompt_tokens", "completion_tokens", "cached_tokens", "cost")
COLUMNS = (
    *("at", "tenant", "key", "model", "outcome", "prompt_tokens", "completion_tokens", "cached_tokens", "cost"),
    *("duration_ms", "measured", "id"),
)


class Format(enum.StrEnum):
    """How a file is written."""

    CSV = "csv"
    JSONL = "jsonl"


By = Annotated[str, typer.Option(help="What to sum by: day, tenant, key, model, several with commas between.")]
Since = Annotated[str | None, typer.Option(metavar="DAY", help="From this day (YYYY-MM-DD, UTC) or time (RFC 3339).")]
Until = Annotated[str | None, typer.Option(metavar="DAY", help="To the end of this day, or until this time.")]
FirstDay = Annotated[str | None, typer.Option(metavar="DAY", help="The first day (YYYY-MM-DD, UTC).")]
LastDay = Annotated[str | None, typer.Option(metavar="DAY", help="The last day; else today.")]
Tenant = Annotated[str | None, typer.Option(help="Of this tenant.")]
Key = Annotated[str | None, typer.Option(help="With this key, by name.")]
Model = Annotated[str | None, typer.Option(help="Of this model, by canonical name.")]


@commands.command()
@remote
def summary(
    desk: Desk,
    by: By = "tenant,model",
    since: FirstDay = None,
    until: LastDay = None,
    tenant: Tenant = None,
    key: Key = None,
    model: Model = None,
) -> None:
    """Sum up what was used; without days the last thirty."""
    query = {"group_by": by, "since": since, "until": until, "tenant": tenant, "key": key, "model": model}
    found = desk.api.ask("GET", "/usage", query=query)
    if desk.as_json:
        print_json(found)
        return
    sums = [{**row, "cost": f"{row['cost']:g} {found['unit']}"} for row in found["data"]]
    print_table((*dict.fromkeys(by.split(",")), *SUMS), sums, "nothing was used")


@commands.command()
@remote
def records(
    desk: Desk,
    since: Since = None,
    until: Until = None,
    tenant: Tenant = None,
    key: Key = None,
    model: Model = None,
    last: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
) -> None:
    """List single calls, the newest first."""
    query = {"since": since, "until": until, "tenant": tenant, "key": key, "model": model}
    found = desk.api.rows("/usage/records", query, last)
    if desk.as_json:
        print_json(found)
    else:
        print_table(COLUMNS, found, "there are no such calls")


@commands.command()
@remote
def export(
    desk: Desk,
    form: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.CSV,
    by: Annotated[str | None, typer.Option(help="Export sums by these instead of single calls, as in summary.")] = None,
    since: Since = None,
    until: Until = None,
    tenant: Tenant = None,
    key: Key = None,
    model: Model = None,
    output: Output = None,
) -> None:
    """Write all calls, or sums, to a file."""
    query = {"format": form, "since": since, "until": until, "tenant": tenant, "key": key, "model": model}
    path = "/usage/records/export" if by is None else "/usage/export"
    save(desk.api, path, query if by is None else {**query, "group_by": by}, output)
