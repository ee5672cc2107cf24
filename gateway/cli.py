"""The `pagegate` command. Parses words and hands over; every answer to a mistake is one message with its remedy."""

import json
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import yaml
from pydantic import ValidationError

from gateway import settings as configuration
from gateway.problems import problems_of

app = typer.Typer(
    help="An LLM serving gateway in front of vLLM workers.", no_args_is_help=True, pretty_exceptions_enable=False
)
config = typer.Typer(help="Look at a configuration.", no_args_is_help=True)
keys = typer.Typer(help="Make API keys.", no_args_is_help=True)
app.add_typer(config, name="config")
app.add_typer(keys, name="keys")

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file (YAML).", metavar="FILE")]


def fail(*lines: str) -> NoReturn:
    """Says what is wrong on standard error, and leaves with status 1."""
    for line in lines:
        print(f"pagegate: {line}", file=sys.stderr)
    raise typer.Exit(1)


def _load(path: Path | None) -> configuration.Settings:
    try:
        return configuration.load(path)
    except configuration.SettingsError as error:
        fail(f"{error.source} cannot be used:", *(f"  {problem}" for problem in error.problems))


@app.command()
def up(
    profiles: Annotated[
        list[str] | None, typer.Argument(help="Engine profiles to start, by name or file; default: the bundled model.")
    ] = None,
    config_file: ConfigFile = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [env: PAGEGATE_PORT; default 8080].")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder for keys, models and logs [env: PAGEGATE_STATE; default .pagegate].")
    ] = None,
) -> None:
    """Start engines and the gateway on this machine, and print how to call it."""
    from gateway.embedded.up import up as start

    try:
        environment = configuration.embedded()
    except configuration.SettingsError as error:
        fail(*error.problems)
    chosen = environment.model_copy(
        update={
            name: value
            for name, value in {"port": port, "state": state, "config": config_file}.items()
            if value is not None
        }
    )
    raise typer.Exit(start(tuple(profiles or ()), chosen, configuration.environment()))


@app.command()
def serve(config_file: ConfigFile = None) -> None:
    """Run the gateway alone, before engines that run elsewhere."""
    from gateway import server

    settings = _load(config_file)
    if not settings.models:
        fail("no models are configured.", "  models: name at least one, with the URL of an engine")
    try:
        server.run(settings)
    except configuration.SettingsError as error:
        fail(f"{error.source} cannot be used:", *(f"  {problem}" for problem in error.problems))
    except server.PortTaken as error:
        fail(f"{error}.", "  Choose another with PAGEGATE_PORT, or end what listens there.")


@config.command()
def check(file: Annotated[Path, typer.Argument(help="Settings file (YAML).")]) -> None:
    """Say whether a settings file can be used; every problem is named."""
    settings = _load(file)
    try:
        configuration.secret_of(settings.identity)
    except configuration.SettingsError as error:
        fail(f"{error.source} cannot be used:", *(f"  {problem}" for problem in error.problems))
    print(f"{file}: good ({len(settings.models)} models, {len(settings.identity.keys)} keys)")


@config.command()
def schema() -> None:
    """Print the JSON Schema of the settings file, for editors."""
    print(json.dumps(configuration.Settings.model_json_schema(), indent=2))


@config.command()
def show(config_file: ConfigFile = None) -> None:
    """Print the settings in force: file, environment and defaults together. Secrets are masked."""
    print(yaml.safe_dump(_load(config_file).model_dump(mode="json"), sort_keys=False), end="")


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is called in logs.")],
    secret_file: Annotated[Path, typer.Option(help="The file that `identity.secret_file` names; made if missing.")],
    tenant: Annotated[str, typer.Option(help="The tenant that the key acts for.")] = "default",
    models: Annotated[str, typer.Option(help="Permitted models, as comma-separated patterns.")] = "*",
) -> None:
    """Make a key: print it once, and the lines for the settings file that know it."""
    from gateway.identity.keys import digest, ensure_secret, new_key

    try:
        secret = ensure_secret(secret_file)
    except OSError as error:
        fail(f"{secret_file}: {error.strerror}.", "  Name a file in a folder that exists and that you may write.")
    key = new_key()
    stanza = {"name": name, "digest": digest(key, secret), "tenant": tenant, "models": models.split(",")}
    try:
        configuration.KeySettings.model_validate(stanza)
    except ValidationError as error:
        fail("no key was made:", *(f"  {problem}" for problem in problems_of(error)))
    print(f"# The key, shown this once: {key}", file=sys.stderr)
    print(yaml.safe_dump([stanza], sort_keys=False), end="")


@app.command()
def version() -> None:
    """Print the version."""
    print(f"pagegate {installed_version('pagegate')}")


def main() -> None:
    app()
