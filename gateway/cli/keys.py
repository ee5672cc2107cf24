"""`pagegate keys`: make, list, change, rotate and revoke keys through the admin API; and lines for a settings file."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from gateway import settings as configuration
from gateway.cli.client import in_path
from gateway.cli.remote import Desk, remote
from gateway.cli.telling import fail, print_facts, print_json, print_table
from gateway.cli.words import listed, numbers, seconds, texts
from gateway.problems import problems_of
from gateway.settings import Priority, Role

commands = typer.Typer(help="API keys, and keys of administrators.", no_args_is_help=True)

COLUMNS = ("name", "kind", "state", "tenant", "role", "models", "limits", "expires_at", "managed_by", "hint")
FACTS = (
    *("id", "name", "kind", "role", "state", "managed_by", "tenant", "models", "limits", "priority", "metadata"),
    *("hint", "created_at", "expires_at", "revoked_at", "previous_until"),
)

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="The key's name or identifier.")]
Models = Annotated[str | None, typer.Option(help="Permitted models, as comma-separated patterns.")]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=NUMBER",
        help="requests_per_minute, tokens_per_minute, tokens_per_day or concurrent_calls; may be given again. "
        "A change with NAME= takes the limit away.",
    ),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="NAME=TEXT", help="A text of your own; may be given again. NAME= removes it."),
]
ExpiresIn = Annotated[str | None, typer.Option(metavar="TIME", help="When it ends from now: 90d, 12h, 30m.")]
ExpiresAt = Annotated[str | None, typer.Option(metavar="WHEN", help="When it ends: 2027-01-31T00:00:00Z.")]


@commands.command()
@remote
def create(
    desk: Desk,
    name: Annotated[str, typer.Argument(help="What the key is called in logs.")],
    tenant: Annotated[str | None, typer.Option(help="The tenant that the key acts for; else `default`.")] = None,
    models: Models = None,
    limit: Limit = None,
    priority: Annotated[Priority | None, typer.Option(help="The class of its calls; default: the tenant's.")] = None,
    expires_in: ExpiresIn = None,
    expires_at: ExpiresAt = None,
    metadata: Metadata = None,
    role: Annotated[
        Role | None, typer.Option(help="Makes an administrator's key, which calls no model (admins only).")
    ] = None,
) -> None:
    """Make a key. It is printed this once, alone on standard output: KEY=$(pagegate keys create NAME)."""
    body: dict[str, Any] = {"name": name, **_expiry(expires_in, expires_at)}
    for field, value in (("tenant", tenant), ("priority", priority), ("role", role)):
        if value is not None:
            body[field] = value
    if models is not None:
        body["models"] = listed(models)
    if limit:
        body["limits"] = numbers(limit, may_remove=False)
    if metadata:
        body["metadata"] = texts(metadata, may_remove=False)
    _tell_made(desk, desk.api.ask("POST", "/keys", body=body))


@commands.command("list")
@remote
def list_(
    desk: Desk,
    tenant: Annotated[str | None, typer.Option(help="Keys of this tenant.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Keys whose names begin like this.")] = None,
    administrators: Annotated[bool, typer.Option("--administrators", help="Administrators' keys only.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Revoked keys as well.")] = False,
) -> None:
    """List keys by name; a key itself is never shown again."""
    query = {
        "tenant": tenant,
        "prefix": prefix,
        "kind": "administrator" if administrators else None,
        "revoked": None if every else False,
    }
    found = desk.api.rows("/keys", query)
    if desk.as_json:
        print_json(found)
    else:
        print_table(COLUMNS, found, "there are no such keys")


@commands.command()
@remote
def show(desk: Desk, name: KeyName) -> None:
    """Show a key; the key itself is never shown again."""
    _tell(desk, desk.api.ask("GET", f"/keys/{in_path(name)}"))


@commands.command()
@remote
def update(
    desk: Desk,
    name: KeyName,
    models: Models = None,
    limit: Limit = None,
    priority: Annotated[
        str | None, typer.Option(metavar="high|normal|low|tenant", help="`tenant` for that of its tenant.")
    ] = None,
    expires_in: ExpiresIn = None,
    expires_at: ExpiresAt = None,
    never_expires: Annotated[bool, typer.Option("--never-expires", help="Takes its end away.")] = False,
    metadata: Metadata = None,
) -> None:
    """Change a key; what is not named stays."""
    body: dict[str, Any] = {"expires_at": None} if never_expires else _expiry(expires_in, expires_at)
    if models is not None:
        body["models"] = listed(models)
    if limit:
        body["limits"] = numbers(limit, may_remove=True)
    if priority is not None:
        body["priority"] = None if priority == "tenant" else priority
    if metadata:
        body["metadata"] = texts(metadata, may_remove=True)
    _tell(desk, desk.api.ask("PATCH", f"/keys/{in_path(name)}", body=body))


@commands.command()
@remote
def rotate(
    desk: Desk,
    name: KeyName,
    grace: Annotated[str, typer.Option(metavar="TIME", help="How long the old key goes on; 0 for not at all.")] = "24h",
) -> None:
    """Replace a key by a new one, printed this once; the old one goes on for a while."""
    _tell_made(desk, desk.api.ask("POST", f"/keys/{in_path(name)}/rotate", body={"grace_s": seconds(grace)}))


@commands.command()
@remote
def revoke(desk: Desk, name: KeyName) -> None:
    """End a key for ever, at once."""
    _tell(desk, desk.api.ask("POST", f"/keys/{in_path(name)}/revoke", body={}))


@commands.command()
def stanza(
    name: Annotated[str, typer.Argument(help="What the key is called in logs.")],
    secret_file: Annotated[Path, typer.Option(help="The file that `identity.secret_file` names; made if missing.")],
    tenant: Annotated[str, typer.Option(help="The tenant that the key acts for.")] = "default",
    models: Annotated[str, typer.Option(help="Permitted models, as comma-separated patterns.")] = "*",
    role: Annotated[
        Role | None, typer.Option(help="Makes an administrator's key instead, for `admin.keys` of the file.")
    ] = None,
) -> None:
    """Make a key without a gateway: print it once, and the lines for the settings file that know it."""
    from gateway.identity.keys import ADMIN_KEY_PREFIX, KEY_PREFIX, digest, ensure_secret, new_key

    try:
        secret = ensure_secret(secret_file)
    except OSError as error:
        fail(f"{secret_file}: {error.strerror}.", "  Name a file in a folder that exists and that you may write.")
    key = new_key(KEY_PREFIX if role is None else ADMIN_KEY_PREFIX)
    known: dict[str, Any] = {"name": name, "digest": digest(key, secret)}
    try:
        if role is None:
            known |= {"tenant": tenant, "models": models.split(",")}
            configuration.KeySettings.model_validate(known)
        else:
            known["role"] = role.value
            configuration.AdminKeySettings.model_validate(known)
    except ValidationError as error:
        fail("no key was made:", *(f"  {problem}" for problem in problems_of(error)))
    print(f"# The key, shown this once: {key}", file=sys.stderr)
    print(yaml.safe_dump([known], sort_keys=False), end="")


def _expiry(expires_in: str | None, expires_at: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if expires_in is not None:
        found["expires_in_s"] = seconds(expires_in)
    if expires_at is not None:
        found["expires_at"] = expires_at
    return found


def _tell(desk: Desk, key: dict[str, Any]) -> None:
    if desk.as_json:
        print_json(key)
    else:
        print_facts({name: key.get(name) for name in FACTS})


def _tell_made(desk: Desk, made: dict[str, Any]) -> None:
    if desk.as_json:
        print_json(made)
        return
    print_facts({name: made.get(name) for name in FACTS}, to_errors=True)
    print("The key, shown this once:", file=sys.stderr, flush=True)
    print(made["key"])
