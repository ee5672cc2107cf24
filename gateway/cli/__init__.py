"""The `pagegate` command. Parses words and hands over; every answer to a mistake is one message with its remedy."""

import typer

from gateway.cli.audit import commands as audit
from gateway.cli.keys import commands as keys
from gateway.cli.serving import config, serve, up, version
from gateway.cli.tenants import commands as tenants
from gateway.cli.usage import commands as usage

app = typer.Typer(
    help="An LLM serving gateway in front of vLLM workers.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.command()(up)
app.command()(serve)
app.add_typer(config, name="config")
app.add_typer(keys, name="keys")
app.add_typer(tenants, name="tenants")
app.add_typer(usage, name="usage")
app.add_typer(audit, name="audit")
app.command()(version)


def main() -> None:
    app()
