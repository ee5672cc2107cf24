"""`pagegate tenants`: make, list, change and remove tenants, and see what they used of their budgets."""

from typing import Annotated, Any

import typer

from gateway.cli.client import in_path
from gateway.cli.keys import Limit, Metadata, Models
from gateway.cli.remote import Desk, remote
from gateway.cli.telling import print_facts, print_json, print_table
from gateway.cli.words import listed, numbers, texts
from gateway.settings import Priority

commands = typer.Typer(help="Tenants: who keys act for, their limits and budgets.", no_args_is_help=True)

COLUMNS = ("name", "state", "models", "limits", "budget", "weight", "priority", "managed_by")
FACTS = (*COLUMNS, "metadata", "created_at", "removed_at")

TenantName = Annotated[str, typer.Argument(metavar="NAME", help="The tenant's name.")]
Budget = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="NAME=NUMBER",
        help="tokens_per_day, tokens_per_month, cost_per_day or cost_per_month; may be given again. A change with "
        "NAME= takes the budget away.",
    ),
]
Weight = Annotated[float | None, typer.Option(help="Its share of busy engines, against other tenants' weights.")]
Class = Annotated[Priority | None, typer.Option(help="The class of its calls before busy engines.")]


@commands.command()
@remote
def create(
    desk: Desk,
    name: TenantName,
    models: Models = None,
    limit: Limit = None,
    budget: Budget = None,
    weight: Weight = None,
    priority: Class = None,
    metadata: Metadata = None,
) -> None:
    """Make a tenant."""
    body = _body(models, limit, budget, weight, priority, metadata, may_remove=False)
    _tell(desk, desk.api.ask("POST", "/tenants", body={"name": name, **body}))


@commands.command("list")
@remote
def list_(
    desk: Desk,
    prefix: Annotated[str | None, typer.Option(help="Tenants whose names begin like this.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Removed tenants as well.")] = False,
) -> None:
    """List tenants by name."""
    found = desk.api.rows("/tenants", {"prefix": prefix, "removed": None if every else False})
    if desk.as_json:
        print_json(found)
    else:
        print_table(COLUMNS, found, "there are no such tenants")


@commands.command()
@remote
def show(desk: Desk, name: TenantName) -> None:
    """Show a tenant, and what it used this day and month (UTC)."""
    _tell(desk, desk.api.ask("GET", f"/tenants/{in_path(name)}"))


@commands.command()
@remote
def update(
    desk: Desk,
    name: TenantName,
    models: Models = None,
    limit: Limit = None,
    budget: Budget = None,
    weight: Weight = None,
    priority: Class = None,
    metadata: Metadata = None,
) -> None:
    """Change a tenant; what is not named stays."""
    body = _body(models, limit, budget, weight, priority, metadata, may_remove=True)
    _tell(desk, desk.api.ask("PATCH", f"/tenants/{in_path(name)}", body=body))


@commands.command()
@remote
def remove(
    desk: Desk,
    name: TenantName,
    revoke_keys: Annotated[bool, typer.Option("--revoke-keys", help="Revoke its keys as well.")] = False,
) -> None:
    """Remove a tenant that has no keys any more; what it used stays on record."""
    _tell(desk, desk.api.ask("DELETE", f"/tenants/{in_path(name)}", query={"revoke_keys": revoke_keys}))


def _body(
    models: str | None,
    limit: list[str] | None,
    budget: list[str] | None,
    weight: float | None,
    priority: Priority | None,
    metadata: list[str] | None,
    *,
    may_remove: bool,
) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if models is not None:
        body["models"] = listed(models)
    if limit:
        body["limits"] = numbers(limit, may_remove=may_remove)
    if budget:
        body["budget"] = numbers(budget, may_remove=may_remove)
    if weight is not None:
        body["weight"] = weight
    if priority is not None:
        body["priority"] = priority
    if metadata:
        body["metadata"] = texts(metadata, may_remove=may_remove)
    return body


def _tell(desk: Desk, tenant: dict[str, Any]) -> None:
    if desk.as_json:
        print_json(tenant)
        return
    facts = {name: tenant.get(name) for name in FACTS}
    spent = tenant.get("spent", {})
    for period, used in spent.items():
        facts[f"used this {period}"] = f"{used['tokens']} tokens, {used['cost']:g} {tenant['unit']}"
    print_facts(facts | {"revoked_keys": tenant.get("revoked_keys")})
